"""`python -m experiments.train`: `jaxmetric train` with the papers' presets besides the built-in ones."""

from jaxmetric.__main__ import run

if __name__ == "__main__":
    run("train", program="python -m experiments.train", presets="experiments.presets")
