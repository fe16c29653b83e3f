"""`python -m experiments.train`: see `jaxmetric.run.train`."""

from jaxmetric.run.console import leave
from jaxmetric.run.train import main

if __name__ == "__main__":
    leave(main)
