"""The policy as a Megatron-Core model: Llama, Qwen2/2.5 and Qwen3, dense, from their Hugging Face config.

One layer spec on CUDA and CPU: Megatron's parallel linears, transformer block and pipeline; our RMSNorm, attention and
output. Every rank's parameters are laid out byte for byte as vLLM's at the same tensor-parallel size, so that
vLLM can alias them: q, k and v stacked flat ([Q; K; V], where Megatron interleaves them by key-value group), gate above
up, and the vocabulary padded to a multiple of 64.

Everything is packed: activations are [T, 1, H] for the T tokens of one micro-batch, whatever sequences they form. The
last stage returns final hidden states, not logits: the loss multiplies them by `output_weight()` itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from srpo.config import Parallel, hf_config
from srpo.errors import UserError
from srpo.megatron.attention import attention
from srpo.megatron.layout import head_dim, padded_vocab_size

# -- configuration --------------------------------------------------------------------------------------------------


def read_hf_config(path: str | Path) -> Any:
    """The transformers config of a Hugging Face directory. Raises UserError where we would compute another model."""
    hf_config(str(path))
    hf = AutoConfig.from_pretrained(path, local_files_only=True)
    file = Path(path) / "config.json"
    if hf.hidden_act != "silu":
        raise UserError(f"{file}: hidden_act = {hf.hidden_act!r} is not supported; silu is")
    for key in ("attention_bias", "mlp_bias"):
        if getattr(hf, key, False):
            raise UserError(f"{file}: {key} = true is not supported for {hf.model_type}")
    if "sliding_attention" in (getattr(hf, "layer_types", None) or ()):
        raise UserError(f"{file}: use_sliding_window = true is not supported; full attention is")
    rope_frequencies(hf, file)
    return hf


def shape(hf: Any) -> dict[str, Any]:
    """What a checkpoint and a model must agree in: the model's config.json may be edited in the rest."""
    names = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
    return {name: getattr(hf, name) for name in names} | {"head_dim": head_dim(hf)}


def rope_frequencies(hf: Any, file: str | Path = "config.json") -> torch.Tensor:
    """Inverse frequencies [D/2] float32 of the rotary embedding, by transformers' own functions.

    Raises UserError for kinds whose frequencies depend on the length or that scale the attention.
    """
    rope = hf.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim(hf), 2, dtype=torch.float32) / head_dim(hf))
    if kind not in ("linear", "llama3", "yarn"):
        raise UserError(f"{file}: rope_scaling.rope_type = {kind!r} is not supported; default, linear and llama3 are")
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](hf, None)
    if attention_factor != 1:
        raise UserError(
            f"{file}: rope_scaling.rope_type = {kind!r} scales attention by {attention_factor:.4g}, "
            "which is not supported; default, linear and llama3 are"
        )
    return frequencies.float()


def transformer_config(hf: Any, parallel: Parallel, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's settings for a Hugging Face config and a layout. Raises UserError when the layout cannot hold it."""
    if padded_vocab_size(hf) % parallel.tensor:
        raise UserError(
            f"parallel.tensor = {parallel.tensor}: does not divide the vocabulary padded to {padded_vocab_size(hf)}; "
            "powers of two up to 64 do"
        )
    recompute: dict[str, Any] = {}
    if parallel.recompute == "selective":
        # Not the attention: our kernels keep its inputs and outputs alone, 3 % of a layer's activations. Not the norms:
        # Megatron 0.16.1 recomputes them with Transformer Engine only.
        recompute = dict(recompute_granularity="selective", recompute_modules=["mlp"])
    elif parallel.recompute == "full":
        recompute = dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)

    def leave_uninitialized(weight: torch.Tensor) -> torch.Tensor:
        return weight  # every weight is loaded

    return TransformerConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=head_dim(hf),
        normalization="RMSNorm",
        layernorm_epsilon=hf.rms_norm_eps,
        qk_layernorm=hf.model_type == "qwen3",  # its gradient is then summed over the tensor ranks
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=hf.model_type == "qwen2",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method=leave_uninitialized,
        output_layer_init_method=leave_uninitialized,
        embedding_init_method=leave_uninitialized,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        sequence_parallel=parallel.sequence,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        gradient_accumulation_fusion=False,  # of apex
        cuda_graph_scope=[],  # the default is deprecated, and warns
        calculate_per_token_loss=True,  # losses and gradients of micro-batches and ranks are summed, never averaged
        variable_seq_lengths=True,  # micro-batches differ in tokens
        moe_token_dispatcher_type="alltoall",  # the default refuses variable_seq_lengths, dense or not
        **recompute,
    )


# -- modules --------------------------------------------------------------------------------------------------------


class RMSNorm(torch.nn.RMSNorm):
    """torch's, marked for sequence parallelism: its gradient is then partial and summed over the tensor ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class SelfAttention(MegatronModule):
    """Grouped-query attention with rotary embedding over packed sequences.

    `linear_qkv` holds this rank's query heads, then its key heads, then its value heads: vLLM's QKVParallelLinear.
    """

    def __init__(self, config: TransformerConfig, pg_collection: Any, **_: Any) -> None:
        super().__init__(config)
        self.tp_group = pg_collection.tp
        self.head_dim = config.kv_channels
        query, kv = config.num_attention_heads * self.head_dim, config.num_query_groups * self.head_dim
        self.sizes = [n // self.tp_group.size() for n in (query, kv, kv)]
        common = dict(config=config, init_method=config.init_method, tp_group=self.tp_group, skip_bias_add=False)
        self.linear_qkv = ColumnParallelLinear(
            config.hidden_size, query + 2 * kv, bias=config.add_qkv_bias, gather_output=False, **common
        )
        self.linear_proj = RowParallelLinear(query, config.hidden_size, bias=False, input_is_parallel=True, **common)
        if config.qk_layernorm:
            self.q_layernorm = RMSNorm(config, self.head_dim, config.layernorm_epsilon)
            self.k_layernorm = RMSNorm(config, self.head_dim, config.layernorm_epsilon)

    def forward(
        self, hidden: torch.Tensor, *, rotary_pos_emb: torch.Tensor, packed_seq_params: PackedSeqParams, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """hidden [T, 1, H] ([T/TP, 1, H] with sequence parallelism), rotary_pos_emb [2, T, 1, D]: cosines and sines."""
        mixed, _bias = self.linear_qkv(hidden)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in mixed.squeeze(1).split(self.sizes, dim=-1))
        if self.config.qk_layernorm:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        cos, sin = rotary_pos_emb
        cu_seqlens, max_seqlen = packed_seq_params.cu_seqlens_q, packed_seq_params.max_seqlen_q
        out = attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, cu_seqlens, max_seqlen)
        return self.linear_proj(out.flatten(1).unsqueeze(1))

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Sequence[Any] = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """q, k and v as separate tensors, so that a checkpoint loads at another tensor-parallel size."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for key in (f"{prefix}linear_qkv.weight", f"{prefix}linear_qkv.bias"):
            if key in state:
                state[key] = _split_for_checkpoint(state[key], self.sizes, sharded_offsets, self.tp_group)
        return state


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _split_for_checkpoint(
    stacked: ShardedTensor, sizes: list[int], sharded_offsets: Sequence[Any], tp_group: Any
) -> ShardedTensorFactory:
    lead = len(sharded_offsets)
    offsets = (*sharded_offsets, (lead, tp_group.rank(), tp_group.size()))

    def build(key: str, tensor: torch.Tensor, replica_id: Any, _flattened_range: slice | None) -> list[ShardedTensor]:
        return [
            ShardedTensor.from_rank_offsets(
                f"{key}.{name}", part, *offsets, replica_id=replica_id, prepend_axis_num=lead
            )
            for name, part in zip("qkv", tensor.split(sizes), strict=True)
        ]

    return ShardedTensorFactory(stacked.key, stacked.data, build, torch.cat, stacked.replica_id)


class OutputLayer(ColumnParallelLinear):
    """Holds the output weight [V/TP, H] and readies hidden states for it; the product is taken inside the fused loss.

    A module of its own because the wait for gathered parameters (parallel.overlap) hangs on a module's forward.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, 1, H] or this rank's [T/TP, 1, H] -> [T, H] on every tensor rank, their gradients summed."""
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(hidden, group=self.tp_group).squeeze(1)
        return copy_to_tensor_model_parallel_region(hidden, group=self.tp_group).squeeze(1)


class Policy(LanguageModule):
    """One pipeline stage of the model."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, config: TransformerConfig, hf: Any) -> None:
        super().__init__(config)
        self.pre_process, self.post_process = mpu.is_pipeline_first_stage(), mpu.is_pipeline_last_stage()
        self.share_embeddings_and_output_weights = hf.tie_word_embeddings
        self.vocab_size = hf.vocab_size
        self.register_buffer("inv_freq", rope_frequencies(hf), persistent=False)
        if self.pre_process:
            self.embedding = LanguageModelEmbedding(
                config, padded_vocab_size(hf), hf.max_position_embeddings, "none", tp_group=self.pg_collection.tp
            )
        self.decoder = TransformerBlock(
            config,
            TransformerBlockSubmodules([_layer_spec()] * get_num_layers_to_build(config), layer_norm=RMSNorm),
            pre_process=self.pre_process,
            post_process=self.post_process,
            pg_collection=self.pg_collection,
        )
        if self.post_process:
            self.output_layer = OutputLayer(
                config.hidden_size,
                padded_vocab_size(hf),
                config=config,
                init_method=config.init_method,
                bias=False,
                skip_weight_param_allocation=self.pre_process and hf.tie_word_embeddings,
                tp_group=self.pg_collection.tp,
            )
        if self.pre_process or self.post_process:
            self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, tensors: list[torch.Tensor]) -> None:
        """The previous stage's activations; called by the pipeline schedule."""
        self.decoder.set_input_tensor(tensors[0])

    def forward(self, tokens: torch.Tensor, position_ids: torch.Tensor, packed: PackedSeqParams) -> torch.Tensor:
        """tokens and position_ids [T] int64 -> activations [T, 1, H] for the next stage; on the last, hidden [T, H]."""
        hidden = self.embedding(tokens[None], None) if self.pre_process else None
        angles = position_ids[:, None].float() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        rotary = torch.stack((angles.cos(), angles.sin())).to(self.config.params_dtype)
        hidden = self.decoder(hidden, None, rotary_pos_emb=rotary, packed_seq_params=packed)
        return self.output_layer(hidden) if self.post_process else hidden

    def output_weight(self) -> torch.Tensor:
        """This rank's rows [V/TP, H] of the (perhaps tied) output matrix; last stage only."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight


def _layer_spec() -> ModuleSpec:
    spec = copy.deepcopy(get_gpt_layer_local_spec(normalization="RMSNorm"))
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.self_attention = ModuleSpec(module=SelfAttention)
    return spec
