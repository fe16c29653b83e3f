"""From a picture file to a square uint8 array, and sequences of files that decode when asked.

Every source decodes alike: the rotation in the EXIF tag is applied, transparency is laid on white, the
first frame of an animation is taken. `resize="crop"` then scales the short side to S and keeps the centre: nothing
is distorted; `resize="squash"` scales both sides to S: nothing is cut off (tall pictures of pedestrians).
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from jaxmetric.data.sources import PictureError

Resize = Literal["crop", "squash"]
_THREADS = 8


def decode_picture(file: str | Path | bytes, *, name: str, image_size: int, resize: Resize = "crop") -> np.ndarray:
    """Decodes one picture.

    Args:
      file: a path, or the bytes of an encoded picture.
      name: what an error calls it.
      image_size: the side S of the result.
      resize: "crop" (short side to S, centre kept) or "squash" (both sides to S).

    Returns:
      uint8 `[S, S, 3]`.

    Raises:
      PictureError: if the file is missing, not a picture, or cut short.
    """
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as opened:
            opened.draft("RGB", (image_size, image_size))  # a large JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(opened)
            return np.asarray(_fit(_rgb(upright), image_size, resize))
    except FileNotFoundError as error:
        at = "" if isinstance(file, bytes) or str(file) == name else f" as {file}"
        raise PictureError(f"{name}: no such file{at}") from error
    except IsADirectoryError as error:
        raise PictureError(f"{name}: a folder, not a picture") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers trip over
        unknown = isinstance(error, Image.UnidentifiedImageError)
        raise PictureError(f"{name}: {'not a picture that Pillow knows' if unknown else _reason(error)}") from error


def check_resize(image_size: int, resize: str) -> None:
    """Raises a ValueError unless the two say how to make pictures alike."""
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if resize not in ("crop", "squash"):
        raise ValueError(f"resize must be 'crop' or 'squash', got {resize!r}")


def resize_pictures(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes square pictures `[N, H, H, 3]` to `[N, S, S, 3]`, both uint8."""
    return np.stack([np.asarray(_scale(Image.fromarray(image), (image_size, image_size))) for image in images])


class LazyPictures(Sequence[np.ndarray]):
    """Encoded pictures that are decoded each time they are asked for.

    Args:
      read: `read(i)` gives a path or the encoded bytes of picture i; worker processes need one that can be pickled.
      names: what errors call the pictures.
      image_size: the side S.
      resize: "crop" or "squash".
    """

    def __init__(
        self, read: Callable[[int], Path | bytes], names: Sequence[str], *, image_size: int, resize: Resize = "crop"
    ) -> None:
        self._read, self._names, self._image_size, self._resize = read, names, image_size, resize

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's slices are of no use here
        name = self._names[index]
        try:
            file = self._read(index)
        except Exception as error:  # record files raise whatever their readers trip over
            raise PictureError(f"{name}: {_reason(error)}") from error
        return decode_picture(file, name=name, image_size=self._image_size, resize=self._resize)


def try_pictures(images: Sequence[np.ndarray]) -> Iterable[np.ndarray | PictureError]:
    """Decodes all of a sequence in threads, in order, giving the error in place of a picture that fails."""

    def attempt(index: int) -> np.ndarray | PictureError:
        try:
            return images[index]
        except PictureError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(attempt, range(len(images)))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def _fit(picture: Image.Image, image_size: int, resize: Resize) -> Image.Image:
    width, height = picture.size
    if resize == "squash":
        return _scale(picture, (image_size, image_size))
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return _scale(picture, (image_size, image_size), box=(left, top, left + side, top + side))


def _scale(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    return picture.resize(size, Image.Resampling.BILINEAR, box=box)
