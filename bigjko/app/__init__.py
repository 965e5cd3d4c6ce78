"""Experiments from a file: `bigjko run` and `bigjko compare`."""
