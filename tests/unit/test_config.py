"""Every message of the configuration: what is refused, and that the line names the key, the value and the way out."""

import json
import re
from pathlib import Path

import pytest
import yaml

from srpo import check as checks
from srpo import config
from srpo.check import check
from srpo.errors import UserError

HF = {
    "model_type": "qwen2", "num_attention_heads": 12, "num_key_value_heads": 4, "num_hidden_layers": 6,
    "intermediate_size": 64, "max_position_embeddings": 2048, "vocab_size": 1000,
}


@pytest.fixture
def tree(tmp_path):
    """The smallest complete configuration, for a model directory that holds only config.json."""
    (tmp_path / "config.json").write_text(json.dumps(HF))
    return {
        "run": "runs/x",
        "model": {"path": str(tmp_path)},
        "data": {"train": ["train.jsonl"]},
        "batch": {"prompts": 8, "samples": 4, "micro_batch": 4},
        "rollout": {"max_response_tokens": 256},
        "stages": [{"name": "math", "domains": ["math"], "until": "steps", "steps": 2}],
    }


@pytest.fixture
def write(tmp_path):
    def write(tree: dict | str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return path

    return write


def message(write, tree, overrides=(), world_size: int | None = None) -> str:
    with pytest.raises(UserError) as error:
        loaded = config.load(write(tree), list(overrides))
        if world_size is not None:
            check(loaded, world_size)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_smallest_configuration_loads_with_the_paper_defaults(tree, write):
    c = config.load(write(tree))
    check(c, 1)
    assert (c.optimizer.lr, c.optimizer.beta1, c.optimizer.beta2) == (1e-6, 0.9, 0.95)
    assert c.algorithm.kl is None and c.algorithm.truncated == "zero" and c.resample.sampler == "history"


def test_dump_is_read_back_equal(tree, write):
    c = config.load(write(tree), ["reward.overlong.start=9", "optimizer.lr=3e-7"])
    assert config.load(write(config.dump(c))) == c


def test_overrides(tree, write):
    c = config.load(write(tree), ["optimizer.lr=1e-4", "stages.0.steps=7", "data.eval=[a.jsonl, b.jsonl]",
                                  "parallel.sequence=true", "algorithm.tis_cap=null", "run=a=b"])
    assert c.optimizer.lr == 1e-4 and c.stages[0].steps == 7 and c.data.eval == ["a.jsonl", "b.jsonl"]
    assert c.parallel.sequence and c.algorithm.tis_cap is None and c.run == "a=b"


@pytest.mark.parametrize(("override", "expected"), [
    ("lr", "override 'lr': write it as section.key=value"),
    ("=1", "override '=1': write it as section.key=value"),
    ("stages.3.steps=1", "override stages.3.steps: there is no '3' below list"),
    ("seed.x=1", "override seed.x: there is no 'x' below int"),
    ("data.train=[a", "override 'data.train=[a': the value is not valid YAML"),
])
def test_bad_override(tree, write, override, expected):
    tree["seed"] = 1
    assert message(write, tree, [override]).startswith(expected)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such configuration file"):
        config.load(tmp_path / "none.yaml")


def test_directory_instead_of_a_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read as text: .*directory"):
        config.load(tmp_path)


def test_not_utf8(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"run: \xff\n")
    with pytest.raises(UserError, match=r"c\.yaml: cannot be read as text"):
        config.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(("text", "expected"), [
    ("run: [1", "c.yaml: not valid YAML"),
    ("- a\n- b", "c.yaml: expected a mapping of sections, found list"),
    ("", "c.yaml: expected a mapping of sections, found NoneType"),
    ("run: a\nseed: 1\nrun: b", "duplicate key 'run'"),
    ("batch: {prompts: 1, prompts: 2}", "duplicate key 'prompts'"),
])
def test_bad_yaml(write, text, expected):
    assert expected in message(write, text)


@pytest.mark.parametrize(("override", "expected"), [
    ("optimizer.learning_rate=1", "optimizer.learning_rate: unknown key; valid keys: lr, warmup, beta1"),
    ("batch.prompt=1", "batch.prompt: unknown key; did you mean 'prompts'?"),
    ("optimiser.lr=1", "optimiser: unknown key; did you mean 'optimizer'?"),
    ("stages.0.step=1", "stages.0.step: unknown key; did you mean 'steps'?"),
    ("reward.overlong.begin=1", "reward.overlong.start: required, but not set"),
    ("reward.custom=[{function: a:b, wieght: 1}]", "reward.custom.0.wieght: unknown key; did you mean 'weight'?"),
    ("batch.prompts=many", "batch.prompts = 'many': input should be a valid integer"),
    ("batch.prompts=8.0", "batch.prompts = 8.0: input should be a valid integer"),
    ("batch.prompts=0", "batch.prompts = 0: input should be greater than or equal to 1"),
    ("algorithm.tis_cap=0.5", "algorithm.tis_cap = 0.5: input should be greater than or equal to 1"),
    ("rollout.temperature=0.005", "rollout.temperature = 0.005: input should be greater than or equal to 0.01"),
    ("batch.samples=1", "batch.samples = 1: input should be greater than or equal to 2"),
    ("optimizer.lr='1e-6'", "optimizer.lr = '1e-6': input should be a valid number"),
    ("optimizer.lr=.inf", "optimizer.lr = inf: input should be a finite number"),
    ("algorithm.entropy_coef=.nan", "algorithm.entropy_coef = nan: input should be a finite number"),
    ("parallel.sequence=1", "parallel.sequence = 1: input should be a valid boolean"),
    ("model.dtype=bfloat", "did you mean 'bfloat16'?"),
    ("algorithm.kl=k4", "algorithm.kl = 'k4': input should be 'k1', 'k2' or 'k3'"),
    ("stages.0.domains=[maths]", "stages.0.domains.0 = 'maths': input should be 'math', 'code' or 'other'; "
     "did you mean 'math'?"),
    ("stages.0.domains=[]", "stages.0.domains = []: "),
    ("data.train=a.jsonl", "data.train = 'a.jsonl': input should be a valid list; write [a.jsonl]"),
    ("batch=", "batch = None: is a section; its keys: prompts, samples, micro_batch"),
    ("reward.overlong=3", "reward.overlong = 3: is a section; its keys: start, penalty"),
    ("stages=[math]", "stages.0 = 'math': is a section; its keys: name, domains"),
    ("run=''", "run = '': string should have at least 1 character"),
])
def test_bad_value(tree, write, override, expected):
    text = message(write, tree, [override])
    assert expected in text and "c.yaml: " in text


@pytest.mark.parametrize("key", ["run", "model", "data", "stages"])
def test_required_section(tree, write, key):
    del tree[key]
    assert message(write, tree).endswith(f"c.yaml: {key}: required, but not set")


def test_configuration_cannot_be_changed_after_loading(tree, write):
    with pytest.raises(ValueError, match="frozen"):
        config.load(write(tree)).optimizer.lr = 1.0


@pytest.mark.parametrize(("overrides", "ranks", "expected"), [
    (["parallel.tensor=5"], 5, "parallel.tensor = 5: does not divide the model's 4 key-value heads; nearest: 4"),
    (["parallel.tensor=6"], 6, "parallel.tensor = 6: does not divide the model's 4 key-value heads; nearest: 4"),
    (["parallel.tensor=3"], 3, "parallel.tensor = 3: does not divide the model's 4 key-value heads; nearest: 2"),
    (["parallel.pipeline=4"], 4, "parallel.pipeline = 4: does not divide the model's 6 layers; nearest: 3"),
    (["parallel.sequence=true"], 1, "parallel.sequence = True: needs parallel.tensor > 1"),
    (["parallel.context=2"], 2, "parallel.context = 2: Megatron-Core 0.16.1 splits a sequence over ranks in "
     "Transformer Engine's attention only, which is not used here; set it to 1, and for long responses parallel."),
    (["parallel.tensor=2"], 3, "tensor x parallel.pipeline = 2: does not divide the launch's 3 ranks; nearest: 1"),
    (["parallel.tensor=4", "parallel.pipeline=2"], 8, "(vLLM's tensor-parallel size) = 8: does not divide the model's "
     "12 attention heads; nearest: 4"),
    (["parallel.tensor=2", "parallel.pipeline=3"], 6, "(vLLM's tensor-parallel size) = 6: does not divide the model's "
     "64 feed-forward width; nearest: 4"),
    (["rollout.tensor=8"], 8, "rollout.tensor = 8: does not divide the model's 12 attention heads; nearest: 4"),
    (["rollout.tensor=4"], 2, "rollout.tensor x rollout.pipeline = 4: does not divide the launch's 2 ranks; nearest"),
    (["rollout.tensor=2", "rollout.pipeline=4"], 8, "rollout.pipeline = 4: does not divide the model's 6 layers"),
    (["rollout.pipeline=2"], 2, "rollout.pipeline = 2: does not divide the 1 ranks that hold one copy of the trained "
     "model (or set rollout.tensor); nearest: 1"),
    (["batch.prompts=9"], 4, "batch.prompts = 9: must divide over 4 data-parallel replicas; nearest: 8"),
    (["batch.updates=3"], 1, "batch.updates = 3: does not divide the 32 responses of a replica"),
    (["batch.updates=3"], 1, "nearest: 2"),
    (["batch.micro_batch=3"], 1, "micro_batch = 3: does not divide the 32 responses of a replica and update; nearest"),
    (["batch.micro_batch=9"], 4, "does not divide the 8 responses of a replica and update; nearest: 8"),
    (["batch.micro_batch_tokens=1279"], 1, "batch.micro_batch_tokens = 1279: below data.max_prompt_tokens + "
     "rollout.max_response_tokens = 1280, which one response can take"),
    (["algorithm.old_logprobs=rollout"], 1, "algorithm.tis_cap: required with old_logprobs = 'rollout'"),
    (["rollout.oversample=1.25"], 1, "algorithm.tis_cap: required with rollout.oversample = 1.25, which trains on "
     "tokens of earlier policies; 2.0 is usual"),
    (["rollout.oversample=1.25", "algorithm.tis_cap=2.0", "resample.sampler=dynamic"], 1,
     "rollout.oversample = 1.25: does not go with resample.sampler = 'dynamic'"),
    (["resample.sampler=difficulty", "resample.low=0.95"], 1, "resample.low = 0.95: must not be above resample.high = "
     "0.9"),
    (["resample.low=0.2"], 1, "resample.low = 0.2: has no effect with sampler = 'history'; leave it unset, or set "
     "sampler to 'difficulty'"),
    (["resample.sampler=plain", "resample.drop_at=0.5"], 1, "resample.drop_at = 0.5: has no effect with sampler = "
     "'plain'; leave it unset, or set sampler to 'history' or 'no_positive'"),
    (["resample.max_rounds=3"], 1, "resample.max_rounds = 3: has no effect with sampler = 'history'"),
    (["resample.sampler=dynamic", "resample.epochs=2"], 1, "resample.epochs = 2: has no effect with sampler = "),
    (["resample.sampler=no_positive", "resample.epochs=2"], 1, "resample.epochs = 2: with sampler = 'no_positive' "),
    (["algorithm.kl_coef=0.1"], 1, "algorithm.kl_coef = 0.1: has no effect without algorithm.kl"),
    (["algorithm.truncated=shape"], 1, "reward.overlong: required with algorithm.truncated = 'shape'"),
    (["reward.overlong.start=256"], 1, "reward.overlong.start = 256: must be below rollout.max_response_tokens = 256"),
    (["rollout.max_response_tokens=1025"], 1, "exceeds the model's 2048 positions; at most 1024"),
    (["data.max_prompt_tokens=2048"], 1, "exceeds the model's 2048 positions; lower both"),
    (["reward.custom=[{function: 'a:b', role: correct}, {function: 'a:c', role: correct}]"], 1,
     "reward.custom.1.role = 'correct': reward.custom.0 has it too, and one function decides; set it to bonus"),
    (["reward.custom=[{function: 'a:b', role: correct, weight: 2}]"], 1,
     "reward.custom.0.weight = 2: has no effect with role = 'correct'; set reward.accuracy"),
    (["reward.custom=[{function: 'a:b'}]", "stages.0.domains=[math, other]"], 1,
     "stages.0.domains = ['math', 'other']: 'other' has no grader of ours; give a function in reward.custom the role"),
    (["eval.every=5"], 1, "eval.every = 5: has no effect without data.eval"),
    (["stages.0.until=epochs", "stages.0.steps=null"], 1, "stages.0.epochs: required with until: epochs"),
    (["stages.0.steps=null"], 1, "stages.0.steps: required with until: steps"),
    (["stages.0.until=plateau"], 1, "stages.0.steps = 2: has no effect with until: plateau"),
    (["stages.0.until=plateau", "stages.0.steps=null", "stages.0.max_steps=50"], 1,
     "stages.0.max_steps = 50: ends the stage before a plateau can be seen, after 50 steps; lower window"),
])
def test_impossible_combination(tree, write, overrides, ranks, expected, monkeypatch):
    monkeypatch.setattr(checks, "_gpu", lambda: True)
    assert expected in message(write, tree, overrides, ranks)


def test_stage_names_are_unique(tree, write):
    tree["stages"] *= 2
    assert "stages.1.name = 'math': used before" in message(write, tree, [], 1)


@pytest.mark.parametrize(("overrides", "ranks"), [
    (["parallel.tensor=4"], 8),
    (["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"], 4),
    (["batch.updates=2", "batch.micro_batch=1"], 8),
    (["batch.micro_batch_tokens=1280", "batch.micro_batch=3"], 1),
    (["algorithm.old_logprobs=rollout", "algorithm.tis_cap=2", "batch.updates=2"], 2),
    (["algorithm.tis_cap=1"], 1),
    (["parallel.tensor=4", "rollout.tensor=1"], 4),
    (["parallel.tensor=2", "rollout.tensor=4"], 4),
    (["parallel.tensor=2", "parallel.pipeline=2", "rollout.pipeline=2"], 4),
    (["algorithm.truncated=shape", "reward.overlong.start=200"], 1),
    (["stages.0.domains=[other]", "reward.custom=[{function: 'a:b', role: correct}, {function: 'a:c', weight: 2}]"], 1),
])
def test_possible_combination(tree, write, overrides, ranks, monkeypatch):
    monkeypatch.setattr(checks, "_gpu", lambda: True)
    check(config.load(write(tree), overrides), ranks)


def test_vllm_has_one_pipeline_stage_on_cpu(tree, write, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert message(write, tree, ["rollout.pipeline=2", "rollout.tensor=1"], 2) == (
        "rollout.pipeline = 2: vLLM generates with one pipeline stage only on CPU; leave it at 1 and set "
        "rollout.tensor")


@pytest.mark.parametrize(("overrides", "expected"), [
    ([], (4, 1)), (["rollout.pipeline=2"], (2, 2)), (["rollout.tensor=1"], (1, 1)),
    (["rollout.tensor=3", "rollout.pipeline=2"], (3, 2))])
def test_layout_of_the_rollout(tree, write, overrides, expected):
    c = config.load(write(tree), ["parallel.tensor=2", "parallel.pipeline=2", *overrides])
    assert (c.rollout_tensor, c.rollout.pipeline) == expected
    assert c.rollout_ranks == expected[0] * expected[1]


@pytest.mark.parametrize(("text", "expected"), [
    (None, "config.json does not exist; give a Hugging Face model directory"),
    ("{", "config.json: not valid JSON"),
    ("[]", "config.json: expected an object, found list"),
    (json.dumps(HF | {"model_type": "mamba"}), "model_type = 'mamba' is not supported; llama, qwen2 and qwen3 are"),
    (json.dumps(HF | {"num_hidden_layers": None}), "num_hidden_layers = None: must be a positive integer"),
    (json.dumps(HF | {"num_key_value_heads": "4"}), "num_key_value_heads = '4': must be a positive integer"),
    (b'{"a": "\xff"}', "config.json: not valid UTF-8: invalid start byte at byte 8"),
])
def test_bad_model(tree, write, tmp_path, text, expected):
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected in message(write, tree, [], 1)


def test_model_path_that_is_a_file_or_relative_to_elsewhere(tree, write, tmp_path):
    (tmp_path / "model.safetensors").touch()
    for path in (str(tmp_path / "model.safetensors"), "elsewhere/model"):
        text = message(write, tree, [f"model.path={path}"], 1)
        assert text.startswith(f"model.path = {path!r}: {path}/config.json does not exist; give a Hugging Face model")
        assert "(a relative path is taken from the directory that srpo is started in)" in text
        assert text.endswith("`hf download OWNER/NAME --local-dir DIR` makes one of a model on the hub")


@pytest.mark.parametrize(("shape", "tensor", "pipeline", "expected"), [
    ({"num_key_value_heads": 2}, 2, 2, None),                 # vLLM copies two heads to four ranks
    ({"num_attention_heads": 24, "num_key_value_heads": 6, "num_hidden_layers": 4}, 2, 2,
     "= 4: neither divides the model's 6 key-value heads nor is a multiple of them"),
    ({"num_attention_heads": 12, "num_key_value_heads": 6, "intermediate_size": 66}, 3, 1,
     "parallel.tensor = 3: does not divide the model's 1024 padded vocabulary entries; nearest: 2"),
])
def test_layout_against_the_model(tree, write, tmp_path, shape, tensor, pipeline, expected):
    (tmp_path / "config.json").write_text(json.dumps(HF | shape))
    overrides = [f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}"]
    if expected is None:
        check(config.load(write(tree), overrides), tensor * pipeline)
    else:
        assert expected in message(write, tree, overrides, tensor * pipeline)


def test_examples_of_the_readme(tmp_path):
    """Its configuration can run on 8 ranks, its problems are read, and its error message is the real one."""
    from srpo.data.schema import read_problems

    readme = (Path(config.__file__).parents[1] / "README.md").read_text()
    blocks = {kind: body for kind, body in re.findall(r"^```(\w+)\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)}
    (tmp_path / "c.yaml").write_text(blocks["yaml"])
    (tmp_path / "d.jsonl").write_text(blocks["json"])
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "qwen2", "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28,
        "intermediate_size": 18944, "max_position_embeddings": 131072}))
    check(config.load(tmp_path / "c.yaml", [f"model.path={tmp_path}"]), 8)
    assert [p.domain for p in read_problems([tmp_path / "d.jsonl"])] == ["math", "code"]
    (tmp_path / "config.json").write_text(json.dumps(HF))
    with pytest.raises(UserError) as error:
        check(config.load(tmp_path / "c.yaml", [f"model.path={tmp_path}", "parallel.tensor=3"]), 3)
    assert f"srpo: error: {error.value}\n" in readme
