"""Batches in the order of a plan, read ahead in threads: `batches`.

Batch number `step` depends on the plan and `step` alone, so a run that stops and starts again at any step
goes on with the same batches, whatever the threads did before.
"""

from collections.abc import Callable, Iterator

import numpy as np

from jaxmetric.data.plans import Plan, batch_indices
from jaxmetric.data.sources import LabelledImages, PictureError


def batches(
    source: LabelledImages,
    plan: Plan,
    start: int,
    stop: int,
    *,
    on_bad: Callable[[PictureError], object] | None = None,
    threads: int = 4,
    prefetch: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of steps `start` to `stop` (excluded).

    Args:
      source: the pictures and labels.
      plan: which pictures each batch takes.
      start: the first step, from 0.
      stop: the step after the last.
      on_bad: called for each picture that cannot be read when its turn comes (from a reading thread;
        `list.append` will do); another picture of its class then takes its place. By default the error ends
        the iteration.
      threads: how many batches are read at the same time.
      prefetch: how many batches may lie ready.

    Returns:
      An iterator of batches: "image" uint8 `[B, S, S, 3]`, "label" int32 `[B, T]`, "index" int32 `[B]`.

    Raises:
      ValueError: if the steps do not run forwards from 0.
      PictureError: while iterating, if a picture cannot be read (or, with `on_bad`, none of its class can).
    """
    import grain

    if not 0 <= start <= stop:
        raise ValueError(f"steps must satisfy 0 <= start <= stop, got {start} and {stop}")
    if start == stop:
        return iter(())
    steps = grain.MapDataset.range(start, stop).map(lambda step: read_batch(source, plan, int(step), on_bad=on_bad))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))


def read_batch(
    source: LabelledImages, plan: Plan, step: int, *, on_bad: Callable[[PictureError], object] | None = None
) -> dict[str, np.ndarray]:
    """The one batch of a step; see `batches`."""
    indices = batch_indices(plan, step)
    if isinstance(source.images, np.ndarray):
        images = source.images[indices]
    elif on_bad is None:
        images = np.stack([source.images[i] for i in indices])
    else:
        images, indices = _read_around(source, plan, indices, on_bad)
    return {"image": images, "label": source.labels[indices].astype(np.int32), "index": indices.astype(np.int32)}


def _read_around(
    source: LabelledImages, plan: Plan, indices: np.ndarray, on_bad: Callable[[PictureError], object]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the pictures, or in place of a bad one the next readable one of its group."""
    images: list[np.ndarray] = []
    used = indices.copy()
    for place, index in enumerate(indices):
        try:
            images.append(source.images[index])
        except PictureError as error:
            on_bad(error)
            used[place], picture = _substitute(source, _group_of(plan, index), index, used, error)
            images.append(picture)
    return np.stack(images), used


def _group_of(plan: Plan, index: int) -> np.ndarray:
    return next(group for group in plan.groups if group[0] <= index <= group[-1] and index in group)


def _substitute(
    source: LabelledImages, group: np.ndarray, index: int, used: np.ndarray, error: PictureError
) -> tuple[int, np.ndarray]:
    place = int(np.flatnonzero(group == index)[0])
    others = np.roll(group, -place)[1:]
    for other in [*others[~np.isin(others, used)], *others[np.isin(others, used)]]:
        try:
            return int(other), source.images[other]
        except PictureError:
            continue
    raise PictureError(f"{error} (and no other picture of its class can be read)") from error
