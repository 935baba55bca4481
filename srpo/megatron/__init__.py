"""The policy's trainer on Megatron-Core: the only package that imports it."""
