"""vLLM inside the training process, on the trainer's own weights. The only package that imports vllm."""
