"""vLLM's parameters are the trainer's storage; where the layouts differ they are copied, and the run says so.

vLLM builds its model through a loader registered at its public extension point. The loader hands each parameter the
trainer's tensor of the same name (`param.data = storage`): an optimizer step is then visible to the next generation
with nothing moved. That needs the same tensor-parallel layout and one pipeline stage. Otherwise every full tensor is
gathered once and vLLM's own loader slices it, at start and after each update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

if TYPE_CHECKING:
    from srpo.megatron.step import Trainer

_TOP = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attention.linear_qkv": "self_attn.qkv_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "self_attention.linear_proj": "self_attn.o_proj",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc1": "mlp.gate_up_proj",
    "mlp.linear_fc2": "mlp.down_proj",
}


def vllm_name(name: str) -> str:
    """vLLM's name of a Megatron parameter (one pipeline stage: layer numbers are global)."""
    if not name.startswith("decoder.layers."):
        return _TOP[name]
    number, rest = name.removeprefix("decoder.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"model.layers.{number}.{_LAYER[module]}.{kind}"


class SharedWeights:
    """Ties one vLLM model to one trainer.

    aliased_bytes: bytes of vLLM parameters that are the trainer's memory. moved_bytes: bytes this rank's vLLM receives
    in each `sync`. `load_format` is what to give vLLM so that it loads through this object.
    """

    load_format = "srpo"

    def __init__(self, trainer: Trainer):
        c = trainer.config
        self.trainer = trainer
        self.aliased = c.parallel.pipeline == c.rollout.pipeline == 1 and c.parallel.tensor == c.rollout_tensor
        self.aliased_bytes = self.moved_bytes = 0
        self.summary = ""
        register_model_loader(self.load_format)(_loader_for(self))

    def attach(self, model: nn.Module) -> None:
        """Give a freshly built vLLM model its weights. Raises RuntimeError where an alias does not fit."""
        self.model = model
        parameters = dict(model.named_parameters())
        size = sum(p.nbytes for p in parameters.values())
        if self.aliased:
            storage = {vllm_name(n): p.data for n, p in self.trainer.named_parameters()}
            if missing := set(parameters) ^ set(storage):
                raise RuntimeError(f"vLLM and the trainer disagree on which parameters exist: {sorted(missing)}")
            for name, p in parameters.items():
                _alias(name, p, storage[name])
            self.aliased_bytes = size
        else:
            self.moved_bytes = size
            self._copy()
        aliased, moved = (len(parameters), 0) if self.aliased else (0, len(parameters))
        self.summary = (f"weights: aliased {aliased} tensors ({self.aliased_bytes / 2**30:.3f} GiB), "
                        f"moved {moved} tensors ({self.moved_bytes / 2**30:.3f} GiB a sync)")

    def sync(self) -> None:
        """Bring vLLM up to date after an update: nothing to do when aliased. Every rank calls it."""
        self.trainer.wait_parameters()
        if not self.aliased:
            self._copy()

    def _copy(self) -> None:
        self.model.load_weights(self.trainer.hf_tensors())  # type: ignore[operator]

    def verify(self) -> None:
        """Raise RuntimeError unless each aliased parameter still is the trainer's memory."""
        if self.aliased:
            storage = {vllm_name(n): p.data_ptr() for n, p in self.trainer.named_parameters()}
            moved = [n for n, p in self.model.named_parameters() if p.data_ptr() != storage[n]]
            if moved:
                raise RuntimeError(f"vLLM no longer shares the trainer's memory: {', '.join(moved)}")


def _alias(name: str, parameter: nn.Parameter, storage: Tensor) -> None:
    if parameter.shape != storage.shape or parameter.dtype != storage.dtype or parameter.device != storage.device:
        raise RuntimeError(f"{name}: vLLM wants {tuple(parameter.shape)} {parameter.dtype} on {parameter.device}, the "
                           f"trainer holds {tuple(storage.shape)} {storage.dtype} on {storage.device}")
    parameter.data = storage


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
                    module.cpu_linear = nn.functional.linear
            weights.verify()
            return model

    return Loader


