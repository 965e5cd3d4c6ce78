"""Flows on disk."""

from .checkpoint import Checkpoint as Checkpoint
from .seal import StoreError as StoreError
from .zarr import load as load
from .zarr import save as save
from .zarr import to_xarray as to_xarray
