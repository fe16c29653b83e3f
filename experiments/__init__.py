"""Runnable experiments: `python -m experiments.train`, `python -m experiments.evaluate`."""
