"""One training step on Megatron-Core: forward, fused loss, backward, optimizer; on CUDA/NCCL and CPU/gloo alike.

Losses come normalized by the step's global count, so that micro-batches and data-parallel ranks simply add up; nothing
here averages. Parameters live in Megatron's contiguous buffers and never move after construction: vLLM aliases them.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from srpo_kernels import PolicyLossConfig, PolicyLossMetrics, linear_policy_loss, linear_token_logprobs

from srpo.batch import MicroBatch
from srpo.comm import join, waiting
from srpo.config import Config
from srpo.errors import UserError
from srpo.megatron import attention
from srpo.megatron.convert import Shards
from srpo.megatron.model import Policy, read_hf_config, transformer_config
from srpo.megatron.offload import Offload

logger = logging.getLogger(__name__)

Head = Callable[[torch.Tensor, MicroBatch], tuple[torch.Tensor, Any]]


def init_distributed(tensor: int, pipeline: int) -> None:
    """Form Megatron's groups, after `init_device` and comm.join if those have not happened.

    Rank order is tensor, pipeline, data: the ranks of one model replica are adjacent, replica = rank // (tensor x
    pipeline). Raises UserError with fewer GPUs than ranks.
    """
    init_device()
    if not dist.is_initialized():
        join()
    mpu.initialize_model_parallel(tensor, pipeline, order="tp-cp-ep-pp-dp", create_gloo_process_groups=False)


def init_device() -> None:
    """Take this rank's GPU, or make Megatron's CUDA names work on the CPU. Raises UserError as init_distributed."""
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_device())
    else:
        from srpo.megatron import cpu

        cpu.install()


def _local_device() -> int:
    """This rank's GPU; every rank of a machine finds out that there are too few."""
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    ranks = max(local + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if ranks > count:
        raise UserError(
            f"{ranks} ranks were started on this machine, and a rank needs a GPU of its own: there are {count}; "
            f"start them with --nproc-per-node {count}"
        )
    return local


class Trainer:
    """The policy and its optimizer on this rank.

    Weights are undefined until `load_hf` or a checkpoint's load.
    """

    def __init__(self, config: Config, hf_dir: str | Path) -> None:
        """Build for the model in `hf_dir` (its config.json; no weights are read). Raises UserError if unsupported."""
        self.config, self.hf_dir = config, Path(hf_dir)
        self.hf = read_hf_config(hf_dir)
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.model.dtype]
        self.device = torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
        self.is_last_stage = mpu.is_pipeline_last_stage()
        self.tp_group = mpu.get_tensor_model_parallel_group() if config.parallel.tensor > 1 else None
        attention.backend(self.device.type, self.dtype)  # choose, and log the choice, before the work begins

        self.megatron = transformer_config(self.hf, config.parallel, self.dtype)
        model_parallel_cuda_manual_seed(config.seed)
        self.model = Policy(self.megatron, self.hf).to(self.device)
        overlap = config.parallel.overlap
        self.ddp = DistributedDataParallel(
            self.megatron,
            DistributedDataParallelConfig(
                use_distributed_optimizer=True,
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=overlap,
                overlap_param_gather=overlap,
            ),
            self.model,
        )
        self.megatron.finalize_model_grads_func = _finalize
        if overlap:
            self.megatron.no_sync_func = self.ddp.no_sync
        self.optimizer = get_megatron_optimizer(
            _optimizer_config(config, self.dtype), [self.ddp], use_gloo_process_groups=False
        )
        (optimizer,) = self.optimizer.chained_optimizers
        self._offload = Offload(self.ddp, optimizer) if config.parallel.offload else None
        self.shards = Shards(self.model, self.hf)
        self._loss = policy_loss_config(config)
        self._reference: list[torch.Tensor] | None = None

    # -- weights ----------------------------------------------------------------------------------------------------

    def load_hf(self, path: str | Path) -> None:
        """Load the weights of a Hugging Face directory in place, each rank reading only its slices."""
        self.reload()
        self.shards.load(path)
        self.optimizer.reload_model_params()

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """This rank's parameters, layers counted from this stage's first. Their storage never moves."""
        return self.model.named_parameters()

    def export_hf(self, path: str | Path) -> None:
        """Write a Hugging Face directory that transformers and vLLM load; every rank calls it, rank 0 writes."""
        self.wait_parameters()
        self.shards.export(self.hf_dir, path)

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def wait_parameters(self) -> None:
        """Finish gathering the updated parameters (parallel.overlap); before anything but training reads them."""
        if self.config.parallel.overlap:
            self.ddp.start_param_sync(force_sync=True)

    def snapshot_reference(self) -> None:
        """Keep a copy of the current weights, in host memory, as the reference policy.

        To have it again after a resume, load the same Hugging Face directory, take the snapshot, then the checkpoint.
        """
        self._reference = [p.detach().to("cpu", copy=True) for p in self.model.parameters()]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the parameters hold the reference's values (at the same addresses). For `logprobs` only."""
        self.wait_parameters()
        self._swap_reference()
        try:
            yield
        finally:
            self._swap_reference()

    @torch.no_grad()
    def _swap_reference(self) -> None:
        assert self._reference is not None, "snapshot_reference() first"
        for parameter, other in zip(self.model.parameters(), self._reference, strict=True):
            current = parameter.to("cpu", copy=True)
            parameter.copy_(other)
            other.copy_(current)

    # -- memory -----------------------------------------------------------------------------------------------------

    def offload(self) -> None:
        """Free the device of gradients and optimizer state (parallel.offload) until a method that needs them is called.

        Asynchronous on CUDA, see srpo/megatron/offload.py; without parallel.offload nothing happens.
        """
        if self._offload:
            self._offload.offload()

    def reload(self) -> None:
        """Bring the optimizer's state back, for whoever reads its tensors himself; gradients are gone then."""
        if self._offload:
            self._offload.reload()

    # -- passes -----------------------------------------------------------------------------------------------------

    def logprobs(self, micro_batches: Sequence[MicroBatch]) -> list[torch.Tensor] | None:
        """Log-probs [N] float32 of each micro-batch's targets at the rollout temperature; None on earlier stages."""

        def head(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
            logprobs = linear_token_logprobs(
                hidden[batch.rows],
                self.model.output_weight(),
                batch.targets,
                temperature=self.config.rollout.temperature,
                mask=batch.mask,
                group=self.tp_group,
                vocab_size=self.hf.vocab_size,
            )
            return logprobs.new_zeros(()), logprobs

        with torch.no_grad():
            out = self.run(micro_batches, head, forward_only=True)
        return out if self.is_last_stage else None

    def forward_backward(
        self, micro_batches: Sequence[MicroBatch], normalizer: float, loss: PolicyLossConfig | None = None
    ) -> list[PolicyLossMetrics]:
        """Gradients of the policy loss over all micro-batches of all data-parallel ranks, replacing earlier ones.

        `normalizer` is the loss's denominator over the whole mini-batch on all ranks (batch.normalizer); `loss` the
        variant, by default the run's. Every rank passes equally many micro-batches. Returns one PolicyLossMetrics a
        micro-batch on the last stage, else [].
        """

        variant = loss or self._loss
        # Megatron learns from autograd alone that a parameter's gradient is ready for its overlapped reduction.
        direct = variant.ratio == "token" and not self.config.parallel.overlap
        if self._offload:
            self._offload.restore_gradients()
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self.run(micro_batches, self._loss_head(normalizer, variant, direct), forward_only=False)

    def forward(self, micro_batches: Sequence[MicroBatch], normalizer: float) -> list[PolicyLossMetrics]:
        """What `forward_backward` returns for the run's loss, at a third of its cost: no gradients."""
        with torch.no_grad():
            return self.run(micro_batches, self._loss_head(normalizer, self._loss, direct=False), forward_only=True)

    def _loss_head(self, normalizer: float, variant: PolicyLossConfig, direct: bool) -> Head:
        """`direct`: the output layer's gradient is added to Megatron's buffer rather than given to autograd."""

        def head(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, PolicyLossMetrics]:
            weight = self.model.output_weight()
            return linear_policy_loss(
                hidden[batch.rows],
                weight,
                batch.targets,
                batch.advantages,
                old_logprobs=batch.old_logprobs,
                ref_logprobs=batch.ref_logprobs,
                rollout_logprobs=batch.rollout_logprobs,
                mask=batch.mask,
                cu_seqlens=batch.cu_rows,
                config=variant,
                normalizer=normalizer,
                group=self.tp_group,
                vocab_size=self.hf.vocab_size,
                weight_grad=weight.main_grad if direct else None,
            )

        return head

    def run(self, micro_batches: Sequence[MicroBatch], head: Head, *, forward_only: bool, **schedule: Any) -> list[Any]:
        """Megatron's pipeline schedule over the micro-batches; `head` turns hidden states [T, H] into (loss, output).

        Returns the outputs on the last stage, else []. `schedule` goes to the schedule (tests: force_all_reduce).
        """

        def step(batches: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
            batch = next(batches)
            longest = int(batch.cu_seqlens.diff().max())
            batch = batch.to(self.device)
            packed = PackedSeqParams(
                qkv_format="thd", cu_seqlens_q=batch.cu_seqlens, cu_seqlens_kv=batch.cu_seqlens,
                max_seqlen_q=longest, max_seqlen_kv=longest,
            )  # fmt: skip

            def loss(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
                value, output = head(hidden, batch)
                return value, torch.zeros((), dtype=torch.int), output  # the token count is not used: see _finalize

            return model(batch.tokens, batch.position_ids, packed), loss

        self.ddp.train(not forward_only)
        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(micro_batches),
            model=[self.ddp],
            num_microbatches=len(micro_batches),
            seq_length=1,  # unused: variable_seq_lengths sends each micro-batch's own
            micro_batch_size=1,
            forward_only=forward_only,
            **schedule,
        )

    def optimizer_step(self, lr: float) -> float:
        """Clip the gradient, update at learning rate `lr`, and return the norm before clipping.

        Raises UserError, before any weight changes, when the norm is not finite.
        """
        self._set_hyperparameters(lr)
        (optimizer,) = self.optimizer.chained_optimizers
        optimizer.prepare_grads()
        norm = float(optimizer.clip_grad_norm(self.config.optimizer.clip_grad))
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient's norm is {norm}, nothing was updated; lower the learning rate (optimizer.lr, "
                "warm_start.lr), or raise optimizer.warmup, and go on from the last checkpoint"
            )
        if self._offload:
            self._offload.step()
        else:
            optimizer.step_with_ready_grads()
        return norm

    def reset_optimizer(self) -> None:
        """Forget the moments and the step count, as in a new Trainer: the next step is the optimizer's first."""
        self.reload()
        self.optimizer.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group.pop("step", None)  # Transformer Engine's and apex's Adam count here

    def _set_hyperparameters(self, lr: float) -> None:
        """At every step: a loaded checkpoint brings its own, and Megatron applies wd_mult only in its own scheduler."""
        o = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["betas"], group["eps"] = (o.beta1, o.beta2), o.eps
            group["weight_decay"] = o.weight_decay * group["wd_mult"]


def policy_loss_config(config: Config) -> PolicyLossConfig:
    """The loss's part of the `algorithm` section, at the rollout's temperature."""
    algorithm = config.algorithm
    return PolicyLossConfig(
        temperature=config.rollout.temperature,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
        aggregate=algorithm.aggregate,
        kl=algorithm.kl,
        kl_coef=algorithm.kl_coef,
        entropy_coef=algorithm.entropy_coef,
        tis_cap=algorithm.tis_cap,
    )


def _optimizer_config(config: Config, dtype: torch.dtype) -> OptimizerConfig:
    o = config.optimizer
    return OptimizerConfig(
        optimizer="adam",
        lr=o.lr,
        weight_decay=o.weight_decay,
        adam_beta1=o.beta1,
        adam_beta2=o.beta2,
        adam_eps=o.eps,
        clip_grad=o.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
        overlap_param_gather=config.parallel.overlap,
    )


def _finalize(model: list[torch.nn.Module], _token_count: torch.Tensor, **kwargs: Any) -> None:
    """Megatron's gradient reductions without its division by the token count: our losses are already normalized."""
    with waiting():
        finalize_model_grads(model, None, **kwargs)
