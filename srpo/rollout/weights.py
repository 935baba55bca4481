"""vLLM's parameters are the trainer's storage; where the layouts differ a plan brings what is missing.

vLLM builds its model through a loader registered at its public extension point. The loader hands each parameter the
trainer's tensor that it equals (`param.data = storage`): an optimizer step is then visible to the next generation with
nothing moved. When vLLM has the trainer's layout that is every parameter. Otherwise some keep memory of their own, and
the reshard plan (reshard.py) fills it, at start and after each update.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from srpo.rollout.reshard import plan
from srpo.rollout.shares import Layout
from srpo.rollout.transport import Transport

if TYPE_CHECKING:
    from srpo.megatron.step import Trainer


class SharedWeights:
    """Ties one vLLM model to one trainer.

    plan: what is aliased and what moves, the same on all ranks of its block. aliased: whether vLLM has no weights of
    its own. aliased_bytes: bytes of vLLM parameters that are the trainer's memory. moved_bytes: bytes that this rank
    received in the last `sync`. summary: a line for the log. `load_format` is what to give vLLM so that it loads
    through this object.
    """

    load_format = "srpo"

    def __init__(self, trainer: Trainer):
        c, rank = trainer.config, dist.get_rank()
        self.trainer = trainer
        self.plan = plan(trainer.hf, Layout(c.parallel.tensor, c.parallel.pipeline),
                         Layout(c.rollout_tensor, c.rollout.pipeline), itemsize=trainer.dtype.itemsize, rank=rank,
                         node=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.rank = rank - self.plan.first
        self.aliased = [*map(len, self.plan.aliases)] == [*map(len, self.plan.shapes)]
        self.aliased_bytes, self.moved_bytes = self.plan.aliased[self.rank], 0
        self.summary = self.plan.summary(self.rank)
        register_model_loader(self.load_format)(_loader_for(self))

    def attach(self, model: nn.Module) -> None:
        """Give a freshly built vLLM model its weights. Raises RuntimeError where they do not fit the plan."""
        parameters = dict(model.named_parameters())
        found = {name: tuple(p.shape) for name, p in parameters.items()}
        if wrong := found.items() ^ self.plan.shapes[self.rank].items():
            raise RuntimeError(f"vLLM's parameters are not what the trainer's imply: {sorted(wrong)}")
        for name, parameter in parameters.items():
            _check(name, parameter, self.trainer)
        for name, storage in self._aliased():
            parameters[name].data = storage
        self.model = model
        self.addresses = {name: p.data_ptr() for name, p in parameters.items()}
        dist.barrier()  # NCCL's first point-to-point messages need a communicator, which all ranks make together
        self.transport = Transport(self.plan, self.trainer.shards.parameters, parameters)
        self.sync()

    def _aliased(self) -> Iterator[tuple[str, Tensor]]:
        """vLLM's aliased parameters and the trainer's storage that they are."""
        for name, (whole, row) in self.plan.aliases[self.rank].items():
            yield name, self.trainer.shards.parameters[whole].data[row : row + self.plan.shapes[self.rank][name][0]]

    def sync(self) -> None:
        """Bring vLLM up to date after an update. Every rank calls it, also when it has nothing to move."""
        self.trainer.wait_parameters()
        self.moved_bytes = self.transport.run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM may read on another stream

    def verify(self) -> None:
        """Raise RuntimeError unless vLLM's parameters are in the memory that `attach` gave them."""
        expected = self.addresses | {name: storage.data_ptr() for name, storage in self._aliased()}
        if moved := [n for n, p in self.model.named_parameters() if p.data_ptr() != expected[n]]:
            raise RuntimeError(f"vLLM no longer uses the memory that its weights were given: {', '.join(moved)}")


def _check(name: str, parameter: Tensor, trainer: Trainer) -> None:
    if (parameter.dtype, parameter.device) != (trainer.dtype, trainer.device):
        raise RuntimeError(f"{name}: vLLM wants {parameter.dtype} on {parameter.device}, the trainer holds "
                           f"{trainer.dtype} on {trainer.device}")


def _loader_for(weights: SharedWeights) -> type[BaseModelLoader]:
    class Loader(BaseModelLoader):
        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, model: nn.Module, model_config: Any) -> None:
            # On CPU vLLM would pack linear weights for its own kernels and drop the originals.
            for module in model.modules():
                module._cpu_skip_gemm_dispatch = True  # type: ignore[assignment]
            weights.attach(model)

        def load_model(self, *args: Any, **kwargs: Any) -> nn.Module:
            model = super().load_model(*args, **kwargs)
            for module in model.modules():  # the output head ignores the flag above and keeps a packed copy
                if hasattr(module, "cpu_linear"):
                    module.cpu_linear = _cpu_linear
            weights.verify()
            return model

    return Loader


def _cpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """On weights as they lie. Of oneDNN in float32, for which torch's own linear takes MKL, half as fast on AMD."""
    if weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)
