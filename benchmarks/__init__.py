"""Speed, memory and error of srpo_kernels against the device's floors and against other implementations (README.md)."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler would print two lines for each use
