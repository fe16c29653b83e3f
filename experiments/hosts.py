"""`python -m experiments.hosts`: see `jaxmetric.run.hosts`."""

from jaxmetric.run.console import leave
from jaxmetric.run.hosts import main

if __name__ == "__main__":
    leave(main)
