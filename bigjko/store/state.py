"""States of steppers as zarr groups: all that a step hands to the next."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from .measures import array, tensor
from .seal import StoreError


def pack(value: Any, group: Any, name: str) -> Any:
    """A state, a dataclass of tensors, numbers and more of its kind, as JSON; tensors become arrays of the group.

    Raises:
        StoreError: for what is none of these.
    """
    if isinstance(value, Tensor):
        group.create_array(name, data=array(value))
        return {"tensor": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"fields": {key: pack(inner, group, f"{name}.{key}") for key, inner in fields.items()}}
    if isinstance(value, tuple):
        return {"tuple": [pack(inner, group, f"{name}.{k}") for k, inner in enumerate(value)]}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StoreError(
        f"received a stepper whose {name} holds a {type(value).__name__}, need tensors, numbers, text, tuples and "
        "dataclasses of these for a checkpoint: change the stepper's state"
    )


def unpack(tree: Any, group: Any, like: Any, device: torch.device) -> Any:
    """What `pack` packed; `like` tells which dataclasses it was made of."""
    if not isinstance(tree, dict):
        return tree
    ((kind, inner),) = tree.items()
    if kind == "tensor":
        return tensor(group[inner]).to(device)
    if kind == "fields":
        fields = {key: unpack(value, group, getattr(like, key), device) for key, value in inner.items()}
        return dataclasses.replace(like, **fields)
    if kind == "tuple":
        likes = like if isinstance(like, tuple) and len(like) == len(inner) else (None,) * len(inner)
        return tuple(unpack(value, group, one, device) for value, one in zip(inner, likes, strict=True))
    return slice(*inner) if kind == "slice" else float(inner)
