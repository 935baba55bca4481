"""`srpo plan` as it is called: verdicts and exit codes, layouts that are legal and fit, the ready configurations."""

import json
import shlex
from pathlib import Path

import pytest
from jobs import config, job

from srpo.check import check
from srpo.cli import command
from srpo.control.ledger import Ledger, RolloutRow
from srpo.plan import memory
from srpo.plan.hardware import GIB, gpu
from srpo.plan.job import Job
from srpo.plan.layouts import search
from srpo.plan.shape import Shape
from srpo.plan.speed import times
from srpo.plan.workload import Workload, workload

CONFIGS = Path(__file__).parents[3] / "configs"
SEVEN, THIRTY_TWO = CONFIGS / "qwen2.5-7b.yaml", CONFIGS / "qwen2.5-32b.yaml"
H100 = gpu("h100")


@pytest.fixture(scope="module")
def work() -> Workload:
    return workload(config(), None)


def plan(capsys, *arguments) -> tuple[int, str, str]:
    code = command(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(("file", "gpus"), [
    (SEVEN, 8), (SEVEN, 16), (SEVEN, 32), (SEVEN, 64), (THIRTY_TWO, 8), (THIRTY_TWO, 16), (THIRTY_TWO, 32),
    (THIRTY_TWO, 64)])
def test_ready_configurations_fit(capsys, file, gpus):
    code, out, _ = plan(capsys, file, "--gpus", gpus, "--json")
    found = json.loads(out)
    assert code == 0 and found["fits"] and found["verdict"] == ""
    own = found["configuration"]
    assert max(phase["total"] for phase in own["memory"].values()) + 2 * GIB <= 79.1 * GIB  # and not just so
    assert sum(own["host_memory"].values()) * 8 < 1024 * GIB  # of a node
    assert own["sync_bytes"] == {"fullest_rank": 0, "owned": 0}


@pytest.mark.parametrize("file", [SEVEN, THIRTY_TWO])
def test_ready_configurations_have_the_recipes_batch(file):
    from srpo.config import load

    made = load(file)
    assert (made.batch.prompts, made.batch.samples, made.batch.updates) == (256, 32, 1)
    assert (made.optimizer.lr, made.optimizer.beta1, made.optimizer.beta2) == (1e-6, 0.9, 0.95)
    assert made.algorithm.kl is None and made.algorithm.truncated == "zero" and made.resample.sampler == "history"
    assert [stage.domains for stage in made.stages] == [["math"], ["math", "code"]]


def test_32b_does_not_fit_eight_gpus_with_its_state_on_them(capsys):
    code, out, _ = plan(capsys, THIRTY_TWO, "parallel.offload=false", "rollout.kv_cache_gib=4", "--gpus", 8)
    assert code == 1
    assert "qwen2.5-32b.yaml on 8 H100 does not fit: update needs" in " ".join(out.splitlines()[:2])


def test_nothing_fits(capsys):
    code, out, _ = plan(capsys, THIRTY_TWO, "model.path=Qwen2.5-72B", "--gpus", 8)
    assert code == 1 and "does not fit" in out.splitlines()[0] and "No layout of these sizes fits" in out


def test_nothing_runs(capsys):
    """More GPUs would not help: no layout spreads 256 prompts over a multiple of three."""
    code, out, _ = plan(capsys, SEVEN, "--gpus", 48)
    assert code == 1 and ("Nor does another layout run; that of a whole model on each GPU cannot run: batch.prompts = "
                          "256: must divide over 48 data-parallel replicas; nearest: 240") in " ".join(out.split())


def test_settings_may_follow_the_options(capsys):
    """And count in the order in which they are given."""
    settings = "rollout.kv_cache_gib=8", "batch.prompts=8", "batch.prompts=7"
    code, out, _ = plan(capsys, SEVEN, settings[0], "--gpus", 8, *settings[1:])
    assert code == 1 and "cannot run: batch.prompts = 7" in out
    with pytest.raises(SystemExit):
        plan(capsys, SEVEN, "--gpus", 8, "batch.prompts=8", "--gpsu", 8)
    assert "unrecognized arguments: batch.prompts=8 --gpsu 8" in capsys.readouterr().err


def test_what_does_not_fit_says_where_and_by_how_much_and_what_would(capsys):
    code, out, _ = plan(capsys, SEVEN, "batch.micro_batch_tokens=65536", "--gpus", 8)
    own, fits = out.splitlines()[0], out.index("Layouts that fit")
    assert code == 1 and "does not fit: update needs" in own and "too much" in " ".join(out.splitlines()[:2])
    assert out.index("Memory of one GPU") < fits
    first, = (line for line in out[fits:].splitlines() if line.startswith("The first one: "))
    line = first.removeprefix("The first one: torchrun --nproc-per-node 8 -m srpo train ")
    config, given, *settings = shlex.split(line)
    assert (config, given) == (str(SEVEN), "batch.micro_batch_tokens=65536")
    assert plan(capsys, config, given, *settings, "--gpus", 8)[0] == 0


@pytest.mark.parametrize("gpus, launcher", [
    (1, "srpo train"), (16, "NNODES=2 RDZV_ENDPOINT=HOST:29400 launch/torchrun.sh")])
def test_the_command_to_copy_starts_all_ranks(capsys, tmp_path, gpus, launcher):
    model = dict(model_type="qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                 num_attention_heads=14, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True)
    (tmp_path / "config.json").write_text(json.dumps(model))
    settings = f"model.path={tmp_path}", "rollout.kv_cache_gib=1000"
    _, out, _ = plan(capsys, SEVEN, *settings, "--gpus", gpus)
    assert f"The first one: {launcher} {SEVEN} {' '.join(settings)} " in out


def test_what_cannot_run_says_so_and_what_could(capsys):
    code, out, _ = plan(capsys, SEVEN, "parallel.tensor=8", "--gpus", 8)
    assert code == 1 and "cannot run: parallel.tensor = 8: does not divide the model's 4 key-value heads" in " ".join(
        out.split())
    assert "Layouts that fit" in out


def test_vllm_pipelines_are_planned_for_on_a_machine_without_gpus(capsys):
    code, out, _ = plan(capsys, SEVEN, "rollout.pipeline=2", "rollout.tensor=1", "rollout.kv_cache_gib=40", "--gpus", 8)
    assert code == 0 and "A sync moves" in out


def test_a_cache_too_small_for_one_sequence(capsys):
    code, out, _ = plan(capsys, SEVEN, "rollout.kv_cache_gib=0.1", "--gpus", 8)
    assert code == 1 and "does not fit: rollout.kv_cache_gib = 0.1: holds 3,745 tokens" in " ".join(out.split())


@pytest.mark.parametrize(("arguments", "message"), [
    (["model.path=nowhere"], "model.path = 'nowhere': has no config.json"),
    (["batch.prompt=1"], "batch.prompt: unknown key; did you mean 'prompts'?"),
    (["--gpu", "abacus"], "--gpu abacus: not known; choose from h100, h200"),
    (["--ledger", "nowhere"], "nowhere: no such file or folder; give a run folder"),
    (["--gpus", "0"], "--gpus 0: must be positive"),
    (["--mean-tokens", "8193"], "--mean-tokens 8193: give 1 to rollout.max_response_tokens = 8192"),
    (["--mean-tokens", "0"], "--mean-tokens 0: give 1 to"),
    (["--mean-tokens", "9", "--ledger", "nowhere"], "--mean-tokens 9: has no effect with --ledger"),
])
def test_bad_input_is_one_line(capsys, arguments, message):
    code, out, err = plan(capsys, SEVEN, *arguments, *([] if "--gpus" in arguments else ["--gpus", "8"]))
    assert code == 2 and message in err and not out and len(err.splitlines()) == 1


@pytest.mark.parametrize(("model", "gpus"), [
    ("Qwen2.5-7B", 8), ("Qwen2.5-7B", 1024), ("Qwen2.5-32B", 64), ("Qwen2.5-32B", 1024), ("Qwen2.5-72B", 32),
    ("Qwen2.5-72B", 256), ("Qwen2.5-72B", 1024)])
def test_proposed_layouts_are_legal_fit_and_come_best_first(model, gpus, work):
    found = search(job(gpus, model=model), H100, work)
    assert found
    for candidate in found:
        check(candidate.job.config, gpus)
        assert all(phase.total <= 79.1 * GIB for phase in candidate.phases)
        cache = candidate.job.config.rollout.kv_cache_gib * GIB
        assert cache >= (candidate.job.longest + 1) * candidate.job.kv_bytes_per_token
        assert 0.1 < candidate.times.mfu < 0.7
    steps = [candidate.times.total for candidate in found]
    assert steps == sorted(steps)


def test_a_small_model_gets_a_small_cache(tmp_path, work):
    (tmp_path / "config.json").write_text(json.dumps(dict(
        model_type="qwen2", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64)))
    found = search(job(2, model=str(tmp_path)), H100, work)
    assert found and all(0 < candidate.job.config.rollout.kv_cache_gib < 4 for candidate in found)


def test_time_follows_the_cluster_and_the_layout(work):
    few, many = (times(job(n, parallel=dict(tensor=2, sequence=True)), H100, work) for n in (8, 64))
    assert many.update == pytest.approx(few.update / 8, rel=0.02)
    assert few.generation / 8 < many.generation < few.generation
    assert few.sync == few.offload == few.scoring == 0
    recomputed = times(job(8, parallel=dict(tensor=2, sequence=True, recompute="full")), H100, work)
    assert 1.2 * few.update < recomputed.update < 1.4 * few.update and recomputed.mfu < few.mfu
    moved = times(job(8, parallel=dict(tensor=2, offload=True), rollout=dict(tensor=4)), H100, work)
    assert moved.sync > 0 and moved.offload > 0
    scored = times(job(8, algorithm=dict(kl="k3")), H100, work)
    assert few.update / 3 < scored.scoring < few.update  # every response, where half of them are only read
    again = [times(job(8, parallel=dict(tensor=2, recompute=r)), H100, work).update
             for r in ("none", "selective", "full")]
    assert again == sorted(again)
    across, inside = (times(job(n, parallel=dict(tensor=2)), H100, work).reduction for n in (16, 8))
    assert across > inside > 0
    hidden = times(job(16, parallel=dict(tensor=2, overlap=True)), H100, work).reduction
    assert hidden == 0
    staged = times(job(8, parallel=dict(pipeline=4)), H100, work)
    assert staged.update > times(job(8), H100, work).update  # the pipeline fills and drains


def test_a_run_is_replayed(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(SEVEN.read_text() + "resample: {sampler: no_positive}\n")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for step, epoch in ((1, 1), (2, 1), (3, 2), (4, 2)):
        ledger.append([
            RolloutRow(epoch, step, "maths", f"p{2 * ((step - 1) % 2) + i // 2}", i % 2, "math", float(i < 2),
                       float(i < 2), 100 * (i + 1) + epoch, False) for i in range(4)])
    ledger.close()
    code, out, _ = plan(capsys, SEVEN, "resample.sampler=dynamic", "--gpus", 8, "--ledger", tmp_path)
    out = " ".join(out.split())
    assert code == 0 and "251.5 tokens │ ledger" in out and "the latest 8 of 8 groups of" in out
    assert "plain │ 0% │ 1.0 │ 256 │ 100% │" in out and "history │ 30% │ 1.0 │ 256 │ 100% │" in out
    assert "no_positive, the run's │ 30% │" in out and "dynamic, configured │ 0% │ 10.0 │" in out  # nothing is mixed
    assert "sampled with no_positive: what left before is not there" in out

    _, out, _ = plan(capsys, SEVEN, "resample.sampler=dynamic", "--gpus", 8, "--ledger", tmp_path, "--json")
    found = json.loads(out)
    assert found["ledger"]["groups"] == 8 and found["ledger"]["resample"]["sampler"] == "no_positive"
    assert [s["sampler"] for s in found["savings"]["samplers"]] == ["plain", "history", "no_positive", "dynamic"]


def test_over_sampling_is_planned_for():
    def generation(**rollout):
        made = config(rollout=dict(kv_cache_gib=50.0) | rollout, algorithm=dict(tis_cap=2.0), parallel=dict(tensor=2))
        work = workload(made, None)
        return times(Job(made, Shape.of(made), 64), H100, work).generation

    assert generation(oversample=1.25) < generation()


def test_assumptions_have_sources(capsys):
    _, out, _ = plan(capsys, SEVEN, "--gpus", 8)
    for line in ("3 TB/s", "measured", "798 TFLOP/s", "datasheet", "recipe", "guess", "published"):
        assert line in out


def test_longer_responses_take_longer(capsys):
    given = SEVEN, "rollout.max_response_tokens=32768", "batch.micro_batch_tokens=34816", "--gpus", 8, "--json"
    plans = [json.loads(plan(capsys, *given, *more)[1]) for more in ((), ("--mean-tokens", 10_000))]
    short, long = (made["configuration"]["seconds"] for made in plans)
    assert long["generation"] > 4 * short["generation"] and long["update"] > 3 * short["update"]
    assert plans[1]["assumptions"][0] == {"name": "mean response", "value": 10_000, "unit": "tokens", "source": "given",
                                          "note": "--mean-tokens"}


def test_host_memory_of_a_checkpoint():
    eight = memory.host(job(16, model="Qwen2.5-32B", parallel=dict(tensor=8)))
    assert eight == {"checkpoint snapshot": pytest.approx(14 * 32_763_876_352 / 8, rel=0.001)}
