"""TRL's GRPOTrainer on the data, model, lengths, batch and reward of one of our configurations.

    python -m benchmarks.bench_trl --config configs/smollm2.yaml model.dtype=bfloat16 --steps 100 --out trl.json

One process, vLLM in it and asleep in the update on a GPU; on CPU, where TRL's vLLM mode does not run, transformers
generates, which shows that this works and measures nothing. Beside `srpo train` of the same configuration: response
tokens a second of whole steps, and reward and accuracy of each step. The first step is not measured. TRL draws its
prompts in an order of its own.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from benchmarks.bench_step import QUICKSTART
from benchmarks.compare import write
from benchmarks.steps import name_of, parser, run_main
from benchmarks.timing import device_name
from srpo import config as configuration
from srpo.config import Config
from srpo.data.prompts import Tokenizer
from srpo.data.schema import read_problems
from srpo.rewards.compose import Graders, Response


class Steps(TrainerCallback):
    """Seconds, tokens, reward and accuracy of each step. As a reward function it grades as a run of ours does."""

    __name__ = "srpo"

    def __init__(self, config: Config) -> None:
        self.limit = config.rollout.max_response_tokens
        self.problems = read_problems(config.data.train)
        self.by_id = {problem.id: problem for problem in self.problems}
        self.graders = Graders(config.reward, self.limit, config.reward.workers or 1)
        self.steps: list[dict[str, float]] = []

    def __call__(self, completions: list[str], completion_ids: list[list[int]], id: list[str],
                 **_: Any) -> list[float]:
        graded = self.graders.grade([Response(self.by_id[i], text, len(tokens), len(tokens) >= self.limit)
                                     for i, text, tokens in zip(id, completions, completion_ids, strict=True)])
        self.tokens = sum(map(len, completion_ids))
        self.rewards = [g.reward for g in graded]
        self.accuracy = statistics.fmean(g.correct for g in graded)
        return self.rewards

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append({"seconds": time.perf_counter() - self.began, "tokens": self.tokens,
                           "reward": statistics.fmean(self.rewards), "accuracy": self.accuracy})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parser(__doc__, 100).parse_args(arguments)
    config = configuration.load(options.config or QUICKSTART, options.overrides)
    steps = Steps(config)
    with tempfile.TemporaryDirectory() as folder:
        train(config, steps, options.steps + 1, folder)
    steps.graders.close()
    measured = steps.steps[1:]
    cuda = torch.cuda.is_available()
    speed = sum(s["tokens"] for s in measured) / sum(s["seconds"] for s in measured)
    document = {"device": device_name(torch.device("cuda" if cuda else "cpu")), "threads": torch.get_num_threads(),
                "quick": False, "load": os.getloadavg()[0], "dtype": config.model.dtype, "vllm": cuda,
                "steps": measured, "tokens_per_s": speed,
                "peak_memory": torch.cuda.max_memory_allocated() if cuda else None,
                "rows": [{"case": f"step {name_of(options.config)}", "implementation": "TRL", "ratios": {}}]}
    print(f"TRL: {speed:,.0f} response tokens a second over {len(measured)} steps, accuracy "
          f"{measured[0]['accuracy']:.3f} -> {measured[-1]['accuracy']:.3f}", flush=True)
    if options.out is not None:
        write(document, options.out)
    return document


def train(config: Config, steps: Steps, count: int, folder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    path, batch, cuda = config.model.path, config.batch, torch.cuda.is_available()
    ours = Tokenizer(path, config.data.template, config.data.max_prompt_tokens)
    prompts = ours.prompts(steps.problems)
    dataset = Dataset.from_list([{"prompt": ours.decode(prompts[p.id].tolist()), "id": p.id} for p in steps.problems])
    responses = batch.prompts * batch.samples
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": count, "seed": config.seed, "report_to": "none", "save_strategy": "no",
        "per_device_train_batch_size": batch.micro_batch, "gradient_accumulation_steps": responses // batch.micro_batch,
        "num_generations": batch.samples, "max_completion_length": config.rollout.max_response_tokens,
        "temperature": config.rollout.temperature, "learning_rate": config.optimizer.lr,
        "lr_scheduler_type": "constant", "warmup_steps": config.optimizer.warmup, "adam_beta1": config.optimizer.beta1,
        "adam_beta2": config.optimizer.beta2, "max_grad_norm": config.optimizer.clip_grad, "beta": 0.0,
        "loss_type": "dapo", "epsilon": config.algorithm.clip_low, "epsilon_high": config.algorithm.clip_high,
        "mask_truncated_completions": config.algorithm.truncated == "zero", "use_cpu": not cuda,
        "bf16": config.model.dtype == "bfloat16", "gradient_checkpointing": False, "logging_strategy": "no",
        "disable_tqdm": True}
    if cuda:
        length = config.data.max_prompt_tokens + config.rollout.max_response_tokens
        settings |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": True,
                     "vllm_max_model_length": length}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    trainer = GRPOTrainer(model=model, reward_funcs=steps, args=GRPOConfig(**settings), train_dataset=dataset,
                          processing_class=AutoTokenizer.from_pretrained(path), callbacks=[steps])
    trainer.train()


if __name__ == "__main__":
    run_main(main, "benchmarks.bench_trl")
