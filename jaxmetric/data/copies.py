"""Finds duplicate images in a source: one file under two names, or two files with the same bytes."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmetric.data.labeled_images import SPLITS
from jaxmetric.data.problems import counted

_BEGINNING = 4096  # bytes


def first_of_same_file(files: Sequence[Path]) -> list[int]:
    """Returns, for each file, the index of its first occurrence in the list.

    Paths are compared as in `os.path.samefile`: `./` and `..`, relative and absolute paths, upper and lower case if
    the file system ignores it, and symbolic and hard links may lead to the same file. Missing files are compared by
    path.

    Example:
      >>> first_of_same_file([Path("gone.png"), Path("x/../lost.png"), Path("./gone.png")])
      [0, 1, 0]
    """
    first: dict[object, int] = {}
    return [first.setdefault(_file_key(file), i) for i, file in enumerate(files)]


def copies_across_splits(digests: Sequence[object], split: np.ndarray, names: Sequence[str]) -> str | None:
    """Describes, in one line, images with the same digest in different splits; None if there are none.

    Example:
      >>> copies_across_splits(["p", "q", "p"], np.array([0, 0, 2]), ["a.png", "b.png", "c.png"])
      '1 image has identical copies in more than one split, such as a.png (learning) and c.png (test)'
    """
    members = defaultdict(list)
    for i, digest in enumerate(digests):
        members[digest].append(i)
    apart = [indices for indices in members.values() if len({int(split[i]) for i in indices}) > 1]
    if not apart:
        return None
    first = apart[0][0]
    other = next(i for i in apart[0] if split[i] != split[first])
    return (
        f"{counted(len(apart), 'image has', 'images have')} identical copies in more than one split, such as "
        f"{names[first]} ({SPLITS[split[first]]}) and {names[other]} ({SPLITS[split[other]]})"
    )


def content_keys(files: Sequence[Path]) -> list[object]:
    """Returns keys that are equal if the files' bytes are. Reads whole files only if size and start are the same."""
    keys: list[object] = [_size(file) for file in files]
    for length in (_BEGINNING, -1):
        counts = Counter(keys)
        keys = [(key, _digest(file, length)) if counts[key] > 1 else key for key, file in zip(keys, files, strict=True)]
    return keys


def _file_key(file: Path) -> object:
    try:
        status = file.stat()
    except (OSError, ValueError):  # missing, or not a path: reported when it is decoded
        return os.path.abspath(file)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(file)


def _size(file: Path) -> object:
    try:
        return file.stat().st_size
    except OSError:  # deleted since it was decoded
        return file


def _digest(file: Path, length: int) -> object:
    """Returns a digest of the first bytes of a file, or of all if `length` is -1."""
    try:
        with file.open("rb") as opened:
            return hashlib.blake2b(opened.read(length)).digest()
    except OSError:
        return file
