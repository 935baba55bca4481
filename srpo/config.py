"""Every setting of a run, typed and documented; the YAML file mirrors these classes section by section.

Loading checks names and types before anything heavy is imported (no torch here), srpo/check.py then combinations: a
run that cannot work stops with one line naming the key, the value, and the nearest valid choice.

Where the SRPO report gives a value it is the default (AdamW betas, learning rate, no KL, 32 samples). Clip range,
temperature, lengths, reward weights and plateau rules are not published: those defaults are ours.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srpo import yaml12
from srpo.errors import UserError

Style = Literal["think_answer", "boxed"]


class Section(BaseModel):
    """Base of all sections: exact types, no unknown keys, immutable once loaded."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False,
                              use_attribute_docstrings=True)


class Model(Section):
    path: str
    """Hugging Face directory: config.json, safetensors, tokenizer (Llama, Qwen2/2.5 or Qwen3, dense)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Parameter and activation type. Gradients and optimizer state are float32 in either case."""


class Parallel(Section):
    """Megatron-Core layout. Data parallelism is what is left: world size / (tensor x pipeline).

    vLLM has a layout of its own, see rollout.tensor. Where both are the same it shares the trainer's weights; else what
    a rank lacks is sent to it after each step.
    """

    tensor: int = Field(1, ge=1)
    """Tensor-parallel size; divides the attention heads, the key-value heads and the feed-forward width."""
    pipeline: int = Field(1, ge=1)
    """Pipeline stages; divides the number of layers."""
    sequence: bool = False
    """Sequence parallelism: norms and dropout split over the tensor ranks. Needs tensor > 1."""
    context: int = Field(1, ge=1)
    """Context-parallel size. Only 1 for now: Megatron-Core has it in Transformer Engine's attention alone."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward pass: none; selective: the feed-forward part, which is most of them; full:
    whole layers, of which only the inputs are kept."""
    overlap: bool = False
    """Overlap gradient reduction and parameter gathering with computation."""
    timeout: float = Field(30.0, gt=0)
    """Minutes of a collective before it counts as hung, and the run ends with the stacks of all ranks in RUN/stacks.
    Ranks wait in collectives for the slowest of them too: keep it above the time by which replicas' rollouts differ."""
    offload: bool = False
    """Optimizer state lives in host memory and passes through the GPU in pieces, once an optimizer step: frees 12 bytes
    (float32: 8) x weights of this rank / data-parallel ranks. Gradients are dropped while vLLM generates: 4 bytes x
    weights of this rank more for the KV cache."""

    @property
    def ranks(self) -> int:
        """Ranks that hold one copy of the trained model."""
        return self.tensor * self.pipeline


class Data(Section):
    train: list[str] = Field(min_length=1)
    """JSONL or Parquet files of problems; see srpo/data/schema.py."""
    eval: list[str] = []
    """Held-out problems, same format."""
    template: Literal["srpo", "chat", "plain"] = "srpo"
    """How a problem becomes a prompt: the R1-Zero conversation primed with <think>, the tokenizer's own chat
    template, or the prompt as it is."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """A longer prompt is never cut; see overlong."""
    overlong: Literal["error", "drop"] = "error"
    """What longer prompts are: an error at start-up that counts them, or left out, held-out ones too, and counted in
    the log and the ledger."""


class Batch(Section):
    prompts: int = Field(256, ge=1)
    """Prompts a step."""
    samples: int = Field(32, ge=2)
    """Responses a prompt: the group over which advantages are computed."""
    micro_batch: int = Field(8, ge=1)
    """Responses packed into one forward pass."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens packed into one forward pass, prompts included, whatever number of responses that is; unset: micro_batch
    responses. At least data.max_prompt_tokens + rollout.max_response_tokens."""
    updates: int = Field(1, ge=1)
    """Optimizer steps a batch. With one, the policy is exactly on-policy and no old log-probs are computed."""


class Rollout(Section):
    tensor: int | None = Field(None, ge=1)
    """vLLM's tensor-parallel size; unset: over as many ranks as hold one copy of the trained model. Divides the
    attention heads, the feed-forward width and the padded vocabulary; divides the key-value heads or is a multiple."""
    pipeline: int = Field(1, ge=1)
    """vLLM's pipeline stages; divides the number of layers. More than one needs GPUs."""
    max_response_tokens: int = Field(4096, ge=1)
    """A response that reaches this is truncated; see algorithm.truncated."""
    temperature: float = Field(1.0, ge=0.01)
    """Sampling temperature; the trainer's log-probs are taken at the same one. vLLM samples at none below 0.01."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Texts that end a response, beside the model's own stop tokens; they stay in it. Unset: </answer> with
    data.template: srpo, since base models go on with another question, and none with the others. []: none."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory of the KV cache a rank."""
    oversample: float = Field(1.0, ge=1, le=4)
    """Groups that a step begins, as a multiple of batch.prompts. Above 1 a vLLM replica stops when its part of
    batch.prompts groups is complete; the others, those with the longest responses, go on in the next step from where
    they are. The loss then weights each token against the policy that sampled it: needs algorithm.tis_cap."""
    max_sequences: int = Field(256, ge=1)
    """Sequences that vLLM decodes at once."""
    eager: bool = False
    """Disable CUDA graphs."""
    canary: float = Field(0.1, gt=0)
    """Largest mean of |trainer - rollout| log-probs over the tokens sampled for one prompt, before the run stops as
    having wrong weights. float32 runs agree to 1e-6; bfloat16 ones differ by rounding, 0.001 to 0.05."""


class Algorithm(Section):
    """The policy loss (srpo_kernels.PolicyLossConfig) and the advantages."""

    advantage: Literal["std", "none"] = "std"
    """Divide a group's centred rewards by their standard deviation, or not (Dr. GRPO)."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Ratio clipped below at 1 - clip_low."""
    clip_high: float = Field(0.28, gt=0)
    """Ratio clipped above at 1 + clip_high."""
    dual_clip: float | None = Field(None, gt=1)
    """Lower bound on the objective for negative advantages, as a multiple of the advantage."""
    aggregate: Literal["token", "sequence", "constant"] = "token"
    """Loss normalized by all response tokens, by each sequence's length then sequences, or by a constant length."""
    kl: Literal["k1", "k2", "k3"] | None = None
    """Estimator of the KL to the starting policy; unset: no reference model is kept."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL term."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""
    truncated: Literal["zero", "shape", "keep"] = "zero"
    """Responses cut off at the limit: zero advantage (the recipe), a length penalty instead (reward.overlong), or
    treated like any other."""
    old_logprobs: Literal["trainer", "rollout"] = "trainer"
    """The policy that the update is measured against. trainer: the clipped ratio to log-probs that the trainer computes
    before the first of `batch.updates` (skipped with one: the ratio is 1). rollout: none is computed and nothing is
    clipped; each token's policy gradient is weighted by min(exp(current - rollout), tis_cap) instead, `rollout` being
    what vLLM reported. That is REINFORCE with truncated importance sampling: with several updates the weight follows
    the current policy, and clip_low, clip_high and dual_clip have no effect."""
    tis_cap: float | None = Field(None, ge=1)
    """Cap of the truncated importance weight, which has no gradient. Required with old_logprobs: rollout, see there.
    With old_logprobs: trainer, if set, it also weights the clipped loss, by min(exp(old - rollout), tis_cap): `old` are
    the trainer's log-probs, and the weight corrects what vLLM and the trainer compute differently."""


class Optimizer(Section):
    """AdamW; norms and biases do not decay."""

    lr: float = Field(1e-6, gt=0)
    """Constant learning rate."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's mean."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the gradient's square."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices."""
    clip_grad: float = Field(1.0, gt=0)
    """Global gradient norm is clipped to this."""


class Overlong(Section):
    """Soft length penalty (DAPO): 0 up to `start` tokens, then linearly to -`penalty` at the limit."""

    start: int = Field(ge=1)
    """Response length at which the penalty begins."""
    penalty: float = Field(1.0, gt=0)
    """Penalty at rollout.max_response_tokens."""


class CustomReward(Section):
    function: str
    """`module:function`, called as function(problem, response) -> float."""
    weight: float = 1.0
    """Multiplies the returned value."""
    role: Literal["bonus", "correct"] = "bonus"
    """bonus: a term of its own, of every response. correct: how right a response to a problem of domain `other` is,
    from 0 to 1, as the graders of maths and code say it of theirs; reward.accuracy multiplies it."""


class Reward(Section):
    """reward = accuracy x correct + format x well-formed - language x mixing - overlong + custom."""

    accuracy: float = 1.0
    """Weight of a correct answer."""
    format: float = 0.1
    """Weight of a well-formed response."""
    style: Style | None = None
    """What well-formed means: <think>..</think><answer>..</answer>, or a last \\boxed{}. With think_answer the prompt
    is taken to end with <think>, and no answer counts before </think>. Unset: boxed with data.template: chat, else
    think_answer."""
    strict: bool = True
    """Each tag once and nothing around them, or one box alone; otherwise an answer after the thinking is enough."""
    language: float = Field(0.0, ge=0)
    """Weight of the penalty for mixing scripts or languages with the prompt's."""
    overlong: Overlong | None = None
    """Soft length penalty; required with algorithm.truncated: shape."""
    custom: list[CustomReward] = []
    """Own functions."""
    workers: int = Field(0, ge=0)
    """Grader processes a rank; 0: cores / ranks on this machine."""
    timeout: float = Field(10.0, gt=0)
    """Seconds of wall time a response may take to grade; then it scores zero and is counted."""
    fraction: bool = False
    """Score a program by the fraction of its test cases that pass, instead of all or nothing."""
    allow_unsafe_sandbox: bool = False
    """Run programs also where the host allows neither namespaces nor Landlock: with the files and rights of this
    account, see srpo/sandbox. `srpo doctor` says what the host allows."""


class Stage(Section):
    """A part of the curriculum. `until` says what ends it; `max_steps` always does."""

    name: str
    """Shown in metrics and the ledger."""
    domains: list[Literal["math", "code", "other"]] = Field(min_length=1)
    """Which problems take part."""
    difficulty: list[Literal["easy", "medium", "hard"]] | None = Field(None, min_length=1)
    """Only problems that `srpo prepare --model` found to be this hard; unset: all, measured or not."""
    until: Literal["plateau", "epochs", "steps"]
    """plateau: the smoothed reward stopped growing. epochs, steps: after that many."""
    epochs: int | None = Field(None, ge=1)
    """Length with until: epochs."""
    steps: int | None = Field(None, ge=1)
    """Length with until: steps."""
    window: int = Field(50, ge=5)
    """plateau: the latest steps whose rewards' trend is taken; never before that many steps of the stage."""
    min_gain: float = 0.01
    """plateau: reached when `window` more steps would, with 95 % confidence, raise the mean reward by less."""
    min_steps: int = Field(0, ge=0)
    """plateau: never before this many steps of the stage."""
    cooldown: int = Field(10, ge=0)
    """plateau: never before this many steps with the same prompts, which resampling changes between epochs."""
    max_steps: int | None = Field(None, ge=1)
    """Ends the stage whatever `until` says."""


class Resample(Section):
    """Which prompts an epoch has, and which groups a step trains on. A sampler's file in srpo/control says where it is
    from, and where it departs from that."""

    sampler: Literal["history", "plain", "no_positive", "dynamic", "difficulty"] = "history"
    """history: prompts that were mastered in an epoch leave after it (SRPO). plain: all of them, every epoch (GRPO).
    no_positive: prompts that are solved nearly always leave for good (ScaleRL). dynamic: a step goes on sampling until
    batch.prompts groups have both right and wrong responses (DAPO). difficulty: prompts outside a band of pass rates do
    not take part, from the first epoch on where the data have a `pass_rate`."""
    drop_at: float | None = Field(None, gt=0, le=1)
    """history, no_positive: prompts with at least this pass rate leave; unset: 1.0 and 0.9."""
    epochs: int | None = Field(None, ge=1)
    """history, difficulty: for how many epochs they stay away; unset: for good."""
    low: float = Field(0.1, ge=0, le=1)
    """difficulty: prompts with a lower pass rate do not take part."""
    high: float = Field(0.9, ge=0, le=1)
    """difficulty: prompts with a higher pass rate do not take part."""
    max_rounds: int = Field(10, ge=1)
    """dynamic: rounds of generation in a step; after that many it trains on what it has."""


class WarmStart(Section):
    """Supervised steps on worked solutions before RL (a cold start); the data rows carry a `response`."""

    data: list[str] = Field(min_length=1)
    """JSONL files with `prompt` and `response`."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch: int = Field(64, ge=1)
    """Sequences a step, in micro-batches like those of `batch`."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate: linear warm-up over a tenth of the steps, then cosine to zero."""


class Eval(Section):
    every: int = Field(0, ge=0)
    """Steps between evaluations; 0: only before the first step and after the last."""
    samples: int = Field(4, ge=1)
    """k of avg@k."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of evaluation."""


class Checkpoint(Section):
    every: int = Field(20, ge=0)
    """Steps between checkpoints; 0: only the two that there always are, before the first step and after the last."""
    minutes: float | None = Field(None, gt=0)
    """Also after the step that ends this long after the last checkpoint."""
    keep: int = Field(2, ge=1)
    """Complete checkpoints kept."""


class Logging(Section):
    tensorboard: bool = True
    """Write TensorBoard events to RUN/tb."""
    wandb: str | None = None
    """Project name; needs `pip install wandb`."""
    responses: int = Field(256, ge=0)
    """How many of a step's responses, drawn at random, are stored in RUN/samples for `srpo analyze` and `srpo report`;
    0: none."""


class Config(Section):
    run: str = Field(min_length=1)
    """Run folder; an existing one is resumed."""
    seed: int = Field(1, ge=0)
    """Of everything random."""
    model: Model
    parallel: Parallel = Parallel()
    data: Data
    batch: Batch = Batch()
    rollout: Rollout = Rollout()
    algorithm: Algorithm = Algorithm()
    optimizer: Optimizer = Optimizer()
    reward: Reward = Reward()
    stages: list[Stage] = Field(min_length=1)
    resample: Resample = Resample()
    warm_start: WarmStart | None = None
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()

    @property
    def rollout_tensor(self) -> int:
        """vLLM's tensor-parallel size, also when it is left to us."""
        return self.rollout.tensor or max(1, self.parallel.ranks // self.rollout.pipeline)

    @property
    def rollout_ranks(self) -> int:
        """Ranks of one vLLM replica."""
        return self.rollout_tensor * self.rollout.pipeline


def answer_style(style: Style | None, template: str) -> Style:
    """reward.style, also when it is left to the template."""
    return style or ("boxed" if template == "chat" else "think_answer")


def stop_strings(stop: list[str] | None, template: str) -> list[str]:
    """rollout.stop, also when it is left to the template."""
    return stop if stop is not None else ["</answer>"] if template == "srpo" else []


# -- loading --------------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, and validate every field.

    Raises UserError naming the file and the key. Combinations are checked by srpo.check, which needs the world size.
    """
    path = Path(path)
    tree = yaml12.read(path, "no such configuration file", "a mapping of sections")
    for item in overrides or []:
        _override(tree, item)
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise UserError(f"{path}: {_explain(e.errors()[0])}") from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def flat(tree: Any, key: str = "") -> dict[str, str]:
    """Settings of a configuration's tree by dotted key (`stages.0.steps`), as they read in Python."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = dict(enumerate(tree))
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in flat(value, f"{key}.{name}".lstrip(".")).items()}
    return {key: repr(tree)}


def _override(tree: dict[str, Any], item: str) -> None:
    key, sep, value = item.partition("=")
    if not sep or not key:
        raise UserError(f"override {item!r}: write it as section.key=value")
    *parents, last = key.split(".")
    node: Any = tree
    for p in parents:
        node = node.setdefault(p, {}) if isinstance(node, dict) else _index(node, p, key)
    try:
        parsed = yaml12.parse(value)
    except yaml.YAMLError as e:
        raise UserError(f"override {item!r}: the value is not valid YAML: {' '.join(str(e).split())}") from None
    if isinstance(node, dict):
        node[last] = parsed
    else:
        _index(node, last, key)
        node[int(last)] = parsed


def _index(node: Any, part: str, key: str) -> Any:
    if not isinstance(node, list) or not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override {key}: there is no {part!r} below {type(node).__name__}")
    return node[int(part)]


def _explain(error: Any) -> str:
    """One line for one pydantic error: the key, the value, the nearest valid choice."""
    key = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        fields = _fields_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
        return f"{key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{key}: required, but not set"
    if error["type"] == "model_type":
        return f"{key} = {error['input']!r}: is a section; its keys: {', '.join(_fields_at(error['loc']))}"
    message = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "list_type" and isinstance(error["input"], str):
        message += f"; write [{error['input']}]"
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        near = difflib.get_close_matches(str(error["input"]), choices, n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    return f"{key} = {error['input']!r}: {message}"


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    cls: Any = Config
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = cls.model_fields[part].annotation
        found = [a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")]
        cls = found[0]
    return list(cls.model_fields)


def hf_config(model: str) -> dict[str, Any]:
    """config.json of a Hugging Face directory. Raises UserError when it is missing, malformed, or not supported."""
    file = Path(model) / "config.json"
    try:
        hf = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"model.path = {model!r}: {file} does not exist; give a Hugging Face model directory (a "
                        "relative path is taken from the directory that srpo is started in). `hf download OWNER/NAME "
                        "--local-dir DIR` makes one of a model on the hub") from None
    except OSError as e:
        raise UserError(f"model.path = {model!r}: {file} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: not valid UTF-8: {e.reason} at byte {e.start + 1}") from None
    except json.JSONDecodeError as e:
        raise UserError(f"{file}: not valid JSON: {e}") from None
    if not isinstance(hf, dict):
        raise UserError(f"{file}: expected an object, found {type(hf).__name__}")
    if hf.get("model_type") not in ("llama", "qwen2", "qwen3"):
        raise UserError(f"{file}: model_type = {hf.get('model_type')!r} is not supported; llama, qwen2 and qwen3 are")
    needed = ("num_attention_heads", "num_hidden_layers", "intermediate_size")
    optional = ("num_key_value_heads", "vocab_size", "max_position_embeddings")
    for key in (*needed, *(k for k in optional if hf.get(k) is not None)):
        if not isinstance(hf.get(key), int) or hf[key] < 1:
            raise UserError(f"{file}: {key} = {hf.get(key)!r}: must be a positive integer")
    return hf
