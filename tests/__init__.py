"""The test matrix: `registry.py` lists what it runs over."""
