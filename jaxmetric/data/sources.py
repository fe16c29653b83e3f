"""What every source of pictures hands over: pictures, integer labels, and which picture is held out.

`load_emoji_people`, `load_manifest` and `load_tfds` return a `LabelledImages`; the plans, the pipeline, the
trainer and the evaluation read nothing else. Somebody with arrays of their own builds one directly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("learning", "validation", "test", "query", "gallery")
LEARNING, VALIDATION, TEST, QUERY, GALLERY = range(5)


class PictureError(ValueError):
    """A picture that cannot be read; the message is one line that names it."""


class InputError(RuntimeError):
    """Reading that failed through no picture's fault, such as a worker that was killed; the message is one line."""


class InputTimeoutError(InputError):
    """No batch came in time; the message is one line that names the step and its first pictures."""


@dataclass(frozen=True)
class LabelColumn:
    """One label that every picture carries: its name and what its codes mean.

    Attributes:
      name: what the column is called, such as "gender".
      values: code i means `values[i]`.
      ordinal: whether the distance of two codes means something (an age), or only their equality (a role).
    """

    name: str
    values: tuple[str, ...]
    ordinal: bool = False


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Pictures with T labels each and the split they belong to.

    Attributes:
      images: `images[i]` is a uint8 array `[S, S, 3]`, the same S for all; an array in memory or a lazy
        sequence.
      labels: int32 `[N, T]` codes; -1 is a missing label.
      columns: the T columns; column 0 is the identity (the class) unless a caller says otherwise.
      split: int8 `[N]`: 0 learning, 1 validation, 2 test, 3 query, 4 gallery. Queries and gallery are the test images
        of a protocol that names both: each query is searched in the gallery.
      names: N strings which say where each picture comes from (a file, an id), for messages and the report.

    Raises:
      TypeError: if labels or split do not hold integers.
      ValueError: if shapes disagree, there is no picture or no column, or a code has no meaning.

    Example:
      >>> import numpy as np
      >>> source = LabelledImages(
      ...     images=np.zeros((3, 8, 8, 3), np.uint8),
      ...     labels=np.array([[0], [1], [-1]], np.int32),
      ...     columns=(LabelColumn("colour", ("red", "green")),),
      ...     split=np.zeros(3, np.int8),
      ...     names=("a.png", "b.png", "c.png"),
      ... )
      >>> len(source), source.image_size
      (3, 8)
    """

    images: Sequence[np.ndarray] | np.ndarray
    labels: np.ndarray
    columns: tuple[LabelColumn, ...]
    split: np.ndarray
    names: Sequence[str]

    def __post_init__(self) -> None:
        _check_labels(self.labels, self.columns)
        _check_split(self.split, len(self.labels))
        for what, values in (("images", self.images), ("names", self.names)):
            if len(values) != len(self.labels):
                raise ValueError(
                    f"{what} must have one entry per row of labels ({len(self.labels)}), got {len(values)}"
                )
        if isinstance(self.images, np.ndarray):
            _check_pictures(self.images)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """The side S of the pictures (a lazy source decodes one to know it)."""
        return int(self.images[0].shape[0])


def _check_labels(labels: np.ndarray, columns: tuple[LabelColumn, ...]) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must hold integers, got {labels.dtype}")
    if labels.ndim != 2 or 0 in labels.shape:
        raise ValueError(f"labels must be [N, T] with at least one picture and one column, got {labels.shape}")
    if len(columns) != labels.shape[1]:
        raise ValueError(f"labels have {labels.shape[1]} columns, but {len(columns)} are described")
    if len({column.name for column in columns}) != len(columns):
        raise ValueError(f"column names must differ, got {[column.name for column in columns]}")
    for column, codes in zip(columns, labels.T, strict=True):
        if codes.min() < -1 or codes.max() >= len(column.values):
            raise ValueError(
                f"codes of column {column.name!r} must lie in [-1, {len(column.values) - 1}], "
                f"got {codes.min()} to {codes.max()}"
            )


def _check_split(split: np.ndarray, pictures: int) -> None:
    if not np.issubdtype(split.dtype, np.integer):
        raise TypeError(f"split must hold integers, got {split.dtype}")
    if split.shape != (pictures,):
        raise ValueError(f"split must be [{pictures}], one entry per row of labels, got {split.shape}")
    if not np.isin(split, range(len(SPLITS))).all():
        known = ", ".join(f"{code} ({name})" for code, name in enumerate(SPLITS))
        raise ValueError(f"split must hold {known}; got {np.unique(split)}")


def _check_pictures(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images must be [N, S, S, 3], got {images.shape}")
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
