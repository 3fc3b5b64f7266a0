"""The GPT in MLX, for Apple silicon; on Linux it runs on MLX's CPU and CUDA backends."""

import sys

from gpt_common.machine.blas import load_fast_blas
from gpt_common.manual import asked

# Before anything here imports mlx: symbols bind to the BLAS that is loaded first. Help needs no BLAS and stays quick.
FAST_BLAS = None if asked(sys.argv) else load_fast_blas()
