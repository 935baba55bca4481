"""The benchmarks run and report everything; what they time is not looked at here."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import (
    bench_advantage,
    bench_balance,
    bench_ledger,
    bench_linear,
    bench_logprob,
    bench_policy_loss,
    bench_rollout,
    compare,
    harness,
    peers,
    timing,
)
from benchmarks.inputs import Case, Inputs
from srpo.control.ledger import Ledger

OPS = {
    bench_advantage: {"group_advantage"},
    bench_logprob: {"token_logprobs"},
    bench_policy_loss: {"policy_loss"},
    bench_linear: {"linear_token_logprobs", "linear_policy_loss", "linear_cross_entropy"},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of peers, when they are imported
@pytest.mark.parametrize("bench", OPS, ids=lambda bench: bench.__name__)
def test_quick_run_reports_every_implementation(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "result.json"
    threads = torch.get_num_threads()
    harness.main([bench.BENCH], None, ["--device", "cpu", "--quick", "--skip", "compile", "--out", str(out)])
    assert torch.get_num_threads() == threads
    result = json.loads(out.read_text())
    assert {row["op"] for row in result["rows"]} == OPS[bench]
    assert result["versions"]["torch"] == torch.__version__ and result["device"] and result["ceilings"]
    printed = capsys.readouterr().out
    cases = {row["case"] for row in result["rows"]}
    for case in cases:
        names = {row["implementation"] for row in result["rows"] if row["case"] == case}
        op = case.split()[0]
        assert names == {each.name for each in peers.IMPLEMENTATIONS if op in each.ops} - {"torch.compile"}
    for row in result["rows"]:
        assert row["implementation"] in printed
        if "reason" in row:
            assert row["implementation"] != peers.OURS and not row["reason"].startswith("failed"), row["reason"]
            continue
        for mode in ("warm", "cold"):
            assert all(math.isfinite(row[mode][key]) for key in ("median", "min", "to_floor", "to_eager"))
        assert row["value_error"] < 0.1
        assert (row["gradient_error"] is not None) == row["backward"]
        assert not row["backward"] or row["gradient_error"] < 0.05
    assert compare.main([str(out), str(out)]) == 0


def test_a_wrong_peer_shows_and_a_broken_one_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "IMPLEMENTATIONS", peers.IMPLEMENTATIONS[:0])
    monkeypatch.setattr(harness, "IMPLEMENTATIONS", peers.IMPLEMENTATIONS)

    @peers.logprobs("shifted", peers.ROWS)
    def _(x: Inputs) -> peers.Function:
        return lambda logits: torch.log_softmax(logits.float(), 1).gather(1, x.tokens[:, None]).squeeze(1) * 2

    @peers.logprobs("broken", peers.ROWS)
    def _(x: Inputs) -> peers.Function:
        def fail(logits: Tensor) -> Tensor:
            raise RuntimeError("no such kernel\nand a long story")
        return fail

    @peers.logprobs("absent", peers.ROWS, package="no-such-package")
    def _(x: Inputs) -> peers.Function:
        raise AssertionError("built though its package is not installed")

    session = harness.Session(harness.parser(None).parse_args(["--device", "cpu", "--quick"]))
    case = Case("token_logprobs", "fp32", 4, 50, backward=True)
    shifted, broken, absent = session.measure(case, bench_logprob.work(case))
    assert shifted["value_error"] > 1 and shifted["gradient_error"] > 0.5
    assert broken["reason"] == "failed: RuntimeError: no such kernel"
    assert absent["reason"] == "no-such-package is not installed"

    @peers.logprobs(peers.OURS, peers.ROWS)
    def _(x: Inputs) -> peers.Function:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        session.measure(case, bench_logprob.work(case))


def test_what_was_measured_outlives_a_case_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = [Case("token_logprobs", "fp32", rows, 50) for rows in (4, 5)]
    measure = harness.Session.measure

    def fail(self: harness.Session, case: Case, work: dict[str, float]) -> list[dict[str, Any]]:
        if case is cases[1]:
            raise RuntimeError("ours")
        return measure(self, case, work, (peers.OURS, peers.EAGER))

    monkeypatch.setattr(harness.Session, "measure", fail)
    bench = harness.Bench("two", lambda device, quick: cases, bench_logprob.work, "any")
    with pytest.raises(RuntimeError, match="ours"):
        harness.main([bench], None, ["--device", "cpu", "--quick", "--out", str(tmp_path / "result.json")])
    found = json.loads((tmp_path / "result.json").read_text())
    assert [row["case"] for row in found["rows"]] == [cases[0].label] * 2 and found["commit"]


def test_floors() -> None:
    case = Case("token_logprobs", "bf16", 10, 100)
    assert bench_logprob.work(case) == {"read": 2000}
    both = Case("token_logprobs", "bf16", 10, 100, backward=True, masked=0.5)
    assert bench_logprob.work(both) == {"read": 1000, "copy": 2000, "write": 1000}
    loss = Case("policy_loss", "fp32", 10, 100, backward=True)
    assert bench_policy_loss.work(loss) == {"copy": 8000, "write": 0}
    products = [bench_linear.work(Case("linear_policy_loss", "bf16", 10, 100, 7, backward=backward, frozen=frozen))
                for backward, frozen in ((False, False), (True, True), (True, False))]
    assert products == [{"matrix": 14000}, {"matrix": 28000}, {"matrix": 42000}]


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def call() -> Tensor:
        first = torch.zeros(1000, dtype=torch.float64)
        second = first.clone()
        del first
        return second.clone()
    assert timing.peak_memory(call, torch.device("cpu")) == 16000


def result(**changed: Any) -> dict[str, Any]:
    figures = {"to_floor": 1.2, "to_eager": 0.25}
    row = {"case": "token_logprobs forward bf16 1x1", "implementation": peers.OURS, "warm": figures, "cold": figures}
    return {"device": "a", "threads": 2, "quick": False, "rows": [row, row | {"case": "another"}]} | changed


def slower(mode: str, ratio: str, factor: float) -> dict[str, Any]:
    first, second = result()["rows"]
    return result(rows=[first | {mode: first[mode] | {ratio: first[mode][ratio] * factor}}, second])


@pytest.mark.parametrize("new, code, says", [
    (result(), 0, "no regression"),
    (slower("warm", "to_floor", 1.04), 0, "no regression"),
    (slower("cold", "to_eager", 0.5), 0, "no regression"),
    (slower("warm", "to_floor", 1.06), 1, "REGRESSION"),
    (slower("cold", "to_eager", 1.06), 1, "REGRESSION"),
    (slower("cold", "to_floor", math.nan), 1, "REGRESSION"),
    (result(rows=result()["rows"][:1]), 1, "MISSING"),
    (result(rows=[*result()["rows"], result()["rows"][0] | {"case": "a third"}]), 0, "new"),
    (result(device="b"), 2, "device differs: 'a' in the baseline, 'b' in the new result"),
    (result(threads=1), 2, "threads differs"),
    (result(dtype="bfloat16"), 2, "dtype differs: None in the baseline, 'bfloat16' in the new result"),
    ([], 2, "is not a result of the benchmarks"),
])
def test_compare(new: Any, code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = [tmp_path / "baseline.json", tmp_path / "new.json"]
    for path, document in zip(paths, (result(), new), strict=True):
        path.write_text(json.dumps(document))
    assert compare.main([*map(str, paths), "--tolerance", "0.05"]) == code
    captured = capsys.readouterr()
    assert says in captured.out + captured.err


def test_the_balance_is_measured_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_balance, "SEEDS", 2)
    out = tmp_path / "new" / "balance.json"
    document = bench_balance.main(["--out", str(out)])
    assert json.loads(out.read_text()) == document
    found = {(row["case"], row["implementation"]): row["ratios"] for row in document["rows"]}
    for replicas in (8, 64):
        for items in ("responses 8192", "prompts 256", "forecast 256"):
            ours, even, drawn = (found[f"{items} on {replicas}", name]["to_bound"]
                                 for name in ("srpo", "round robin", "random"))
            assert 1 <= ours < min(even, drawn)
    assert compare.main([str(out), str(out)]) == 0
    for row in document["rows"]:
        row["ratios"] = {name: value * 1.1 for name, value in row["ratios"].items()}
    compare.write(document, tmp_path / "worse.json")
    assert compare.main([str(out), str(tmp_path / "worse.json")]) == 1


def test_what_a_step_loses_is_measured(tmp_path: Path) -> None:
    """Real graders and a real ledger beside a generation of a second."""
    row = bench_rollout.step(tmp_path, argparse.Namespace(tokenizer=None, replicas=64, workers=1, minutes=1 / 60))
    assert row["seconds"].keys() == {"controller", "submitting", "remaining grades", "ledger", "generation"}
    assert 0 < row["ratios"]["share"] < 1 <= row["seconds"]["generation"]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.position()["rollouts"] == 2 * 8192
    ledger.close()


def test_the_ledger_is_measured_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "ledger.json"
    document = bench_ledger.main(["--prompts", "300", "--folder", str(tmp_path), "--out", str(out)])
    assert json.loads(out.read_text()) == document and compare.main([str(out), str(out)]) == 0
    assert [row["case"] for row in document["rows"]] == ["append 8192", "close 300", "resume 300"]
    for row in document["rows"]:
        assert row["seconds"] > 0 and row["bare"] > 0 and row["worst"] >= row["seconds"]
    assert document["rows"][0]["bytes"] / (300 * 32) > 40
    assert list(tmp_path.iterdir()) == [out], "the ledger is gone"


def test_compare_names_a_file_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "broken.json").write_text("{")
    assert compare.main([str(tmp_path / "none.json"), str(tmp_path / "broken.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert compare.main([str(tmp_path / "broken.json"), str(tmp_path / "broken.json")]) == 2
    assert "is not JSON" in capsys.readouterr().err
