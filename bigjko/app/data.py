"""The data sets an experiment can name, and what may be done to them before the flows see them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import RiskError
from ..optional import need


def orthogonal() -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Two orthogonal points with labels of opposite sign.

    Reference: Boursier, Pillaud-Vivien and Flammarion 2022.
    """
    return _tensor([[-0.5, 1.0], [2.0, 1.0]]), _tensor([-1.0, 1.0])


def diabetes() -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """scikit-learn's diabetes data: 442 patients, 10 measurements, disease progression after one year."""
    X, y = need("sklearn.datasets", "the data set 'diabetes'").load_diabetes(return_X_y=True)
    return _tensor(X), _tensor(y)


def five() -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Five points around the circle: the example of mathematics.md 3."""
    angle, radius = _tensor([0.1, 0.9, 2.0, 3.3, 4.6]), _tensor([1.0, 0.7, 1.1, 0.8, 1.0])
    return torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None], _tensor([0.8, -0.4, 0.5, -0.6, 0.3])


def twenty() -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Twenty points in R^3 and labels, all standard normal, and the same on every machine."""
    drawn = np.random.Generator(np.random.PCG64(0)).standard_normal((20, 4))
    return _tensor(drawn[:, :3]), _tensor(drawn[:, 3])


DATASETS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "diabetes": diabetes,
    "five": five,
    "orthogonal": orthogonal,
    "twenty": twenty,
}


def prepared(
    X: Float[Tensor, "n d"],
    y: Float[Tensor, " n"],
    components: int | None = None,
    standardise: bool = False,
    standardise_labels: bool = False,
    names: Sequence[str] | None = None,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
    """Principal components first, then columns and labels of mean 0 and standard deviation 1 (over n, not n - 1).

    Args:
        X: (n, d) inputs.
        y: (n,) labels.
        components: principal components to keep; None keeps the columns as they are.
        standardise: the columns that are left.
        standardise_labels: y.
        names: of the columns, for errors.

    Raises:
        RiskError: for more components than the data have, or a constant column or label that is to be standardised.
    """
    names = [f"column {k + 1}" for k in range(X.shape[1])] if names is None else names
    if components is not None:
        X, names = _principal(X, components), [f"component {k + 1}" for k in range(components)]
    if standardise:
        X = _standard(X, names)
    if standardise_labels:
        y = _standard(y[:, None], ["labels"])[:, 0]
    return X, y


def _principal(X: Tensor, components: int) -> Tensor:
    """An axis has no sign of its own: scikit-learn makes its largest entry positive, on every machine."""
    most = min(X.shape)
    if not 1 <= components <= most:
        raise RiskError(f"received components = {components} for data {tuple(X.shape)}, need 1 to {most}: take fewer")
    _refuse_huge(X)
    PCA = need("sklearn.decomposition", "principal components").PCA
    return _tensor(PCA(components, svd_solver="full").fit_transform(X.numpy()))


def _standard(columns: Tensor, names: Sequence[str]) -> Tensor:
    _refuse_huge(columns)
    spread = columns.std(0, correction=0)
    constant = ~(spread > _CONSTANT * columns.abs().amax(0))
    if bool(constant.any()):
        raise RiskError(
            f"received constant values in {names[int(constant.int().argmax())]!r}, need a spread to divide by: leave "
            "them out, or switch standardising off"
        )
    return (columns - columns.mean(0)) / spread


def _refuse_huge(values: Tensor) -> None:
    """Where squares would overflow."""
    largest = float(values.abs().max())
    if largest > _HUGE:
        raise RiskError(f"received values up to {largest:.3g}, need at most {_HUGE:g}: change their unit")


def _tensor(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


_CONSTANT = 1e-12  # a spread below this share of the largest value is rounding
_HUGE = 1e150
