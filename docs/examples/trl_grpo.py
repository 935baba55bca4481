"""TRL's GRPOTrainer with the loss of srpo_kernels: hidden states to loss, without the [tokens, vocabulary] logits.

    python docs/examples/trl_grpo.py [--steps 100]

Needs trl 1.16. `KernelGRPOTrainer` is the part to copy. The rest compares it with TRL's own loss on one batch, for each
loss that it takes over, and trains a tiny model from random weights on CPU: to repeat the digit of its prompt.
"""

from __future__ import annotations

import argparse
import functools
import tempfile

import torch
import torch.nn.functional as F
from datasets import Dataset
from srpo_kernels import PolicyLossConfig, linear_policy_loss
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

AGGREGATE = {"dapo": "token", "bnpo": "token", "cispo": "token", "grpo": "sequence", "dr_grpo": "constant"}
LOGIT_SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class KernelGRPOTrainer(GRPOTrainer):
    """GRPOTrainer for dense text models whose logits are hidden @ lm_head.weight.T."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        model, text = self.model, self.model.config.get_text_config()
        refused = {
            f"loss_type={self.loss_type}": self.loss_type not in AGGREGATE,
            "top_entropy_quantile": self.top_entropy_quantile < 1,
            "off_policy_mask_threshold": self.off_policy_mask_threshold is not None,
            "entropy_coef": self._entropy_bonus_enabled,
            "router_aux_loss_coef": self.aux_loss_enabled,
            "use_bias_correction_kl": self.beta != 0 and self.args.use_bias_correction_kl,
            "cast_lm_head_to_fp32": self.args.cast_lm_head_to_fp32,
            "an output layer with a bias": model.get_output_embeddings().bias is not None,
            "scaled or capped logits": any(getattr(text, name, None) not in (None, 1) for name in LOGIT_SCALES),
            "images": self._is_vlm,
        }
        if any(refused.values()):
            raise ValueError(f"KernelGRPOTrainer does not take {[name for name, given in refused.items() if given]}")
        forward = model.forward

        @functools.wraps(forward)  # inside the model's forward pass, which is where DistributedDataParallel looks
        def forward_or_loss(*args, policy_loss=None, **kwargs):
            if policy_loss is None:
                return forward(*args, **kwargs)
            hidden = model.base_model(*args, use_cache=False, **kwargs).last_hidden_state
            return policy_loss(hidden, model.get_output_embeddings().weight)

        model.forward = forward_or_loss

    def _compute_loss(self, model, inputs):
        tokens, mask = inputs["completion_ids"], inputs["completion_mask"] * inputs.get("tool_mask", 1)
        kept, width = mask.bool(), tokens.size(1)  # only rows of response tokens are computed, packed
        advantages = inputs["advantages"]
        advantages = (advantages[:, None] if advantages.dim() == 1 else advantages).expand(mask.shape)
        # TRL's weights for vLLM's log-probs: what multiplies the policy term may as well multiply the advantage.
        advantages = advantages * inputs.get("importance_sampling_ratio", 1)
        old, ref = (inputs[name][kept] if name in inputs else None
                    for name in ("old_per_token_logps", "ref_per_token_logps"))

        def policy_loss(hidden, weight):
            return linear_policy_loss(
                hidden[:, -width - 1 : -1][kept], weight, tokens[kept], advantages[kept], old_logprobs=old,
                ref_logprobs=ref, cu_seqlens=F.pad(mask.sum(1).cumsum(0), (1, 0)), config=self._loss_config(),
                normalizer=self._normalizer(inputs, mask))

        input_ids = torch.cat([inputs["prompt_ids"], tokens], 1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with self.accelerator.autocast():
            loss, metrics = model(input_ids=input_ids, attention_mask=attention_mask, policy_loss=policy_loss)
        sums = torch.stack([metrics.tokens, metrics.entropy_sum, metrics.kl, metrics.clipped])
        count, *sums = self.accelerator.reduce(sums, reduction="sum").tolist()
        for name, value in zip(("entropy", "kl", "clip_ratio/region_mean"), sums, strict=True):
            if name != "kl" or self.beta:
                self._metrics["train" if self.model.training else "eval"][name].append(value / max(count, 1))
        return loss

    def _loss_config(self) -> PolicyLossConfig:
        cispo = self.loss_type == "cispo"  # whose epsilon_high TRL takes as the bound itself
        return PolicyLossConfig(
            objective="cispo" if cispo else "clip", clip_low=1.0 if cispo else self.epsilon_low,
            clip_high=self.epsilon_high - cispo, dual_clip=None if cispo else self.args.delta,
            ratio=self.importance_sampling_level, aggregate=AGGREGATE[self.loss_type],
            kl="k3" if self.beta else None, kl_coef=self.beta, temperature=self.temperature)

    def _normalizer(self, inputs, mask):
        """TRL's denominators, with which micro-batches and ranks add up."""
        micro_batches = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.loss_type in ("dapo", "cispo"):
            share = micro_batches / self.args.steps_per_generation if self.model.training else 1
            return inputs["num_items_in_batch"].clamp(min=1) * share / self.accelerator.num_processes
        if self.loss_type == "bnpo":
            return mask.sum().clamp(min=1) * micro_batches
        return len(mask) * (self.max_completion_length if self.loss_type == "dr_grpo" else 1) * micro_batches


CASES = [{"loss_type": name} for name in ("dapo", "grpo", "dr_grpo", "bnpo")] + [
    {"loss_type": "dapo", "beta": 0.1}, {"loss_type": "cispo", "epsilon_high": 1.3},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.02, "epsilon_high": 0.02}]


def compare(trainer: KernelGRPOTrainer) -> None:
    """Loss and gradient of a batch by TRL and by us. Old and reference log-probs are moved, so that ratios clip."""
    trainer.current_gradient_accumulation_steps = 1  # as train() sets it
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    batch["advantages"] = torch.randn(len(batch["advantages"]))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        width = batch["completion_ids"].size(1)
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        batch[name] = logprobs + 0.3 * torch.randn_like(logprobs)
    for case in CASES:
        before = {name: getattr(trainer, name) for name in case}
        vars(trainer).update(case)
        results = []
        for compute in (GRPOTrainer._compute_loss, KernelGRPOTrainer._compute_loss):
            trainer.model.zero_grad()
            loss = compute(trainer, trainer.model, batch)
            loss.backward()
            results.append((loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])))
        vars(trainer).update(before)
        (theirs, their_grad), (ours, our_grad) = results
        difference = ((our_grad - their_grad).norm() / their_grad.norm()).item()
        print(f"loss {ours:+.6f}, TRL's {theirs:+.6f}; gradients differ by {difference:.1e}", case)
        assert abs(ours - theirs) < 1e-5 and difference < 1e-4
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()


def repeats(prompts: list[str], completions: list[str], **_) -> list[float]:
    """Share of the completion that is the prompt's digit."""
    return [text.split().count(prompt) / 8 for prompt, text in zip(prompts, completions, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*"0123456789", "<pad>", "<eos>"])}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=11, pad_token_id=10, bos_token_id=None))
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder, use_cpu=True, bf16=False, max_steps=steps, learning_rate=3e-3, lr_scheduler_type="constant",
            per_device_train_batch_size=80, num_generations=8, num_iterations=2, max_completion_length=8,
            use_bias_correction_kl=False, logging_steps=10, report_to="none", save_strategy="no", disable_tqdm=True)
        dataset = Dataset.from_dict({"prompt": list("0123456789") * 100})
        trainer = KernelGRPOTrainer(model, repeats, config, train_dataset=dataset, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        compare(trainer)
        trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    print("reward, means of 10 steps:", *(f"{reward:.2f}" for reward in rewards))
    assert rewards[-1] > rewards[0] + 0.1, "the reward did not rise"


if __name__ == "__main__":
    main()
