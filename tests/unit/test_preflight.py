"""What ranks compare, and how their differences are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srpo import preflight
from srpo.config import Config
from srpo.preflight import disagreement


def config(path: Path, **sections: Any) -> Config:
    (path / "model").mkdir(exist_ok=True)
    for name, content in (("model/config.json", "{}"), ("model/model.safetensors", "weights"), ("a.jsonl", "a")):
        (path / name).write_text(content)
    return Config.model_validate({
        "run": "r", "model": {"path": str(path / "model")}, "data": {"train": [str(path / "a.jsonl")]},
        "stages": [{"name": "s", "domains": ["math"], "until": "steps", "steps": 1}]} | sections)


def test_everything_that_decides_is_described(tmp_path: Path):
    facts = preflight.describe(config(tmp_path))
    assert facts.keys() >= {"package torch", "Python", "sources of srpo", "sources of srpo_kernels", "optimizer.lr",
                            "stages.0.steps", f"data file {tmp_path}/a.jsonl",
                            f"model file {tmp_path}/model/config.json"}
    assert facts[f"model file {tmp_path}/model/model.safetensors"] == "7 bytes"
    assert facts == preflight.describe(config(tmp_path))


def test_a_changed_byte_a_changed_setting_and_an_unreadable_file_show(tmp_path: Path):
    before = preflight.describe(config(tmp_path))
    settings = config(tmp_path, optimizer={"lr": 1e-3})
    (tmp_path / "a.jsonl").write_text("b")
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").mkdir()
    after = preflight.describe(settings)
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} == {
        "optimizer.lr", f"data file {tmp_path}/a.jsonl", f"model file {tmp_path}/model/config.json"}
    (tmp_path / "a.jsonl").unlink()
    assert preflight.describe(settings)[f"data file {tmp_path}/a.jsonl"] == "unreadable (No such file or directory)"


@pytest.mark.parametrize(("every", "line"), [
    ([("a", {}), ("a", {})], None),
    ([("a", {}), ("a", {}), ("b", {"x": (1, 2)}), ("b", {"x": (1, 2)})],
     "the ranks of this launch are not the same; against rank 0 (a), rank 2-3 (b): x = 1 instead of 2"),
    ([("a", {}), ("b", {"x": (1, 2)}), ("a", {}), ("c", {"x": (1, 2), "y": ("absent", 3)})],
     "the ranks of this launch are not the same; against rank 0 (a), rank 1 (b): x = 1 instead of 2; "
     "rank 3 (c): x = 1 instead of 2, y = absent instead of 3"),
    ([("a", {}), ("b", {f"k{i}": (1, 2) for i in range(10)})],
     "the ranks of this launch are not the same; against rank 0 (a), rank 1 (b): "
     + ", ".join(f"k{i} = 1 instead of 2" for i in range(8)) + " and 2 more"),
])
def test_the_line(every: list, line: str | None):
    assert disagreement(every) == line
