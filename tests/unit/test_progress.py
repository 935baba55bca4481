"""`srpo stage`: what it tells of a run, and what it asks of it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from srpo import cli, folder
from srpo.config import Config, dump
from srpo.control.by_hand import ByHand, pending
from srpo.control.curriculum import Curriculum
from srpo.control.ledger import Ledger, RolloutRow
from srpo.errors import UserError
from srpo.progress import end_stage, show

STAGES = [{"name": "sums", "domains": ["math"], "until": "plateau", "window": 5, "cooldown": 0, "max_steps": 8},
          {"name": "programs", "domains": ["math", "code"], "until": "steps", "steps": 9}]
PROBLEMS = {f"m{i}": "math" for i in range(6)} | {f"c{i}": "code" for i in range(2)}


class Toy:
    """A run folder without a model: steps of two prompts, whose reward rises until step 6."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir()
        self.configure(STAGES)

    def configure(self, stages: list[dict]) -> None:
        self.config = Config.model_validate({"run": str(self.path), "model": {"path": "m"}, "data": {"train": ["d"]},
                                             "stages": stages})
        (self.path / "config.yaml").write_text(dump(self.config))

    def __enter__(self) -> "Toy":
        self.lock = folder.claim(self.path)
        self.ledger = Ledger(self.path / "ledger.sqlite")
        self.curriculum = Curriculum(PROBLEMS, self.config.stages, self.config.resample, 2, 1, self.ledger,
                                     by_hand=ByHand(self.path))
        file = self.path / "state.json"
        self.curriculum.load_state_dict(json.loads(file.read_text()) if file.exists() else None)
        self.plan = self.curriculum.next()
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()
        self.lock.close()

    def steps(self, count: int) -> list[str]:
        """Make so many steps and return the stage of each; the next one is planned then, as it is while it is made."""
        stages: list[str] = []
        while len(stages) < count and (plan := self.plan):
            self.curriculum.record(plan, [
                RolloutRow(plan.epoch, plan.step, plan.stage, p, k, PROBLEMS[p], 0.0, min(plan.step, 6) / 10, 5, False)
                for p in plan.prompt_ids for k in range(2)])
            stages.append(plan.stage)
            self.plan = self.curriculum.next()
        return stages

    def save(self) -> None:
        state = self.curriculum.state_dict()
        (self.path / "state.json").write_text(json.dumps(state))
        (self.path / "checkpoints").mkdir(exist_ok=True)
        (self.path / "checkpoints" / "latest").write_text(f"step-{state['step']:08d}")

    def shown(self) -> str:
        out = io.StringIO()
        show(self.path, Console(file=out, width=300, markup=False))
        return out.getvalue()

    def line(self, stage: str) -> list[str]:
        """The cells of a stage's line."""
        (line,) = [line for line in self.shown().splitlines() if line.startswith(f"│ {stage} ")]
        return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "run")


def test_a_stage_ends_by_hand_between_two_steps(toy: Toy):
    with toy:
        assert toy.steps(3) == ["sums"] * 3
        assert end_stage(toy.path) == (f"{toy.path}: stage 'sums' ends after the step that it is making; then stage "
                                       "'programs' begins")
        assert toy.steps(2) == ["sums", "programs"]  # step 4 was being made
        assert toy.line("sums") == ["sums", "math", "4", "2", "0.250", "ended: by hand after 4 steps"]
        assert pending(toy.path) is None
    assert [json.loads(line)["step"] for line in (toy.path / "stages.jsonl").read_text().splitlines()] == [4]


def test_a_run_stopped_between_epochs_ends_it_as_one_that_goes_on(toy: Toy, tmp_path: Path):
    """The checkpoint has the next epoch opened, of which no step was made."""
    with toy:
        toy.steps(3)  # an epoch
        toy.save()
    end_stage(toy.path)
    other = Toy(tmp_path / "other")
    with toy, other:
        other.steps(2)
        end_stage(other.path)
        assert other.steps(10)[0] == "sums" and toy.steps(9) == ["programs"] * 9
        assert list(toy.ledger.dump()) == list(other.ledger.dump())


def test_a_stage_that_ends_by_hand_in_its_last_epoch_says_so(toy: Toy):
    """And what takes it back: a longer stage would not go on."""
    toy.configure([{"name": "sums", "domains": ["math"], "until": "epochs", "epochs": 2}])
    with toy:
        toy.steps(3)  # an epoch has as many
        end_stage(toy.path)
        assert toy.steps(9) == ["sums"]
        assert toy.line("sums")[-1] == "ended: by hand after 4 steps"
        with pytest.raises(UserError, match=r"add a stage .* or remove the last line of its stages\.jsonl"):
            end_stage(toy.path)


def test_a_run_taken_back_ends_it_at_the_same_step(toy: Toy):
    with toy:
        toy.steps(1)
        toy.save()
        toy.steps(2)
        end_stage(toy.path)
        first = toy.steps(6)
        expected = list(toy.ledger.dump())
    with toy:  # killed: goes on from the checkpoint of step 1
        assert toy.steps(8) == ["sums", "sums", *first]
        assert list(toy.ledger.dump()) == expected


def test_a_kill_before_the_request_is_removed_changes_nothing(toy: Toy):
    with toy:
        toy.save()
        toy.steps(2)
        end_stage(toy.path)
        asked = (toy.path / "stage.request").read_text()
        assert toy.steps(3) == ["sums", "programs", "programs"]
    (toy.path / "stage.request").write_text(asked)
    with toy:
        assert toy.steps(6) == ["sums"] * 3 + ["programs"] * 3
    assert pending(toy.path) is None


def test_a_stopped_run_ends_it_at_its_start(toy: Toy):
    """From where its checkpoint is: the steps after that, in the next stage already, come again."""
    with toy:
        toy.steps(6)
        toy.save()
        toy.steps(4)
        assert toy.line("programs")[2] == "2"
    assert "not running; 6 steps saved\n" in toy.shown()
    assert toy.line("programs")[-1] == "to come"
    assert end_stage(toy.path) == (f"{toy.path}: is not running; stage 'sums' ends when it is started again, after "
                                   "step 6; then stage 'programs' begins")
    assert "asked to end stage sums at" in toy.shown()
    with pytest.raises(UserError, match="was asked to end stage 'sums' at .* and has not taken that up yet"):
        end_stage(toy.path)
    with toy:
        assert toy.steps(20) == ["programs"] * 9


def test_a_request_that_comes_too_late_is_dropped(toy: Toy, caplog: pytest.LogCaptureFixture):
    with toy:
        toy.steps(7)
        end_stage(toy.path)
        assert toy.steps(2) == ["sums", "programs"]  # by its max_steps, at the same moment
        assert "asked to end stage sums, but the run is in stage programs: nothing is done" in caplog.text
        assert toy.line("sums")[-1] == "ended: 8 steps, its max_steps"
    assert pending(toy.path) is None and not (toy.path / "stages.jsonl").exists()


def test_a_request_that_comes_too_late_for_the_last_stage_is_dropped(toy: Toy, caplog: pytest.LogCaptureFixture):
    with toy:
        toy.steps(16)
        end_stage(toy.path)
        assert toy.steps(2) == ["programs"]  # its ninth step
        toy.save()
    assert "asked to end stage programs, but the run is over: nothing is done" in caplog.text
    assert pending(toy.path) is None and "asked to end" not in toy.shown()
    toy.configure([STAGES[0], STAGES[1] | {"steps": 12}])
    with toy:
        assert toy.steps(20) == ["programs"] * 3


def test_the_reason_of_an_end_is_whole_whatever_a_stage_is_called(toy: Toy):
    toy.configure([STAGES[0] | {"name": "one -> two"}, STAGES[1] | {"name": "two: programs", "steps": 1}])
    with toy:
        toy.steps(20)
        toy.save()
        assert toy.line("one -> two")[-1] == "ended: 8 steps, its max_steps"
        assert toy.line("two: programs")[-1] == "ended: 1 steps"
    toy.configure([STAGES[0] | {"name": "one -> two"}, STAGES[1] | {"name": "two: programs", "steps": 1},
                   STAGES[1] | {"name": "more"}])
    assert toy.line("two: programs")[-1] == "ended: 1 steps" and toy.line("more")[-1] == "until 9 steps"


def test_the_last_stage_ends_the_run_which_stays_ended(toy: Toy):
    with toy:
        toy.steps(9)
        assert end_stage(toy.path).endswith("it is the last one: the run then ends with its evaluation and the "
                                            "exported model")
        toy.steps(9)
        toy.save()
        with pytest.raises(UserError, match=r"its last stage, 'programs', has ended: by hand after 2 steps\. .*, "
                                            r"or remove the last line of its stages\.jsonl"):
            end_stage(toy.path)
    assert "finished; 10 steps saved\n" in toy.shown()
    toy.configure([STAGES[0], STAGES[1] | {"steps": 12}])
    with toy:
        assert toy.plan is None, "longer or not"
    (toy.path / "stages.jsonl").write_text("")
    with toy:
        assert toy.steps(20) == ["programs"] * 10


def test_a_finished_run_that_was_made_longer_goes_on(toy: Toy):
    with toy:
        toy.steps(20)
        toy.save()
        assert toy.line("programs")[-1] == "ended: 9 steps"
    toy.configure([STAGES[0], STAGES[1] | {"steps": 12}])
    with toy:
        toy.steps(1)
        assert toy.line("programs")[2:] == ["10", "3", "0.600", "until 12 steps"]
        assert end_stage(toy.path)


def test_the_current_stage_tells_what_it_lacks(toy: Toy):
    with toy:
        toy.steps(3)
        assert toy.line("sums")[2:] == ["3", "1", "0.200", "until plateau, not before 5 steps (8 steps at most)"]
        assert toy.line("programs")[2:] == ["0", "0", "", "to come"]
        toy.steps(3)
        assert toy.line("sums")[-1] == (
            "until plateau, less than +0.0100 (8 steps at most): reward grows by +0.5000 ± 0.0000 in 5 steps, with 95% "
            "confidence by less than +0.5000")
        toy.steps(3)
        assert toy.line("programs")[-1] == "until 9 steps"


def test_a_stage_that_waits_out_a_change_of_prompts_says_so(toy: Toy):
    toy.configure([STAGES[0] | {"cooldown": 6}, STAGES[1]])
    with toy:
        toy.steps(5)
        assert toy.line("sums")[-1] == (
            "until plateau, not before 6 steps with the same prompts, of which it has 5 (8 steps at most)")
        toy.steps(1)
        assert toy.line("sums")[-1].startswith("until plateau, less than +0.0100")


@pytest.mark.parametrize("arguments", [[], ["next"]])
def test_what_is_no_run_is_refused(tmp_path: Path, toy: Toy, arguments: list[str], capsys: pytest.CaptureFixture):
    assert cli.command(["stage", str(tmp_path), *arguments]) == 2
    assert f"{tmp_path}: not a run folder, there is no config.yaml in it" in capsys.readouterr().err
    assert cli.command(["stage", str(toy.path), *arguments]) == 2
    assert "there is no" in capsys.readouterr().err
    assert not list(tmp_path.rglob("stage.*"))


def test_the_command(toy: Toy, capsys: pytest.CaptureFixture):
    with toy:
        toy.steps(2)
        assert cli.command(["stage", str(toy.path)]) == 0
        assert "running; 2 steps\n" in capsys.readouterr().out
        assert cli.command(["stage", str(toy.path), "next"]) == 0
        assert "stage 'sums' ends after the step" in capsys.readouterr().out
        assert toy.steps(2) == ["sums", "programs"]


@pytest.mark.parametrize(("text", "message"), [
    ("{", "stages.jsonl:1: not valid JSON"),
    ('{"stage": "sums", "step": "4", "asked": "now"}\n', "stages.jsonl:1: expected stage, step, asked, found"),
])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "stages.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        ByHand(tmp_path)


@pytest.mark.parametrize("name", ["stages.jsonl", "stage.request"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: cannot be read: .*; make it readable for the run, or remove it"):
        ByHand(tmp_path).ends("sums", 1)
