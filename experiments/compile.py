"""`python -m experiments.compile`: see `jaxmetric.run.compile`."""

from jaxmetric.run.compile import in_a_child
from jaxmetric.run.console import leave, run_command

if __name__ == "__main__":
    leave(lambda: run_command(in_a_child))
