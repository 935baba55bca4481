"""The command line alone: imports, messages, exit codes. Launches of many ranks are in tests/distributed."""

import json
import logging
import os
import subprocess
import sys
import types

import pytest

from srpo import __main__, cli
from srpo.errors import UserError

HF = {"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8,
      "hidden_size": 4, "vocab_size": 64}


@pytest.fixture(autouse=True)
def loggers():
    """Give the loggers back as they were: the command line sets them up for a whole process."""
    ours = [logging.getLogger(name) for name in ("srpo", "srpo_kernels")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in ours]
    yield
    for logger, (handlers, level, propagate) in zip(ours, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / "a.jsonl").touch()
    path = tmp_path / "c.yaml"
    path.write_text(f"run: {tmp_path}/run\nmodel: {{path: {tmp_path}}}\ndata: {{train: [{tmp_path}/a.jsonl]}}\n"
                    "rollout: {max_response_tokens: 64}\n"
                    "stages: [{name: math, domains: [math], until: steps, steps: 1}]\n")
    return str(path)


@pytest.fixture
def fake(monkeypatch):
    """Put functions in place of srpo.train's, so that no model is built."""
    def fake(**functions):
        monkeypatch.setitem(sys.modules, "srpo.train", types.SimpleNamespace(**functions))

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return fake


def heavy_modules_after(*argv: str) -> str:
    """Which of torch, pydantic, rich a command line has imported when it ends."""
    code = ("import sys\nfrom srpo import cli\ntry: cli.main(sys.argv[1:])\n"
            "finally: print('loaded', *sorted({'torch', 'pydantic', 'rich'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True).stdout
    return out.splitlines()[-1].removeprefix("loaded").strip()


@pytest.mark.parametrize("argv", ["--help", "train --help", "export --help", "doctor --help", "nonsense"])
def test_help_imports_nothing_heavy(argv):
    assert heavy_modules_after(*argv.split()) == ""


def test_settings_are_checked_before_torch_loads(config):
    assert heavy_modules_after("train", config, "batch.micro_batch=3") == "pydantic"


@pytest.mark.parametrize(("override", "key"), [
    ("data.train.0=none.jsonl", "data.train.0"), ("data.eval=[none.jsonl]", "data.eval.0"),
    ("warm_start={data: [none.jsonl], steps: 1}", "warm_start.data.0")])
def test_missing_data_are_named_before_torch_loads(config, capsys, override, key):
    assert heavy_modules_after("train", config, override) == "pydantic"
    assert cli.command(["train", config, override]) == 2
    assert f"error: {key} = 'none.jsonl': no such data file" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "why"), [(".", "Is a directory"), ("x" * 300, "File name too long")])
def test_unreadable_data_are_one_line(config, capsys, file, why):
    assert cli.command(["train", config, f"data.train=[{file}]"]) == 2
    assert capsys.readouterr().err == f"srpo: error: data.train.0 = {file!r}: cannot be read: {why}\n"


def test_the_data_of_a_warm_start_may_be_gone_after_it(config, fake, tmp_path):
    fake(train=lambda config: None)
    warm_start = "warm_start={data: [none.jsonl], steps: 1}"
    assert cli.command(["train", config, warm_start]) == 2
    (tmp_path / "run" / "warm").mkdir(parents=True)
    assert cli.command(["train", config, warm_start]) == 0


def test_a_cache_too_small_for_a_response_is_told_before_torch_loads(config, fake, capsys):
    """2 x 2 heads x 2 wide x 2 bytes x 2 layers: 32 bytes a token, of a prompt of 1,024 and a response of 64, in nine
    blocks of 128, beside one that vLLM keeps."""
    fake(train=lambda config: None)
    assert heavy_modules_after("train", config, "rollout.kv_cache_gib=3e-5") == "pydantic"
    assert cli.command(["train", config, "rollout.kv_cache_gib=3e-5"]) == 2
    assert capsys.readouterr().err == (
        "srpo: error: rollout.kv_cache_gib = 3e-05: holds 1,007 tokens, and the longest sequence has 1,088 "
        "(data.max_prompt_tokens + rollout.max_response_tokens), for which vLLM needs 3.9e-05\n")
    assert cli.command(["train", config, "rollout.kv_cache_gib=3.9e-5"]) == 0
    assert cli.command(["train", config, "rollout.kv_cache_gib=3.8e-5"]) == 2


def test_train_gets_the_checked_configuration(config, fake):
    seen = []
    fake(train=seen.append)
    assert cli.command(["train", config, "seed=7", "batch.prompts=16"]) == 0
    assert seen[0].seed == 7 and seen[0].batch.prompts == 16


def test_world_size_of_the_launch_is_checked(config, fake, monkeypatch, capsys):
    fake(train=lambda config: pytest.fail("was called"))
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.command(["train", config, "parallel.tensor=2"]) == 2
    assert capsys.readouterr().err == ("srpo: error: parallel.tensor x parallel.pipeline = 2: does not divide the "
                                       "launch's 3 ranks; nearest: 1\n")


def test_user_error_is_one_line_and_code_2(config, fake, capsys):
    def train(config):
        raise UserError("data.jsonl:3: field 'answer' is missing")

    fake(train=train)
    assert cli.command(["train", config]) == 2
    assert capsys.readouterr().err == "srpo: error: data.jsonl:3: field 'answer' is missing\n"


def test_missing_package_points_to_the_doctor(config, fake, capsys):
    def train(config):
        import no_such_package_here  # noqa: F401

    fake(train=train)
    assert cli.command(["train", config]) == 2
    assert capsys.readouterr().err == ("srpo: error: package 'no_such_package_here' is not installed; "
                                       "`srpo doctor` tells how to get it\n")


def test_defect_keeps_its_traceback_and_is_code_1(config, fake, capsys):
    def train(config):
        raise ZeroDivisionError("a defect")

    fake(train=train)
    assert cli.command(["train", config]) == 1
    err = capsys.readouterr().err
    assert err.startswith("srpo: rank 0 failed:\nTraceback") and err.endswith("ZeroDivisionError: a defect\n")


def test_reason_is_left_for_torchrun(config, fake, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert cli.command(["train", config, "batch.prompt=1"]) == 2
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert "batch.prompt: unknown key" in message["message"] and int(message["extraInfo"]["timestamp"]) > 0


@pytest.mark.parametrize(("rank", "shown"), [
    ("0", "srpo.train: told\nsrpo.train: wrong\n"),
    ("1", "srpo.train: wrong\n"),
])
def test_log_goes_to_stderr_and_only_rank_0_tells_all(config, fake, monkeypatch, capsys, rank, shown):
    def train(config):
        logging.getLogger("srpo.train").info("told")
        logging.getLogger("srpo.train").warning("wrong")

    fake(train=train)
    monkeypatch.setenv("RANK", rank)
    assert cli.command(["train", config]) == 0
    assert capsys.readouterr() == ("", shown)


def test_export(tmp_path, fake, monkeypatch):
    """Also where there is a GPU: it may be too small, or busy."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    seen = []
    fake(export=lambda run, directory: seen.append((run, directory, os.environ["CUDA_VISIBLE_DEVICES"])))
    (tmp_path / "config.yaml").write_text("run: x")
    assert cli.command(["export", str(tmp_path), str(tmp_path / "hf")]) == 0
    assert seen == [(tmp_path, tmp_path / "hf", "")]


def test_export_of_something_else_than_a_run(tmp_path, capsys):
    assert cli.command(["export", str(tmp_path), "hf"]) == 2
    assert capsys.readouterr().err == f"srpo: error: {tmp_path}: not a run folder, there is no config.yaml in it\n"


MUCH = """
import sys, types
from srpo import cli
def run(args):
    {body}
    return 0
cli.plan.run = run
cli.plan.add = lambda commands: commands.add_parser("plan").set_defaults(handler=run)
cli.main(["plan"])
"""


@pytest.mark.parametrize("body", [
    "print('x' * 1_000_000)",                                                   # fails while it is printed
    "print('x')",                                                               # when it is flushed at the end
    "from srpo.terminal import Terminal; Terminal().print('x ' * 1_000_000)",   # rich would exit with 1
    "raise cli.UserError(print('x') or 'beside it')",
])
def test_a_reader_that_leaves_ends_the_command_quietly(body):
    assert unread(MUCH.format(body=body)) == (141, "srpo: error: beside it\n" if "beside" in body else "")


def test_so_does_one_that_leaves_before_the_help():
    assert unread("from srpo import cli; cli.main(['--help'])") == (141, "")


def test_nobody_reads_stderr_either():
    code, _ = unread(MUCH.format(body="print('x' * 1_000_000)"), stderr=subprocess.STDOUT)
    assert code == 141


def test_another_broken_pipe_is_a_defect():
    done = subprocess.run([sys.executable, "-c", MUCH.format(body="raise BrokenPipeError('of a grader')")],
                          capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError: of a grader" in done.stderr


def unread(program: str, stderr: int = subprocess.PIPE) -> tuple[int, str]:
    """Exit code and stderr of a program whose stdout is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=stderr, text=True, env=buffered)
    finally:
        os.close(write)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["train"], ["export", "run"]])
def test_wrong_usage_is_code_2(argv):
    with pytest.raises(SystemExit) as stop:
        cli.command(argv)
    assert stop.value.code == 2


def test_module_entry_point_is_the_command_line():
    assert __main__.main is cli.main
