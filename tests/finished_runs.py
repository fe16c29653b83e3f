"""What the tests of runs ask of a run that has ended."""

import jax

from jaxmetric.run.config import load_config
from jaxmetric.run.experiment import drive_step, load_experiment, restorable
from jaxmetric.training import open_checkpoints, restore_latest


def final_state(workdir):
    """The newest checkpoint, on the host."""
    experiment = load_experiment(load_config(workdir))
    shapes, resize = restorable(experiment, drive_step(experiment, "shard_map"))
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        return jax.device_get(restore_latest(checkpoints, shapes, resize=resize).state)
