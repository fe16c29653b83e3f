"""Checkpoints of a `TrainState`, written by orbax in the background and atomically.

A checkpoint holds the state, a small JSON object, such as the state of the input, and a score. All processes of a run
must call these functions in the same order. A checkpoint can be restored on any number of devices.
"""

import hashlib
import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxmetric.parallel import across_processes, any_process
from jaxmetric.training.loop import check_finite
from jaxmetric.training.state import TrainState
from jaxmetric.training.writers import write_atomically

_UNWRITTEN = "a checkpoint could not be written"
_HEADROOM = 8 * 2**20  # bytes, for checkpoint metadata, metrics and the report
_READ_AT_ONCE = 2**16  # bytes: orbax's metadata and small arrays
_STATE, _EXTRA = "state", "extra"
_NOTE = ".files.json"
_REWRITTEN = "_CHECKPOINT_METADATA"  # orbax rewrites it after the note; restoring does not need it


class CheckpointError(RuntimeError):
    """Raised if a checkpoint could not be written or read, in one line. Other checkpoints are not affected."""


class Restored(NamedTuple):
    """The content of a checkpoint: the state and the JSON object saved with it."""

    state: TrainState
    extra: dict[str, Any]


@contextmanager
def open_checkpoints(directory: Path, *, keep: int = 2, alone: bool = True) -> Iterator[ocp.CheckpointManager]:
    """Opens a manager of the checkpoints in a directory; leaving the context waits for pending saves.

    The manager keeps the newest `keep` checkpoints and the one with the highest score. Damaged checkpoints, such as
    those with truncated files, are moved to a folder `unreadable` next to the directory, with a warning, here or
    by `restore_latest`. Unfinished checkpoints of killed processes are deleted.

    Args:
      directory: the directory of the checkpoints.
      keep: number of the newest checkpoints to keep.
      alone: False changes nothing in the directory, since another run may be writing there.

    Raises:
      CheckpointError: if there are checkpoints and all of them are damaged; on exit, if a pending save failed.
    """
    directory = directory.absolute()
    if alone:
        _remove_unfinished(directory)
        _set_damaged_aside(directory)
    best = preservation_policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep), best]),
        best_fn=_score,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _note_files(directory)),
    )
    handlers = {_STATE: ocp.StandardCheckpointHandler(), _EXTRA: ocp.JsonCheckpointHandler()}
    manager = _call(
        f"the checkpoints in {directory} could not be opened",
        lambda: ocp.CheckpointManager(directory, options=options, item_handlers=handlers),
    )
    try:
        yield manager
    finally:
        _call(_UNWRITTEN, manager.close)


def save_checkpoint(
    manager: ocp.CheckpointManager,
    state: TrainState,
    *,
    extra: Mapping[str, Any] | None = None,
    score: float | None = None,
) -> None:
    """Starts saving the state under its step, unless that step is already saved.

    Args:
      manager: see `open_checkpoints`.
      state: the state returned by a driver of `jaxmetric.parallel`.
      extra: a JSON object to save with it.
      score: quality of the state (higher is better).

    Raises:
      NonFiniteLossError: if a number in the state is not finite.
      CheckpointError: if the disk is too full, or this save or the previous one failed.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    check_finite(state)
    size, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(manager.directory).free
    # Twice the size, since the previous save may be unfinished. Checked first, since a full disk makes orbax fail in
    # several threads with unclear messages.
    needed = 2 * size + _HEADROOM
    if any_process(free < needed):  # all processes must fail together, since they wait for each other below
        raise CheckpointError(
            f"no room for a checkpoint of {_mib(size)}: {manager.directory} has {_mib(free)} free, expected "
            f"{_mib(needed)}, for two checkpoints and {_mib(_HEADROOM)} for other files"
        )
    args = ocp.args.Composite(
        **{_STATE: ocp.args.StandardSave(across_processes(state)), _EXTRA: ocp.args.JsonSave(dict(extra or {}))}
    )
    metrics = None if score is None else {"score": score}
    _call(_UNWRITTEN, lambda: manager.save(step, args=args, metrics=metrics))


def restore_latest(
    manager: ocp.CheckpointManager, like: TrainState, *, resize: Any = None, alone: bool = True
) -> Restored | None:
    """Restores the newest readable checkpoint, or returns None if there are no checkpoints.

    Args:
      manager: see `open_checkpoints`.
      like: a state with the expected shapes and dtypes. Arrays are restored with its shardings, if it has any.
      resize: a tree of booleans like the state, true for arrays that may have another number of rows in the
        checkpoint. Rows are cut off or filled with zeros, such as those of class vectors sharded over other devices.
      alone: see `open_checkpoints`.

    Raises:
      CheckpointError: if there are checkpoints and none can be read, or the newest has different arrays than `like`.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return _restore(manager, step, like, resize)
        except _UnreadableError as error:
            if step == steps[-1]:
                raise
            if alone:
                _set_aside(Path(manager.directory), {step: str(error)})
                manager.reload()
    return None


def restore_best(manager: ocp.CheckpointManager, like: TrainState, *, resize: Any = None) -> Restored | None:
    """Restores the checkpoint with the highest score, or returns None if none has a score; see `restore_latest`."""
    step = manager.best_step()
    return None if step is None else _restore(manager, step, like, resize)


class _UnreadableError(CheckpointError):
    """Raised for an unreadable checkpoint that another one may replace."""


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _restore(manager: ocp.CheckpointManager, step: int, like: TrainState, resize: Any) -> Restored:
    directory = Path(manager.directory)
    what, share = _unreadable(directory, step), slice(jax.process_index(), None, jax.process_count())
    damage = _damage(directory, step, share=share)
    # All processes check before calling orbax: if one failed there, the others would wait for it.
    if any_process(damage is not None):
        raise _UnreadableError(damage or f"{what}: another process found damage in it")
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    found = _call(what, lambda: manager.item_metadata(step)[_STATE].tree, _UnreadableError)
    _check_arrays(what, wanted, found, resize)
    args = ocp.args.Composite(
        **{_STATE: ocp.args.StandardRestore(wanted, strict=resize is None), _EXTRA: ocp.args.JsonRestore()}
    )
    restored = _call(what, lambda: manager.restore(step, args=args), _UnreadableError)
    return Restored(restored[_STATE], restored[_EXTRA])


def _check_arrays(what: str, wanted: TrainState, found: Any, resize: Any) -> None:
    """Raises if a checkpoint has unexpected arrays; orbax's own message would be pages long."""
    resize = jax.tree.map(lambda _: False, wanted) if resize is None else resize
    here, there, free = _by_name(wanted), _by_name(found), _by_name(resize)
    for name in here | there:
        shapes = [arrays[name].shape if name in arrays else None for arrays in (there, here)]
        alike = [shape and shape[1:] for shape in shapes] if free.get(name) and None not in shapes else shapes
        if alike[0] != alike[1]:
            held, asked = ("nothing" if shape is None else str(list(shape)) for shape in shapes)
            raise CheckpointError(f"{what}: it holds {held} as {name}, expected {asked}")


def _by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _note_files(directory: Path) -> None:
    """Writes the sizes and digests of a checkpoint's files to a note, to detect damage before reading them.

    orbax calls this before it renames the folder to its final name, so no checkpoint exists without its note.
    """
    folders = directory.glob("*.orbax-checkpoint-tmp*")
    # Older folders were left by killed runs.
    folder = max(folders, key=lambda path: path.stat().st_mtime, default=None)
    if folder is None or jax.process_index():
        return
    step = int(folder.name.split(".")[0])
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != _REWRITTEN)
    files = {str(path.relative_to(folder)): (path.stat().st_size, _digest(path)) for path in paths}
    note = {"files": files, "sha256": _digest_of(files)}
    write_atomically(directory / f"{step}{_NOTE}", json.dumps(note))
    known = _complete(directory) | {step}
    for path in directory.glob(f"*{_NOTE}"):
        if int(path.name.removesuffix(_NOTE)) not in known:
            path.unlink(missing_ok=True)


def _remove_unfinished(directory: Path) -> None:
    """Removes unfinished checkpoints, in the first process; orbax does so only for single-process runs."""
    if jax.process_index() == 0:
        for path in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def _set_damaged_aside(directory: Path) -> None:
    """Moves damaged checkpoints away before orbax opens them, which reads parts of each; the first process decides."""
    steps = sorted(_complete(directory)) if jax.process_index() == 0 else []
    damaged = {step: message for step in steps if (message := _damage(directory, step, read=_READ_AT_ONCE))}
    if any_process(bool(damaged) and len(damaged) == len(steps)):
        if not damaged:
            raise CheckpointError(f"no checkpoint in {directory} could be read")
        older = ", and all older ones are damaged too" if len(steps) > 1 else ""
        raise CheckpointError(f"{damaged[steps[-1]]}{older}")
    for step in damaged:
        if newer := [other for other in steps if other > step and other not in damaged]:
            damaged[step] += f" (step {newer[-1]} is whole: it may have been on its way out when a run was killed)"
    if any_process(bool(damaged)):
        _set_aside(directory, damaged)


def _damage(directory: Path, step: int, *, share: slice = slice(None), read: float = math.inf) -> str | None:
    """Describes damage in a share of a checkpoint's files: wrong sizes, or wrong content if at most `read` bytes."""
    for name, (size, digest) in list(_noted(directory, step).items())[share]:
        path = directory / str(step) / name
        try:
            if not path.exists():
                return f"{_unreadable(directory, step)}: {name} is missing"
            if (left := path.stat().st_size) != size:
                return f"{_unreadable(directory, step)}: {name} has {left:,} of {size:,} bytes"
            if size <= read and _digest(path) != digest:
                return f"{_unreadable(directory, step)}: {name} is not what was written"
        except OSError as error:
            return f"{_unreadable(directory, step)}: {name}: {error.strerror}"
    return None


def _noted(directory: Path, step: int) -> dict[str, tuple[int, str]]:
    try:
        note = json.loads((directory / f"{step}{_NOTE}").read_text())
        return note["files"] if note["sha256"] == _digest_of(note["files"]) else {}
    except (OSError, ValueError, TypeError, KeyError):  # not written, or damaged itself: orbax will report it
        return {}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _set_aside(directory: Path, steps: Mapping[int, str]) -> None:
    """Moves checkpoints away, since their steps will be saved again, and warns."""
    folder = directory.parent / "unreadable"
    _wait_for_all_processes()  # until no process reads them
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        for step, message in steps.items():
            shutil.move(directory / str(step), _unused(folder / str(step)))
            (directory / f"{step}{_NOTE}").unlink(missing_ok=True)
            warnings.warn(f"{message}; it was moved to {folder}", stacklevel=3)
    _wait_for_all_processes()


def _wait_for_all_processes() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints")


def _complete(directory: Path) -> set[int]:
    return {int(path.name) for path in directory.glob("*") if path.name.isdigit()}


def _unused(path: Path) -> Path:
    return next(
        other
        for number in itertools.count()
        if not (other := path.with_name(f"{path.name}.{number}" if number else path.name)).exists()
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _unreadable(directory: Path, step: int) -> str:
    return f"the checkpoint of step {step} in {directory} could not be read"


def _call(what: str, action: Callable[[], Any], kind: type[CheckpointError] = CheckpointError) -> Any:
    """Calls orbax and shortens its errors, which have no common type and are a page long."""
    try:
        return action()
    except Exception as error:
        first = str(error).split("\n")[0]
        # The message of a lost process stays whole, so that it can be recognized.
        reason = first if "Gloo" in first else first.split(" [")[0].rsplit(": ", 1)[-1]
    # Raised outside the handler: a chained exception would keep orbax's half-done coroutines until the process ends.
    raise kind(f"{what}: {reason}")
