"""Code for a device that is tried there before it is trusted."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from .errors import KernelError

_ROUNDING = 1e-9
_T = TypeVar("_T")


def trusted(trial: Callable[[], tuple[_T, float]], device: torch.device) -> _T | None:
    """What a trial hands over with how far off torch it was; None, with one warning, where it fails or is off."""
    try:
        found, gap = trial()
        if not gap < _ROUNDING:
            raise KernelError(f"received sums that are off by {gap:.1e}, need those of torch")
    except torch.cuda.OutOfMemoryError:
        raise
    # Whatever it raises, it is said, and torch does the work.
    except Exception as error:  # noqa: BLE001
        warnings.warn(
            f"received {error!r} from Triton on {device}: torch does its work, several times slower", stacklevel=3
        )
        return None
    return found
