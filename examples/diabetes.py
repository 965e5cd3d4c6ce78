"""The demo from Python: JKO and gradient descent from the same nodes, and what tau and the grid do to their gap.

scikit-learn's diabetes data, two principal components, the mean squared error. `diabetes.toml` is one such run.

    python examples/diabetes.py [nodes per axis: 40] [t_end: 1.0]
"""

import sys
import warnings

import torch
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import bigjko as bj


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Two principal components and labels, both of mean 0 and standard deviation 1."""
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(PCA(2).fit_transform(X))
    y = StandardScaler().fit_transform(y[:, None])[:, 0]
    return torch.as_tensor(X), torch.as_tensor(y)


def main(nodes: int = 40, t_end: float = 1.0) -> list[float]:
    """Output gaps to gradient descent over the largest output change, coarse grid first."""
    X, y = data()
    risk = bj.Risk(X, y, loss=bj.losses.Squared(scale=1 / len(y)))
    gaps = []
    print(f"{len(y)} patients, risk of the mean {float((y**2).mean()):.3f}")
    print("    grid     tau   risk JKO   risk GD   gap / change   boundary mass   width")
    for n in (nodes * 3 // 5 // 2 * 2, nodes):
        grid = bj.Grid.uniform([-4.25] * 3, [4.25] * 3, [n] * 3)
        start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.8)
        gd = bj.evolve(bj.GradientDescent(risk, tau=0.01), start.to_particles(drop=1e-6), t_end)
        for tau in (0.1, 0.05):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # the table says it
                flow = bj.evolve(bj.JKO(risk, grid, tau), start, t_end)
            gap = bj.compare(flow, gd, transport=False).relative_output_gap
            edge, width = (float(flow.stats[name][-1]) for name in ("boundary_mass", "width"))
            risks = f"{float(flow.risks[-1]):8.4f}  {float(gd.risks[-1]):8.4f}"
            print(f"{n:5}^3  {tau:6}   {risks}   {gap:12.2%}   {edge:13.1e}   {width:5.1f}")
            gaps.append(gap)
    return gaps


if __name__ == "__main__":
    kinds = (int, float)
    main(*(kind(argument) for kind, argument in zip(kinds, sys.argv[1:], strict=False)))
