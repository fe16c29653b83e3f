"""Reads one batch, or one process's rows of it, and replaces images that cannot be read: `read_batch`.

An image that cannot be read is replaced by another one of its class. The choice depends only on the plan and on
which images are bad, not on who reads the rest of the batch: each of the K places of a class first tries its own
candidates, every K-th image of the class that is not in the batch. The processes therefore read together the
same batch as a single process.
"""

from collections.abc import Callable

import numpy as np

from jaxmetric.data.batch_plans import Plan, batch_indices
from jaxmetric.data.labeled_images import ImageError, LabeledImages

_MAX_TRIED = 100


def read_batch(
    source: LabeledImages,
    plan: Plan,
    step: int,
    *,
    on_bad: Callable[[ImageError], object] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, np.ndarray]:
    """Reads the batch of a step, or the rows of it that belong to one of n processes.

    Args:
      source: the images and labels.
      plan: the images of each batch.
      step: counts from 0.
      on_bad: called for each image that cannot be read. Another image of its class replaces it, if possible one
        that is not in the batch. By default the error is raised.
      process_index: p.
      process_count: n. Process p reads rows `[p B / n, (p + 1) B / n)` of the batch of B.

    Returns:
      "image" `[B / n, S, S, 3]` with the dtype of the source, "label" int32 `[B / n, T]`, "index" int32 `[B / n]`.

    Raises:
      ValueError: if the step is negative, or n processes cannot share the batch evenly.
      ImageError: if an image cannot be read (or, with `on_bad`, no image of its class).
    """
    rows = rows_of(plan, process_index, process_count)
    indices = batch_indices(plan, step)
    taken = indices[rows.start : rows.stop]
    if isinstance(source.images, np.ndarray):
        images = source.images[taken]
    elif on_bad is None:
        images = np.stack([source.images[i] for i in taken])
    else:
        read = [_read_around(source, plan, indices, place, on_bad) for place in rows]
        taken, images = np.array([index for index, _ in read]), np.stack([image for _, image in read])
    return {"image": images, "label": source.labels[taken].astype(np.int32), "index": taken.astype(np.int32)}


def rows_of(plan: Plan, process_index: int, process_count: int) -> range:
    """Returns the places of each batch that a process reads.

    Raises:
      ValueError: if there is no such process, or the batch cannot be shared evenly.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must lie in [0, process_count), got {process_index} of {process_count}")
    share, rest = divmod(plan.batch_size, process_count)
    if rest:
        raise ValueError(
            f"a batch of {plan.batch_size} images ({plan.classes_per_batch} classes x {plan.images_per_class}) "
            f"cannot be shared evenly by {process_count} processes"
        )
    return range(process_index * share, (process_index + 1) * share)


def _read_around(
    source: LabeledImages, plan: Plan, indices: np.ndarray, place: int, on_bad: Callable[[ImageError], object]
) -> tuple[int, np.ndarray]:
    """Reads the image planned for a place, or the first substitute that can be read."""
    planned = int(indices[place])
    try:
        return planned, source.images[planned]
    except ImageError as caught:
        on_bad(caught)
        error = caught
    others = _substitutes(plan, indices, place)
    for other in others[:_MAX_TRIED].tolist():
        try:
            return other, source.images[other]
        except ImageError as caught:
            on_bad(caught)
    which = "no other image" if len(others) <= _MAX_TRIED else f"none of {_MAX_TRIED} other images"
    raise ImageError(f"{error} (and {which} of its class can be read)") from error


def _substitutes(plan: Plan, indices: np.ndarray, place: int) -> np.ndarray:
    """Returns substitutes for a place: its own candidates, other images not in the batch, then those in the batch."""
    turn = place % plan.images_per_class
    shown = indices[place - turn : place - turn + plan.images_per_class]
    group = _group_of(plan, shown[0])
    free = np.roll(group, -int(np.flatnonzero(group == shown[0])[0]))
    free = free[~np.isin(free, shown)]
    own = free[turn :: plan.images_per_class]
    return np.concatenate([own, free[~np.isin(free, own)], np.setdiff1d(shown, indices[place])])


def _group_of(plan: Plan, index: int) -> np.ndarray:
    return next(group for group in plan.groups if group[0] <= index <= group[-1] and index in group)
