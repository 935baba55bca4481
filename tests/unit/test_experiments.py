"""The comparison of samplers: what is read from a run, and figures at equal rollouts."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import experiments
from benchmarks.experiments import Step, accuracy, at, interval, read
from srpo.control.ledger import Ledger, RolloutRow


def test_a_runs_steps_add_up_what_was_spent(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")

    def rows(step, rewards):
        return [RolloutRow(1, step, "s", f"p{i}", k, "math", float(r > 0.5), r, 5, False)
                for i, group in enumerate(rewards) for k, r in enumerate(group)]

    ledger.append(rows(1, [[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]), unused=["p2"])
    ledger.append(rows(2, [[0.0, 0.1]]))
    ledger.close()
    lines = [{"step": 0, "eval/math": 0.5, "eval/code": 0.25}, {"step": 1, "time/step": 2.0},
             {"step": 2, "time/step": 1.5, "eval/math": 0.75, "eval/code": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(tmp_path) == [Step(0, 0, 0, 0, 0.0, {"math": 0.5, "code": 0.25}), Step(6, 3, 2, 4, 2.0, None),
                              Step(8, 4, 3, 4, 3.5, {"math": 0.75, "code": 0.5})]


def test_figures_between_evaluations_are_linear_and_never_beyond_them():
    steps = [Step(0, 0, 0, 0, 0, {"math": 0.0, "code": 1.0}), Step(5, 0, 0, 0, 3.0, None),
             Step(10, 0, 0, 0, 4.0, {"math": 0.5, "code": 1.0})]
    assert at(steps, 6, accuracy("math")) == pytest.approx(0.3)
    assert at(steps, 6, accuracy(None)) == pytest.approx(0.65)
    assert at(steps, 6, lambda s: s.seconds) == pytest.approx(3.2)
    with pytest.raises(ValueError, match="from 0 to 10 rollouts, not at 11"):
        at(steps, 11, accuracy("math"))


def test_intervals_are_students():
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / 3**0.5))


@pytest.mark.parametrize("seeds", [["1", "2", "1"], [str(seed) for seed in range(11)]])
def test_seeds_that_no_interval_can_be_had_of(monkeypatch, capsys, seeds):
    monkeypatch.setattr("sys.argv", ["experiments", "--runs", "x", "--out", "y", "--seeds", *seeds])
    monkeypatch.setattr(experiments, "launch", lambda *_: pytest.fail("launched"))
    with pytest.raises(SystemExit, match="2"):
        experiments.main()
    assert "--seeds: give different ones, 10 at most" in capsys.readouterr().err


def test_half_a_copy_of_the_warm_start_is_no_run(tmp_path, monkeypatch):
    (tmp_path / "history-1" / "warm").mkdir(parents=True)
    whole, started = experiments.shutil.copytree, []

    def killed(source, target):
        target.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.shutil, "copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        experiments.launch(tmp_path, "plain", 1, 2)
    assert not (tmp_path / "plain-1").exists()
    monkeypatch.setattr(experiments.shutil, "copytree", whole)
    monkeypatch.setattr(experiments.subprocess, "run", lambda command, **_: started.append(command) or
                        SimpleNamespace(returncode=0))
    experiments.launch(tmp_path, "plain", 1, 2)
    assert (tmp_path / "plain-1" / "warm").is_dir() and "seed=1" in started[0]


def test_the_document_has_every_arm_and_takes_differences_within_a_seed():
    def run(rate, final, offset):
        return [Step(i * rate, i, i, 0, float(i), {"math": offset + final * i / 4, "code": 0.5} if i % 2 == 0 else None)
                for i in range(5)]

    runs = {arm: [run(10, 0.2, 0.1), run(10, 0.2, 0.6)] for arm in experiments.ARMS}
    runs["dynamic"] = [run(20, 0.8, 0.1), run(20, 0.8, 0.6)]  # spends twice as much a step: at half its steps, 0.4
    text = experiments.document(runs, [1, 2], 2)
    assert "after 40 rollouts" in text and all(f"| {arm} |" in text for arm in experiments.ARMS)
    assert "| dynamic | 20.0 ± 0.0 | 0.0 ± 0.0 | 10.0 ± 0.0 |" in text
    assert "| plain | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 |" in text
    assert "| dynamic | 75.0 ± 317.6 |" in text, "but an arm's own figure has the spread of its seeds"
    assert "| dynamic | 90, 140 | 50, 50 | 80, 80 | 4, 4 |" in text
