"""vLLM inside the training process, on the trainer's own weights. The only package that imports vllm."""

import logging
import os

# Before vLLM is imported: its engine in this process, and quiet.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # some modules log before vLLM sets its own
