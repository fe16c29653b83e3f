"""`python -m experiments.evaluate`: `jaxmetric evaluate`."""

from jaxmetric.__main__ import run

if __name__ == "__main__":
    run("evaluate", program="python -m experiments.evaluate")
