"""`python -m experiments.compile`: `jaxmetric compile` with the papers' presets besides the built-in ones."""

from jaxmetric.__main__ import run

if __name__ == "__main__":
    run("compile", program="python -m experiments.compile", presets="experiments.presets")
