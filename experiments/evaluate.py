"""`python -m experiments.evaluate`: see `jaxmetric.run.evaluate`."""

from jaxmetric.run.console import leave
from jaxmetric.run.evaluate import main

if __name__ == "__main__":
    leave(main)
