"""Checkpoints of a `TrainState`, by orbax: written in the background, and complete or not there at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxmetric.training.state import TrainState


@contextmanager
def open_checkpoints(directory: Path, *, keep: int = 2) -> Iterator[ocp.CheckpointManager]:
    """A manager of a directory, which keeps the newest `keep` checkpoints; leaving it waits for pending saves."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(keep), enable_async_checkpointing=True
    )
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield manager


def save_checkpoint(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Begins to save the state under its step, unless that step is saved already."""
    step = int(state.step)
    if step not in manager.all_steps():
        manager.save(step, args=ocp.args.StandardSave(state))


def restore_latest(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The newest complete checkpoint, or None if there is none.

    Args:
      manager: see `open_checkpoints`.
      like: a state with the arrays' shapes and dtypes.

    Raises:
      ValueError: if the checkpoint holds other arrays than `like`.
    """
    step = manager.latest_step()
    if step is None:
        return None
    return manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))
