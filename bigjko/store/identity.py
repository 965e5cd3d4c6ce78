"""What a flow is made of, to tell it from others."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from bigjko_kernels import GibbsKernel

from ..measure import GridMeasure
from ..neurons.base import Neurons
from .measures import array


def describe(value: Any, name: str = "") -> dict[str, Any]:
    """What a flow is made of, as text by name: tensors by their SHA-256, code by its name."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        parts = {str(key): inner for key, inner in value.items()}
    elif isinstance(value, Tensor):
        return {name: f"{_kind(value)} {hashlib.sha256(array(value).tobytes()).hexdigest()[:16]}"}
    elif isinstance(value, GibbsKernel):
        parts = {"": type(value).__name__, "epsilon": value.epsilon, "cost": value.cost}
    elif isinstance(value, Neurons):
        parts = value.to_dict()
    elif isinstance(value, GridMeasure):  # one that a step has moved in a box is put together first
        parts = {"grid": value.grid, "log_masses": value.log_masses}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        parts = {"": type(value).__name__, **parts}
    elif isinstance(value, list | tuple):
        parts = {str(k): inner for k, inner in enumerate(value)} if any(map(_deep, value)) else {"": str(list(value))}
    elif not hasattr(value, "__qualname__") and hasattr(value, "__dict__"):
        # An object of no known kind: what it says in public and in simple terms. Others may be caches, or each other.
        simple = bool | int | float | str | np.generic | Tensor
        said = {key: x for key, x in vars(value).items() if not key.startswith("_") and isinstance(x, simple)}
        parts = {"": _text(value), **said}
    else:
        return {name: _text(value)}
    found: dict[str, Any] = {}
    for key, inner in parts.items():
        found |= describe(inner, ".".join(filter(None, (name, key))))
    return found


def _deep(value: Any) -> bool:
    return not isinstance(value, bool | int | float | str | None)


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)
    named: Callable[..., Any] | type = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
