"""The benchmark's tables on a GPU: prints them, and says so plainly where there is none.

With CUDA it runs the sections whose work can be on the device, peers included where they see it (`pip install
'jax[cuda12]'` for OTT). Without, it runs their smallest sizes on the CPU, which measures nothing but shows that the
scripts work. Arguments are handed to bench/tables.py: `python examples/gpu_benchmark.py kernel` runs one section.
"""

import subprocess
import sys
from pathlib import Path

import torch

SECTIONS = ["kernel", "growth", "particles", "sphere", "large"]  # the solvers of `steps` and `flows` stay on the CPU
TABLES = Path(__file__).parents[1] / "bench" / "tables.py"

if torch.cuda.is_available():
    print(f"CUDA: {torch.cuda.get_device_name()}", flush=True)
    options = ["--device", "cuda"]
else:
    print("There is no CUDA device here: smallest sizes on the CPU instead, whose times mean nothing.", flush=True)
    options = ["--quick", "--no-peers"]
command = [sys.executable, str(TABLES), *options, *(sys.argv[1:] or SECTIONS)]
raise SystemExit(subprocess.run(command, check=False).returncode)
