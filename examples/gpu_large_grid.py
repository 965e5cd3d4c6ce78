"""JKO on a large grid: on CUDA where there is a device, else a smaller one on the CPU. Prints what this machine gave.

Lifted, data in the plane: a cube of nodes over (w, a), in float32, held against gradient descent on particles that sit
on the grid's own nodes, on the same device. Seconds and memory are of this run and this machine.

    python examples/gpu_large_grid.py [nodes per axis: 256 on CUDA, 64 on the CPU] [steps: 10]
"""

import sys
import time

import torch

import bigjko as bj


def seconds(device: torch.device) -> float:
    """A clock that waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main(nodes: int | None = None, steps: int = 10) -> float:
    """The output gap to gradient descent over the largest output change."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nodes = nodes or (256 if device.type == "cuda" else 64)
    X = torch.tensor([[1.0, 0.2], [-0.4, 0.9], [0.3, -0.8], [-0.7, -0.5]])
    y = torch.tensor([0.8, -0.4, 0.5, 0.2])
    risk = bj.Risk(X, y).to(device=device)
    grid = bj.Grid.uniform([-3.5] * 3, [3.5] * 3, [nodes] * 3, dtype=torch.float32, device=device)
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.7)
    jko = bj.JKO(risk, grid, tau=0.05)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{where}: {grid.size:,} nodes, {jko.memory / 2**30:.2f} GiB foreseen")

    jko.step(start, jko.init(start), jko.tau)  # the first compiles, and touches memory
    begun, t_end = seconds(device), steps * jko.tau
    flow = bj.evolve(jko, start, t_end)
    took = seconds(device) - begun
    applications = float(flow.stats["applications"][1:].mean())
    print(f"JKO: {took / steps:.3g} s a step, {applications:.1f} kernel applications each")
    if device.type == "cuda":
        print(f"peak memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")

    particles = start.to_particles(drop=1e-6)
    begun = seconds(device)
    gd = bj.evolve(bj.GradientDescent(risk, tau=0.005), particles, t_end, record=10)
    each = (seconds(device) - begun) / (10 * steps)
    print(f"gradient descent: {len(particles.masses):,} particles, {each:.3g} s a step")
    gap = bj.compare(flow, gd, transport=False)
    print(f"outputs differ by at most {gap.sup_output_gap:.4f}, {gap.relative_output_gap:.2%} of their largest change")
    return gap.relative_output_gap


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
