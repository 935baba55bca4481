"""What a command says while it works, on stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from srpo.errors import rank
from srpo.printable import visible


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is at that moment: a live display replaces it, to print above its bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(visible(self.format(record)), file=sys.stderr)


def start_log() -> None:
    """Rank 0 tells what it does, the others only what is wrong; libraries keep their own loggers. What torch,
    Megatron-Core and vLLM warn about is their use of each other; python -W or PYTHONWARNINGS brings it back, and
    TORCH_CPP_LOG_LEVEL what their C++ parts say."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(torch|megatron|vllm)\.")
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    for package in ("srpo", "srpo_kernels"):
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
        logger.propagate = False
