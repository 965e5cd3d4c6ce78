"""The benchmark's tables on a GPU: prints them, and says so plainly where there is none.

With CUDA it runs the sections whose work can be on the device, peers included where they see it (`pip install
'jax[cuda12]'` for OTT). Without, it runs their smallest sizes on the CPU, which measures nothing but shows that the
scripts work. Arguments are handed to bench/tables.py: `python examples/gpu_benchmark.py kernel` runs one section,
`--record` writes bench/RESULTS-cuda.md.
"""

import subprocess
import sys
from pathlib import Path

import torch

SECTIONS = ["growth", "large", "particles", "sphere", "kernel"]  # the solvers of `steps` and `flows` stay on the CPU
TABLES = Path(__file__).parents[1] / "bench" / "tables.py"

asked = sys.argv[1:]
if torch.cuda.is_available():
    print(f"CUDA: {torch.cuda.get_device_name()}", flush=True)
    options = ["--device", "cuda"]
else:
    print("There is no CUDA device here: smallest sizes on the CPU instead, whose times mean nothing.", flush=True)
    options = ["--quick", "--no-peers"]
sections = [] if any(word in SECTIONS for word in asked) else SECTIONS
command = [sys.executable, str(TABLES), *options, *asked, *sections]
raise SystemExit(subprocess.run(command, check=False).returncode)
