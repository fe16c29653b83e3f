"""`python -m experiments.compare`: see `jaxmetric.run.compare`."""

from jaxmetric.run.compare import main
from jaxmetric.run.console import leave

if __name__ == "__main__":
    leave(main)
