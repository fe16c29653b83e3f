"""Arrays computed from images, kept on disk by a digest of the image: `FeatureStore`.

A store is a folder with a description of its arrays, the digests of the images, and the arrays in the same order. Rows
are only ever appended, under a lock, so that several runs can use a store at the same time.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxmetric.data.labeled_images import ImageError

_DESCRIPTION, _DIGESTS, _ARRAYS = "features.json", "digests", "arrays"
_DIGEST_BYTES = 32


class FeatureStoreError(ValueError):
    """Raised if a folder does not hold the expected arrays; the message is one line."""


class FeatureStore:
    """Float32 arrays of one shape, by the digests of images.

    Attributes:
      folder: its folder.
      row_bytes: the size of an array.

    Example:
      >>> import tempfile
      >>> store = FeatureStore(Path(tempfile.mkdtemp()), {"network": "mean"}, (3,))
      >>> digests = [image_digest(np.full((4, 4, 3), color, np.uint8)) for color in (0, 5, 7)]
      >>> store.rows(digests)
      [None, None, None]
      >>> store.add([digests[0], digests[2]], np.array([[0.0, 0.0, 0.0], [7.0, 7.0, 7.0]]))
      >>> store.rows(digests)
      [0, None, 1]
      >>> store.read(1).tolist()
      [7.0, 7.0, 7.0]
    """

    def __init__(self, folder: Path, description: dict[str, Any], shape: tuple[int, ...]) -> None:
        """Opens a store, or makes one.

        Args:
          folder: its folder.
          description: what its arrays are, as JSON.
          shape: the shape of each array.

        Raises:
          FeatureStoreError: if the folder holds other arrays, or is damaged.
          OSError: if it cannot be read or made.
        """
        self.folder, self.row_bytes, self._shape = folder, 4 * math.prod(shape), shape
        self._row_of: dict[bytes, int] = {}
        self._arrays: np.ndarray | None = None
        path, text = folder / _DESCRIPTION, json.dumps({**description, "shape": shape}, indent=2) + "\n"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(text)
            part.replace(path)
        if path.read_text() != text:
            raise FeatureStoreError(f"{folder} holds other arrays, see {_DESCRIPTION}; delete it, or name another")
        held, expected = self._bytes(_ARRAYS), self._count() * self.row_bytes
        if held < expected:
            raise FeatureStoreError(
                f"{folder} is damaged: its arrays have {held:,} bytes, expected {expected:,}; delete it"
            )

    def rows(self, digests: Sequence[bytes]) -> list[int | None]:
        """Returns the row of the array of each image; None for images without one."""
        if (count := self._count()) > len(self._row_of):
            with (self.folder / _DIGESTS).open("rb") as file:
                file.seek(len(self._row_of) * _DIGEST_BYTES)
                for row in range(len(self._row_of), count):
                    self._row_of[file.read(_DIGEST_BYTES)] = row
        return [self._row_of.get(digest) for digest in digests]

    def add(self, digests: Sequence[bytes], arrays: np.ndarray) -> None:
        """Adds the arrays `[n, *shape]` of n images, except those that are there already.

        Raises:
          FeatureStoreError: if the file system has no locks.
          OSError: if the arrays cannot be written.
        """
        if arrays.shape != (len(digests), *self._shape):
            raise ValueError(f"arrays have shape {arrays.shape}, expected {(len(digests), *self._shape)}")
        with self._locked():
            new = {d: i for i, (d, row) in enumerate(zip(digests, self.rows(digests), strict=True)) if row is None}
            count = self._count()
            # What a process that was killed had written beyond the last digest is overwritten.
            rows = np.ascontiguousarray(arrays[list(new.values())], np.float32)
            self._write(_ARRAYS, count * self.row_bytes, rows.tobytes())
            self._write(_DIGESTS, count * _DIGEST_BYTES, b"".join(new))

    def read(self, row: int) -> np.ndarray:
        """Returns an array."""
        if self._arrays is None or row >= len(self._arrays):
            self._arrays = np.memmap(self.folder / _ARRAYS, np.float32, "r", shape=(self._count(), *self._shape))
        return np.array(self._arrays[row])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_row_of": {}, "_arrays": None}  # another process reads the files itself

    def _write(self, name: str, start: int, data: bytes) -> None:
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _count(self) -> int:
        return self._bytes(_DIGESTS) // _DIGEST_BYTES

    def _bytes(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise FeatureStoreError(
                    f"{self.folder} is on a file system without locks ({error.strerror}); name a local folder"
                ) from error
            yield


class StoredFeatures(Sequence[np.ndarray]):
    """The arrays of a store in the order of a source's images.

    An image that could not be read raises an ImageError, one without an array a KeyError.
    """

    def __init__(self, store: FeatureStore, rows: Sequence[int | str | None]) -> None:
        """Takes the row of each image, or what was wrong with it, or None."""
        self._store, self._rows = store, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = self._rows[index]
        if isinstance(row, str):
            raise ImageError(row)
        if row is None:
            raise KeyError(index)
        return self._store.read(row)


def image_digest(image: np.ndarray) -> bytes:
    """Returns 32 bytes that differ for any two images that differ."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
