"""The policy's trainer on Megatron-Core: the only package that imports it."""

import warnings

# Neither is used, on purpose.
warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex)", module="megatron")
