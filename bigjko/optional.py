"""Libraries of the extras, imported when they are needed, with a clear error when they are missing."""

from importlib import import_module
from typing import Any


def need(module: str, what: str) -> Any:
    """The module, for the feature `what`.

    Raises:
        ImportError: naming the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"received a call of {what} without {missing.name} installed: pip install 'bigjko[all]'"
        ) from missing
