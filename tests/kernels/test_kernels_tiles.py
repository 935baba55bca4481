"""The table of tiles: where its values come from, what any GPU can hold of them, and which are taken where."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from srpo_kernels import tiles

DOCUMENT = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
MIB = 2**20


@pytest.mark.parametrize("capability", tiles.TABLE, ids=str)
def test_every_value_says_what_chose_it(capability: tuple[int, int]) -> None:
    logged = re.findall(r"^### (.*)$", re.sub(r"```.*?```", "", DOCUMENT, flags=re.DOTALL), re.MULTILINE)
    for value in tiles.TABLE[capability]:
        assert value.chosen_by in (tiles.COMPILED, tiles.COUNTED, *logged), value


@pytest.mark.parametrize("capability", tiles.TABLE, ids=str)
def test_all_programs_find_a_place(capability: tuple[int, int]) -> None:
    """In 65,536 registers and the 48 warps of a consumer's GPU, as other architectures take these too."""
    for value in tiles.TABLE[capability]:
        if isinstance(value, tiles.Tile):
            registers = value.options(torch.bfloat16)["maxnreg"]
            assert registers >= 40 and registers % 8 == 0
            assert value.programs * value.warps <= 48
            assert value.programs * value.warps * 32 * registers <= 65536


def test_the_tile_of_the_loss_follows_the_cache() -> None:
    h100 = tiles.Device(132, 50 * MIB, (9, 0))
    small, large = h100.tiles.loss_small, h100.tiles.loss
    last = int(h100.tiles.l2_share.of_l2 * h100.l2_bytes) // (small.programs * h100.processors)
    assert [h100.loss_tile(row) for row in (2, last, last + 1, 2 * 152064)] == [small, small, large, large]


@pytest.mark.parametrize("capability, level, says", [
    ((9, 0), logging.INFO, "tiles for 9.0"), ((8, 6), logging.WARNING, "tiles for 9.0, as there are none for 8.6")])
def test_an_architecture_without_tiles_takes_the_default_and_says_so_once(
    capability: tuple[int, int], level: int, says: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    properties = SimpleNamespace(multi_processor_count=82, L2_cache_size=6 * MIB, major=capability[0],
                                 minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    caplog.set_level(logging.INFO, logger="srpo_kernels")
    tiles.device.cache_clear()
    for _ in range(2):
        found = tiles.device(torch.device("cuda:7"))
    tiles.device.cache_clear()
    assert found == tiles.Device(82, 6 * MIB, capability) and found.tiles is tiles.TABLE[9, 0]
    assert [(each.levelno, each.message) for each in caplog.records] == [(level, f"kernels on cuda:7: {says}")]
