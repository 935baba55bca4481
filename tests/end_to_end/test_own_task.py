"""A task that has no grader here: the user's function says what is correct, and everything goes by it."""

from __future__ import annotations

import json

import pytest
from launches import Launch, metrics, query
from world import World

from srpo.cli import command

WORTH = {"own-0": 1.0, "own-1": 0.5, "own-2": 1.0, "own-3": 0.0}


def test_two_epochs_an_evaluation_and_every_command(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    data, held_out = world.folder / "own.jsonl", world.folder / "own-held-out.jsonl"
    rows = [{"id": i, "domain": "other", "prompt": f"{i}<think>", "worth": worth} for i, worth in WORTH.items()]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out.write_text("".join(json.dumps(row | {"id": f"held-{row['id']}"}) + "\n" for row in rows[::2]))
    judge = {"function": "own_rewards:as_told", "role": "correct"}
    world.train("own", ranks=1, data={"train": [str(data)], "eval": [str(held_out)]}, warm_start=None,
                reward={"workers": 1, "timeout": 60.0, "accuracy": 2.0, "custom": [judge]}, resample={"drop_at": 1.0},
                stages=[{"name": "own", "domains": ["other"], "until": "epochs", "epochs": 2}]).succeed()

    run = world.folder / "own"
    before, first, second = metrics(run)
    graded = dict(query(run, "SELECT prompt_id, AVG(correct) FROM rollouts WHERE step = 1 GROUP BY prompt_id"))
    assert graded["own-0"] == graded["own-2"] == 1 and graded["own-3"] == 0 < graded["own-1"] <= 0.5
    assert first["accuracy/other"] == pytest.approx(sum(graded.values()) / 4)
    assert first["reward/other"] >= 2 * first["accuracy/other"] and first["reward/failed"] == 0
    assert first["grad/norm"] > 0 and before["eval/other"] == 1.0
    assert query(run, "SELECT epoch, prompts, kept, dropped FROM epochs") == [(1, 4, 2, 2), (2, 2, 2, 0)]
    assert query(run, "SELECT DISTINCT prompt_id FROM rollouts WHERE step = 2 ORDER BY 1") == [("own-1",), ("own-3",)]
    assert second["accuracy/other"] < 0.5

    for words in (["history", run, "--domain", "other"], ["report", run, "--out", run / "report.html"],
                  ["analyze", run], ["forecast", run]):
        assert command([str(word) for word in words]) == 0, words
    assert "own-1" in capsys.readouterr().out

    out = world.folder / "own-evaluated"
    Launch("-m", "srpo", "eval", run, "--data", f"tasks={data}", "--out", out, "--workers", "1", "--samples", "2",
           ranks=1, folder=world.folder).succeed()
    found = json.loads((out / "summary.json").read_text())["domains"]["other"]
    assert found["problems"] == 4 and found["pass@2"]["mean"] == 0.5 and "majority@2" not in found
