"""Tell a 3 from an 8: handwritten digits, the logistic loss, Projected on a circle, beside gradient descent.

scikit-learn's digits and two of their principal components (three: a sphere, and minutes); half of the digits to learn
from, half to be tested on. Prints the accuracies of JKO's measure and of gradient descent from the very same one.

    python examples/digits_3_vs_8.py [components: 2] [directions: 256] [t_end: 30]
"""

import sys
import warnings

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

import bigjko as bj

warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # mass condenses on kinks: what it costs shows in the gap


def data(components: int) -> list[torch.Tensor]:
    """X and y to learn from, X and y to be tested on; y is 1 for an 8 and -1 for a 3."""
    images, digit = load_digits(return_X_y=True)
    kept = (digit == 3) | (digit == 8)
    label = torch.as_tensor(digit[kept] == 8).double() * 2 - 1
    learn, test, y, y_test = train_test_split(images[kept], label.numpy(), test_size=0.5, random_state=0)
    pca = PCA(components).fit(learn)
    parts = (torch.as_tensor(pca.transform(half) / pca.singular_values_[0] * len(y) ** 0.5) for half in (learn, test))
    X, X_test = parts
    return [X, torch.as_tensor(y), X_test, torch.as_tensor(y_test)]


def main(components: int = 2, directions: int = 256, t_end: float = 30.0) -> dict[str, float]:
    """Test accuracies, and the output gap over the largest output change."""
    X, y, X_test, y_test = data(components)
    way = bj.neurons.Projected()
    risk = bj.Risk(X, y, neurons=way, loss=bj.losses.Logistic(scale=1 / len(y)))
    grid = way.grid(directions, components)
    start = way.uniform(grid, radius=0.3)
    flow = bj.evolve(bj.JKO(risk, grid, tau=0.5), start, t_end)
    gd = bj.evolve(bj.GradientDescent(risk, tau=0.05), way.particles(start), t_end, record=10)
    print(f"{len(y)} digits to learn from, {len(y_test)} to be tested on, {grid.size:,} nodes")
    found = {"gap": bj.compare(flow, gd, transport=False).relative_output_gap}
    for name, run in (("JKO", flow), ("gradient descent", gd)):
        right = (risk.outputs(run.final, X_test) * y_test > 0).double().mean()
        found[name] = float(right)
        print(
            f"{name:16}  loss {float(run.risks[0]):.3f} to {float(run.risks[-1]):.3f}, test accuracy {float(right):.1%}"
        )
    print(f"outputs differ by at most {found['gap']:.2%} of their largest change")
    return found


if __name__ == "__main__":
    kinds = (int, int, float)
    main(*(kind(argument) for kind, argument in zip(kinds, sys.argv[1:], strict=False)))
