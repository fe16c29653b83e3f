"""The embedded data set of emoji people: 72 roles x 3 genders x 6 skin tones x 2 vendors, fully crossed.

The images are from Noto Emoji (Apache-2.0) and Twemoji (CC-BY 4.0), 64 x 64 on white. `emoji_people/NOTICE.md` has
the attribution; `emoji_people/make.py` makes the file. The data set has several true labels per image and is
small enough to ship. It suits both the quadruplet loss (one identity and soft labels) and retrieval of unseen
classes.
"""

import lzma
from collections.abc import Sequence
from importlib import resources
from typing import Literal

import numpy as np

from jaxmetric.data.decoding import check_resize, resize_images
from jaxmetric.data.labeled_images import LabelColumn, LabeledImages
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes

_AXES = ("vendor", "role", "gender", "skin")


def load_emoji_people(
    split: Literal["within", "disjoint"] = "within",
    *,
    seed: int = 0,
    columns: Sequence[str] = ("role", "gender", "skin"),
    size: int = 64,
) -> LabeledImages:
    """Loads the 2,592 images of people.

    Args:
      split: "within" holds out 4 + 4 of the 36 images of each role, spread over gender, skin and vendor,
        and learns from 28. "disjoint" learns from 48 roles, validates on 8 and tests on 16 others.
      seed: seed of the split.
      columns: the labels, identity first: "role" (72 values), "gender" (3), "skin" (6), "vendor" (2). None is
        ordinal, since the skin "default" (yellow) is not on a scale.
      size: the side of the images, at most 64.

    Returns:
      The images in memory, sorted by vendor, role, gender and skin.

    Raises:
      ValueError: if the split, a column or the size is unknown.

    Example:
      >>> people = load_emoji_people()
      >>> people.images.shape, people.columns[1].values
      ((2592, 64, 64, 3), ('man', 'woman', 'person'))
      >>> np.bincount(people.split).tolist()
      [2016, 288, 288]
    """
    if split not in ("within", "disjoint"):
        raise ValueError(f"split must be 'within' or 'disjoint', got {split!r}")
    if isinstance(columns, str) or not columns or not set(columns) <= set(_AXES):
        raise ValueError(f"columns must be some of {', '.join(_AXES)}, got {columns!r}")
    check_resize(size, "squash")
    if size > 64:
        raise ValueError(f"size must be at most 64, the size of the embedded images, got {size}")

    images, files, values = _read()
    codes = np.stack(np.meshgrid(*(np.arange(len(values[axis])) for axis in _AXES), indexing="ij"), axis=-1)
    codes = codes.reshape(-1, len(_AXES)).astype(np.int32)
    roles = codes[:, _AXES.index("role")]
    if split == "within":
        parts = split_within_classes(roles, validation=4 / 36, test=4 / 36, seed=seed, spread=codes[:, [2, 3, 0]])
    else:
        parts = split_disjoint_classes(roles, validation=8 / 72, test=16 / 72, seed=seed)
    return LabeledImages(
        images=images if size == images.shape[1] else resize_images(images, size),
        labels=np.ascontiguousarray(codes[:, [_AXES.index(name) for name in columns]]),
        columns=tuple(LabelColumn(name, values[name]) for name in columns),
        split=parts,
        names=tuple(f"{vendor}/{file}" for vendor in values["vendor"] for file in files),
    )


def _read() -> tuple[np.ndarray, tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Returns images `[N, 64, 64, 3]`, the file names of one vendor, and the values of each axis."""
    with (
        (resources.files(__package__) / "emoji_people" / "emoji_people.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        vendors, roles, genders, skins, *image_shape = arrays["shape"]
        height, width, channels = image_shape
        pixels = np.frombuffer(lzma.decompress(arrays["pictures"].tobytes()), np.uint8)
        pixels = pixels.reshape(vendors, roles, genders, height, width, skins, channels)
        images = np.ascontiguousarray(np.moveaxis(pixels, 5, 3)).reshape(-1, *image_shape)
        files = tuple(arrays["files"].ravel().tolist())
        return images, files, {axis: tuple(arrays[axis].tolist()) for axis in _AXES}
