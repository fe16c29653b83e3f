"""The papers' experiments: `python -m experiments.train` is `jaxmetric train` with their presets."""
