"""Errors of the geometry: each says what was received, what is needed and what to do."""


class GridError(ValueError):
    """A grid, a factor or values on them that do not fit together."""


class KernelError(ValueError):
    """A kernel that cannot be built, or that was handed values it cannot take."""
