"""The common form of all sources: images, integer labels and the split.

`load_emoji_people`, `load_manifest` and `load_tfds` return a `LabeledImages`, the only input of plans, pipeline,
training and evaluation. Build one directly from your own arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("learning", "validation", "test", "query", "gallery")
LEARNING, VALIDATION, TEST, QUERY, GALLERY = range(5)

_CODING = "values, codes = np.unique(column, return_inverse=True) codes a column"


class ImageError(ValueError):
    """Raised for an image that cannot be read; the message is one line that names it."""


class InputError(RuntimeError):
    """Raised if reading failed for a reason other than an image, such as a killed worker; the message is one line."""


class InputTimeoutError(InputError):
    """Raised if no batch came in time; the message is one line that names the step and its first images."""


class SourceWarning(UserWarning):
    """One line about the data of a source: an assumption, a count or an omission."""


@dataclass(frozen=True)
class LabelColumn:
    """The name of a label column and the meaning of its codes.

    Attributes:
      name: such as "gender".
      values: code i means `values[i]`.
      ordinal: whether differences of codes are meaningful (an age), or only equality (a role).
    """

    name: str
    values: tuple[str, ...]
    ordinal: bool = False


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images with T labels each and a split.

    Attributes:
      images: `images[i]` is a uint8 array `[S, S, 3]`, with the same S for all; an array in memory or a lazy
        sequence.
      labels: int32 `[N, T]` codes; -1 is a missing label.
      columns: the T columns; column 0 is the identity (the class) unless a caller says otherwise.
      split: int8 `[N]`: 0 learning, 1 validation, 2 test, 3 query, 4 gallery. Query and gallery are the test images
        of protocols that search each query in a separate gallery.
      names: N strings that identify the images (a file, an id), for messages and the report.
      origin: how the source was read, such as the separator of a list, for `describe`; "" for arrays.

    Raises:
      TypeError: if labels or split are not arrays of integers.
      ValueError: if shapes disagree, there is no image or no column, or a code has no meaning.

    Example:
      >>> import numpy as np
      >>> source = LabeledImages(
      ...     images=np.zeros((3, 8, 8, 3), np.uint8),
      ...     labels=np.array([[0], [1], [-1]], np.int32),
      ...     columns=(LabelColumn("color", ("red", "green")),),
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
    origin: str = ""

    def __post_init__(self) -> None:
        _check_labels(self.labels, self.columns)
        _check_split(self.split, len(self.labels))
        for what, values in (("images", self.images), ("names", self.names)):
            if len(values) != len(self.labels):
                raise ValueError(
                    f"{what} must have one entry per row of labels ({len(self.labels)}), got {len(values)}"
                )
        if isinstance(self.images, np.ndarray):
            _check_images(self.images)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """The side S of the images. A lazy source decodes one image to get it."""
        return int(self.images[0].shape[0])


def describe(source: LabeledImages) -> str:
    """Describes a source in two lines: the number of images by split, then the columns and how it was read.

    Example:
      >>> source = LabeledImages(
      ...     images=np.zeros((3, 8, 8, 3), np.uint8),
      ...     labels=np.array([[0, 4], [1, -1], [1, 0]]),
      ...     columns=(LabelColumn("name", ("ann", "bob")), LabelColumn("age", tuple("12345"), ordinal=True)),
      ...     split=np.array([LEARNING, LEARNING, TEST]),
      ...     names=("a.png", "b.png", "c.png"),
      ...     origin="separator ','; images in 'path'",
      ... )
      >>> print(describe(source))
      3 images, 2 identities: 2 learning, 1 test
      columns: name (2), age (5, ordinal, 1 missing); separator ','; images in 'path'
    """
    counts = [(name, int((source.split == code).sum())) for code, name in enumerate(SPLITS)]
    splits = ", ".join(f"{count:,} {name}" for name, count in counts if count)
    identities = len(source.columns[0].values)
    noun = "identity" if identities == 1 else "identities"
    columns = ", ".join(
        f"{column.name} ({_column_facts(column, codes)})"
        for column, codes in zip(source.columns, source.labels.T, strict=True)
    )
    origin = f"; {source.origin}" if source.origin else ""
    return f"{len(source):,} images, {identities:,} {noun}: {splits}\ncolumns: {columns}{origin}"


def _column_facts(column: LabelColumn, codes: np.ndarray) -> str:
    missing = int((codes < 0).sum())
    facts = [f"{len(column.values):,}", *["ordinal"] * column.ordinal, *[f"{missing:,} missing"] * bool(missing)]
    return ", ".join(facts)


def _check_labels(labels: np.ndarray, columns: tuple[LabelColumn, ...]) -> None:
    if not _holds_integers(labels):
        got = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"labels must be an array of integer codes, got {got}; {_CODING}")
    if labels.ndim != 2 or 0 in labels.shape:
        raise ValueError(f"labels must be [N, T] with at least one image and one column, got {labels.shape}")
    if len(columns) != labels.shape[1]:
        raise ValueError(f"labels have {labels.shape[1]} columns, but {len(columns)} are described")
    if len({column.name for column in columns}) != len(columns):
        raise ValueError(f"column names must differ, got {[column.name for column in columns]}")
    for column, codes in zip(columns, labels.T, strict=True):
        if codes.min() < -1 or codes.max() >= len(column.values):
            raise ValueError(
                f"codes of column {column.name!r} must lie in [-1, {len(column.values) - 1}], "
                f"got {codes.min()} to {codes.max()}; {_CODING}"
            )


def _check_split(split: np.ndarray, images: int) -> None:
    if not _holds_integers(split):
        raise TypeError(f"split must be an array of integers, got {getattr(split, 'dtype', type(split).__name__)}")
    if split.shape != (images,):
        raise ValueError(f"split must be [{images}], one entry per row of labels, got {split.shape}")
    if not np.isin(split, range(len(SPLITS))).all():
        known = ", ".join(f"{code} ({name})" for code, name in enumerate(SPLITS))
        raise ValueError(f"split must hold {known}; got {np.unique(split)}")


def _holds_integers(array: np.ndarray) -> bool:
    return hasattr(array, "dtype") and np.issubdtype(array.dtype, np.integer)


def _check_images(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images must be [N, S, S, 3], got {images.shape}")
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
