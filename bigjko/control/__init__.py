"""Steppers around steppers: one that chooses the time step, one that chooses the box."""

from .adaptive import Adaptive as Adaptive
from .widening import Widening as Widening
