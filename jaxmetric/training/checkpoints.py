"""Checkpoints of a `TrainState`, by orbax: written in the background, and complete or not there at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxmetric.training.state import TrainState

_UNWRITTEN = "a checkpoint could not be written"
_HEADROOM = 8 * 2**20  # bytes, for checkpoints' metadata, metrics and the report


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the others are not touched. One line."""


@contextmanager
def open_checkpoints(directory: Path, *, keep: int = 2) -> Iterator[ocp.CheckpointManager]:
    """A manager of a directory, which keeps the newest `keep` checkpoints; leaving it waits for pending saves.

    Raises:
      CheckpointError: on leaving, if a pending save failed.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(keep), enable_async_checkpointing=True
    )
    manager = ocp.CheckpointManager(directory.absolute(), options=options)
    try:
        yield manager
    finally:
        _call(_UNWRITTEN, manager.close)


def save_checkpoint(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Begins to save the state under its step, unless that step is saved already.

    Raises:
      CheckpointError: if the disk has no room for it, or this save, or the one before it, failed.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    size, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(manager.directory).free
    # Twice, as the save before it may still be on its way. Asked first, as orbax fails in many threads and words.
    if free < 2 * size + _HEADROOM:
        raise CheckpointError(
            f"no room for a checkpoint of {size / 2**20:.1f} MiB: {manager.directory} has {free / 2**20:.1f} MiB free"
        )
    _call(_UNWRITTEN, lambda: manager.save(step, args=ocp.args.StandardSave(state)))


def restore_latest(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The newest complete checkpoint, or None if there is none.

    Args:
      manager: see `open_checkpoints`.
      like: a state with the arrays' shapes and dtypes.

    Raises:
      CheckpointError: if the checkpoint cannot be read, or holds other arrays than `like`.
    """
    step = manager.latest_step()
    if step is None:
        return None
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    what = f"the checkpoint of step {step} in {manager.directory} could not be read"
    return _call(what, lambda: manager.restore(step, args=ocp.args.StandardRestore(wanted)))


def _call(what: str, action: Callable[[], Any]) -> Any:
    """Calls orbax, which raises whatever its storage raises: no common type, and a page of where it was."""
    try:
        return action()
    except Exception as error:
        reason = str(error).split("\n")[0].split(" [")[0].rsplit(": ", 1)[-1]
    # Raised outside the handler: a chained exception would keep orbax's half-done coroutines until the process ends.
    raise CheckpointError(f"{what}: {reason}")
