"""`python -m experiments.compare`: `jaxmetric compare`."""

from jaxmetric.__main__ import run

if __name__ == "__main__":
    run("compare", program="python -m experiments.compare")
