"""SRPO: two-staged history-resampling policy optimization on Megatron-Core and vLLM, in one process."""

__version__ = "0.1.0"
