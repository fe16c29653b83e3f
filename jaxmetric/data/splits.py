"""Splits images into learning, validation and test, as pure functions of the labels and a seed.

`split_within_classes` holds out some images of every class, to test recognition of known classes (as in the
quadruplet paper). `split_disjoint_classes` holds out whole classes, to test retrieval of unseen classes (as in the
SoftTriple paper). Both return int8 `[N]`: 0 learning, 1 validation, 2 test.
"""

import numpy as np

from jaxmetric.data.labeled_images import LEARNING, TEST, VALIDATION

_ROUNDING = 1e-9  # tolerance for rounding errors in shares of images


def split_within_classes(
    class_ids: np.ndarray,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    spread: np.ndarray | None = None,
) -> np.ndarray:
    """Holds out a share of the images of every class.

    The share of each class is rounded up or down at random, so that the shares also hold over all classes together,
    even if each has few images. Every class keeps at least one image to learn from.

    Args:
      class_ids: integers `[N]`. Images without a class (-1) are split like one more class.
      validation: share of each class to validate on, in [0, 1).
      test: share of each class to test on, in [0, 1).
      seed: seed of the split.
      spread: integers `[N, S]`, more labels. The images held out of a class then differ in as many of them as
        possible.

    Returns:
      int8 `[N]`: 0 learning, 1 validation, 2 test.

    Raises:
      ValueError: if a share lies outside [0, 1), both reach 1 together, class_ids are not integers, or shapes
        disagree.

    Example:
      >>> split = split_within_classes(np.repeat([0, 1], 10), validation=0.2, test=0.1)
      >>> np.bincount(split[:10]).tolist(), np.bincount(split[10:]).tolist()
      ([7, 2, 1], [7, 2, 1])
      >>> np.bincount(split_within_classes(np.repeat(np.arange(100), 2))).tolist()  # 100 pairs
      [160, 20, 20]
    """
    class_ids = np.asarray(class_ids)
    spread = np.zeros((len(class_ids), 0), int) if spread is None else np.asarray(spread)
    _check(class_ids, validation, test)
    if spread.ndim != 2 or len(spread) != len(class_ids):
        raise ValueError(f"spread must be [{len(class_ids)}, S], got {spread.shape}")
    split = np.full(len(class_ids), LEARNING, np.int8)
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(class_ids, return_counts=True)
    for class_id, counts in zip(classes, _counts_within(sizes, validation, test, seed), strict=True):
        members = rng.permutation(np.flatnonzero(class_ids == class_id))
        for part, count in zip((VALIDATION, TEST), counts.tolist(), strict=True):
            chosen = _most_different(spread[members], spread[split == part], count)
            split[members[chosen]] = part
            members = np.delete(members, chosen)
    return split


def split_disjoint_classes(
    class_ids: np.ndarray, *, validation: float = 0.1, test: float = 0.2, seed: int = 0
) -> np.ndarray:
    """Holds out a share of the classes, with all their images.

    Args:
      class_ids: integers `[N]`. Images without a class (-1) are learning images, since their class might not be
        unseen.
      validation: share of the classes to validate on, in [0, 1).
      test: share of the classes to test on, in [0, 1).
      seed: seed of the split.

    Returns:
      int8 `[N]`: 0 learning, 1 validation, 2 test.

    Raises:
      ValueError: if a share lies outside [0, 1) or both reach 1 together.

    Example:
      >>> split = split_disjoint_classes(np.repeat(np.arange(10), 3), validation=0.1, test=0.2)
      >>> np.bincount(split).tolist()
      [21, 3, 6]
    """
    class_ids = np.asarray(class_ids)
    _check(class_ids, validation, test)
    classes = np.random.default_rng(seed).permutation(np.unique(class_ids[class_ids >= 0]))
    to_validate, to_test = _shares(len(classes), validation, test)
    split = np.full(len(class_ids), LEARNING, np.int8)
    split[np.isin(class_ids, classes[:to_validate])] = VALIDATION
    split[np.isin(class_ids, classes[to_validate : to_validate + to_test])] = TEST
    return split


def _check(class_ids: np.ndarray, validation: float, test: float) -> None:
    if class_ids.ndim != 1 or not np.issubdtype(class_ids.dtype, np.integer):
        raise ValueError(f"class_ids must be integers [N], got {class_ids.dtype} {class_ids.shape}")
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"validation and test must be shares that leave some to learn from, got {validation} and {test}"
        )


def _counts_within(sizes: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """Returns the number of validation and test images of each class, `[C, 2]`.

    The rounding error of a class is carried over to the next one, in a random order and from a random start. A class
    with a single image is skipped.
    """
    rng = np.random.default_rng([seed, len(sizes)])
    order = rng.permutation(np.flatnonzero(sizes > 1))
    counts = np.zeros((len(sizes), 2), np.int64)
    for part, share, reserved in ((1, test, np.floor(validation * sizes)), (0, validation, np.zeros_like(sizes))):
        room = sizes - 1 - counts.sum(axis=1) - reserved
        carried = rng.random()
        for c in order:
            exact = share * sizes[c]
            counts[c, part] = min(np.floor(carried + exact + _ROUNDING), np.ceil(exact - _ROUNDING), room[c])
            carried += exact - counts[c, part]
    return counts


def _shares(count: int, validation: float, test: float) -> tuple[int, int]:
    """Returns the numbers to validate and to test on, leaving at least one of `count` to learn from."""
    to_test = min(round(count * test), max(count - 1, 0))
    to_validate = min(round(count * validation), max(count - 1 - to_test, 0))
    return to_validate, to_test


def _most_different(labels: np.ndarray, taken: np.ndarray, count: int) -> list[int]:
    """Greedily selects `count` rows of `labels` that share the fewest values with each other, then with `taken`."""
    chosen: list[int] = []
    repeats = (labels[:, None] == taken).sum(axis=(1, 2)) / (1 + taken.size)
    for _ in range(count):
        repeats[chosen] = np.inf
        best = int(np.argmin(repeats))
        chosen.append(best)
        repeats = repeats + (labels == labels[best]).sum(axis=1)
    return chosen
