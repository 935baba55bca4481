"""The quickstart learns, on more than one seed: what `make train` runs, with data and sampling of that seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from launches import ROOT, Launch, metrics, query

POINTS = 0.25


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_quickstart_learns(seed: int, tmp_path: Path) -> None:
    data = tmp_path / "data" / "quickstart"  # where the configuration looks, from the folder that it is started in
    Launch("-m", "srpo.data.toy", data, "--seed", str(seed), ranks=1, folder=tmp_path).succeed()
    quickstart = ROOT / "configs" / "quickstart.yaml"
    launch = Launch("-m", "srpo", "train", quickstart, f"seed={seed}", ranks=2, folder=tmp_path)
    assert launch.end(1200) == 0, launch.output[-6000:]
    run = tmp_path / "runs" / "quickstart"

    before, after = ({d: m[f"eval/{d}"] for d in ("math", "code")} for m in (metrics(run)[0], metrics(run)[-1]))
    print(f"seed {seed}: {before} -> {after}")
    assert all(after[domain] >= before[domain] + POINTS for domain in before), (before, after)
    assert {m["stage"] for m in metrics(run)[1:]} == {"arithmetic", "programs"}
    assert sum(dropped > 0 for (dropped,) in query(run, "SELECT dropped FROM epochs")) >= 2
    for m in metrics(run)[1:]:
        assert m["rollout/logprob_diff_max"] < 1e-4 and m["weights/moved_bytes"] == 0
