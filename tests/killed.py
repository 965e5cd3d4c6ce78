"""kill -9 at random moments of a flow: what is there loads, is the start of an undisturbed flow, and goes on as one.

    python tests/killed.py [kills] [seed]

Every life of the flow is a process of its own, forked from this one, which has imported everything and opened no store.
It prints how the lives ended, as JSON.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch

import bigjko as bj

WRONG = 3
SAVE_AT = (0.0, 0.1, 0.35, 0.6)


def flow(path: Path | None, tau: float = 0.02) -> bj.Flow:
    """Adaptive JKO on a box of its grid, in 30 steps: as much state as there is."""
    X = torch.tensor([[1.0], [-0.6]], dtype=torch.float64)
    risk = bj.Risk(X, torch.tensor([1.0, -0.3], dtype=torch.float64))
    grid = bj.Grid.uniform([-4.0, -4.0], [4.0, 4.0], (129, 129))
    start = bj.GridMeasure.gaussian(grid, mean=torch.tensor([0.8, 0.3], dtype=torch.float64), std=0.25)
    stepper = bj.Adaptive(bj.JKO(risk, grid, tau=tau), rtol=0.05)
    checkpoint = None if path is None else bj.Checkpoint(path, seconds=0.0)
    return bj.evolve(stepper, start, 0.6, save_at=SAVE_AT, checkpoint=checkpoint, resume=path is not None)


def bits(flow: bj.Flow) -> dict[str, np.ndarray]:
    """All that a flow says, but how long it took."""
    found = {name: getattr(flow, name).numpy() for name in ("times", "outputs", "risks", "masses")}
    return found | {f"stat {name}": values.numpy() for name, values in flow.stats.items()}


def life(path: Path, expected: dict[str, np.ndarray], finals: list[np.ndarray]) -> int:
    """One life: look at what is there, then go on to the end."""
    if (path / "zarr.json").exists():
        try:
            there = bits(bj.Flow.load(path))
        except bj.StoreError as missing:
            if "has no checkpoint yet" not in str(missing):
                sys.stderr.write(f"{missing}\n")
                return WRONG
        else:
            if not all(np.array_equal(x, expected[name][: len(x)], equal_nan=True) for name, x in there.items()):
                return WRONG
    ended = flow(path)
    same = all(np.array_equal(x, expected[name], equal_nan=True) for name, x in bits(ended).items())
    measures = [measure.masses.numpy() for measure in ended.measures]
    return 0 if same and all(map(np.array_equal, measures, finals)) else WRONG


def main(kills: int, seed: int) -> dict[str, int]:
    """Lives until so many have been killed; then one is left alone."""
    warnings.simplefilter("ignore")
    generator = np.random.Generator(np.random.PCG64(seed))
    began = time.monotonic()
    undisturbed = flow(None)
    took = time.monotonic() - began
    expected, finals = bits(undisturbed), [measure.masses.numpy() for measure in undisturbed.measures]
    ends = {"killed": 0, "whole": 0, "wrong": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.zarr"
        while ends["killed"] < kills or not ends["whole"]:
            child = os.fork()
            if not child:
                code = WRONG
                try:
                    code = life(path, expected, finals)
                finally:  # whatever happens, this process ends here
                    if code:
                        traceback.print_exc()
                    os._exit(code)
            if ends["killed"] < kills:
                time.sleep(generator.uniform(0.0, 0.7 * took))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                ends["killed"] += 1
                continue
            ends["whole" if os.WEXITSTATUS(status) == 0 else "wrong"] += 1
            shutil.rmtree(path, ignore_errors=True)
    return ends


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]] + [50, 0][len(sys.argv) - 1 :]
    sys.stdout.write(json.dumps(main(*numbers)) + "\n")
