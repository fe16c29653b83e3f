"""`python -m experiments.hosts`: `jaxmetric hosts` with the papers' presets besides the built-in ones."""

from jaxmetric.__main__ import run

if __name__ == "__main__":
    run("hosts", program="python -m experiments.hosts", presets="experiments.presets")
