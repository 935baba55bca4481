"""The command line of `srpo forecast`."""

import json

import pytest
from ledgers import write

from srpo.cli import command
from srpo.config import Resample
from srpo.control.ledger import Decision, Ledger, RolloutRow
from srpo.control.resample import recorded
from srpo.forecast.command import scenario


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write(folder / "ledger.sqlite", prompts=80, epochs=3, steps=2)
    return folder


def test_forecast_as_a_table(run, capsys):
    assert command(["forecast", str(run), "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("history", "plain", "no_positive", "dynamic", "difficulty"))
    assert "Growth in log-odds" in out and "80 prompts x 8 samples in 3 closed epochs" in " ".join(out.split())


def test_forecast_as_json_twice_the_same(run, capsys):
    documents = []
    for _ in range(2):
        assert command(["forecast", str(run / "ledger.sqlite"), "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1] and len(documents[0]["of"]["history"]["epochs"]) == 5


def test_one_epoch_says_what_is_assumed(tmp_path, capsys):
    write(tmp_path / "ledger.sqlite", prompts=60, epochs=1)
    assert command(["forecast", str(tmp_path), "--epochs", "1"]) == 0
    assert "ASSUMED growth" in capsys.readouterr().out


def test_back_test(run, capsys):
    assert command(["forecast", str(run), "--from-epoch", "2"]) == 0
    assert "what came" in " ".join(capsys.readouterr().out.split())


def test_back_test_stops_at_the_stages_end(tmp_path, capsys):
    write(tmp_path / "ledger.sqlite", prompts=60, epochs=2)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.append([RolloutRow(3, 99, "two", "p0", s, "math", 1.0, 1.0, 9, False) for s in range(8)])
    ledger.close_epoch(3, "two", [Decision("p0", "dropped", "")])
    ledger.close()
    assert command(["forecast", str(tmp_path), "--from-epoch", "1", "--json"]) == 0
    assert [row["epoch"] for row in json.loads(capsys.readouterr().out)["epochs"]] == [2]


def test_simulate(capsys):
    assert command(["forecast", "--simulate", "prompts=2000", "samples=4", "batch=100", "epochs=2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "prompts=2,000" in out and "One skill for all prompts" in out
    assert command(["forecast", "--json", "--simulate", "prompts=2000", "samples=4", "batch=100", "epochs=2"]) == 0
    assert json.loads(capsys.readouterr().out)["scenario"]["prompts"] == 2000


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give a run folder, or --simulate"),
    (["RUN", "--simulate"], "and not both"),
    (["RUN", "--epochs", "0"], "--epochs 0"),
    (["RUN", "--from-epoch", "3"], "no epoch of stage 'one' has closed after epoch 3"),
    (["RUN", "--from-epoch", "0"], "none of epochs 1 to 0 has closed"),
    (["--simulate", "prompt=3"], "names: prompts"),
    (["--simulate", "prompts=many"], "'many' is no int"),
    (["--simulate", "spread=-1"], "at least 0"),
    (["--simulate", "skill=nan"], "a number"),
    (["--simulate", "unsolvable=1"], "below 1"),
    (["--simulate", "prompts=10"], "batch=256: more than"),
])
def test_requests_that_make_no_sense(run, capsys, arguments, message):
    assert command(["forecast", *(str(run) if a == "RUN" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_scenario_keeps_its_types():
    made = scenario(["growth=3", "seed=7"])
    assert (made.growth, made.seed) == (3.0, 7) and isinstance(made.growth, float)


def test_the_runs_settings_are_read_from_its_configuration(tmp_path):
    assert recorded(tmp_path) is None
    (tmp_path / "config.yaml").write_text(
        "run: x\nmodel: {path: m}\ndata: {train: [t]}\nstages: [{name: a, domains: [math], until: epochs, epochs: 1}]\n"
        "resample: {sampler: difficulty, low: 0.2}\n")
    assert recorded(tmp_path) == recorded(tmp_path / "ledger.sqlite") == Resample(sampler="difficulty", low=0.2)
