"""Decodes image files to square uint8 arrays, at once or lazily.

All sources decode in the same way: the EXIF rotation is applied, transparent images are composited on white, and only
the first frame of an animation is used. Samples of more than 8 bits are scaled so that white becomes 255. Files
whose white level is unknown (32-bit integers, signed or floating-point samples) are refused. `resize="crop"` scales
the short side to S and crops the center, without distortion. `resize="squash"` scales both sides to S, without
cropping (for tall images of pedestrians).
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from jaxmetric.data.labeled_images import ImageError

Resize = Literal["crop", "squash"]
_THREADS = 8
_EIGHT_BIT_MODES = {*("1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA"), *("CMYK", "YCbCr", "LAB", "HSV")}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_GRAY_SCALES = {"L;2": 85, "L;4": 17}  # factors from 2-bit and 4-bit gray PNG to 8 bits
_WHITE_UNKNOWN = "whose white level is unknown; save it with 8 or 16 bits"


def decode_image(file: str | Path | bytes, *, name: str, image_size: int, resize: Resize = "crop") -> np.ndarray:
    """Decodes one image.

    Args:
      file: a path, or the bytes of an encoded image.
      name: the name used in errors.
      image_size: the side S of the result.
      resize: "crop" (scale the short side to S, crop the center) or "squash" (scale both sides to S).

    Returns:
      uint8 `[S, S, 3]`.

    Raises:
      ImageError: if the file is missing, not an image, truncated, or has 32-bit, signed or floating-point samples,
        whose white level is unknown.
    """
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as opened:
            opened.draft("RGB", (image_size, image_size))  # a large JPEG is decoded at a fraction of its size
            _check_samples(opened)
            transparent = _transparent_color(opened)
            upright = ImageOps.exif_transpose(opened)
            if opened.mode in _EIGHT_BIT_MODES:
                rgb = _rgb(upright, transparent)
            else:
                rgb = _rgb_from_deep_gray(upright, transparent, *_deep_gray_scale(opened))
            return np.asarray(_fit(rgb, image_size, resize))
    except FileNotFoundError as error:
        at = "" if isinstance(file, bytes) or str(file) == name else f" as {file}"
        raise ImageError(f"{name}: no such file{at}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder, not an image") from error
    except Exception as error:  # Pillow's plugins raise all kinds of exceptions
        unknown = isinstance(error, UnidentifiedImageError)
        raise ImageError(f"{name}: {'not an image that Pillow knows' if unknown else _reason(error)}") from error


def check_resize(image_size: int, resize: str) -> None:
    """Raises a ValueError if `image_size` or `resize` is invalid."""
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if resize not in ("crop", "squash"):
        raise ValueError(f"resize must be 'crop' or 'squash', got {resize!r}")


def resize_images(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes square images `[N, H, H, 3]` to `[N, S, S, 3]`, both uint8."""
    return np.stack([np.asarray(_scale(Image.fromarray(image), (image_size, image_size))) for image in images])


class LazyImages(Sequence[np.ndarray]):
    """A sequence of encoded images, decoded on each access.

    Args:
      read: `read(i)` returns a path or the encoded bytes of image i. It must be picklable for worker processes.
      names: the names used in errors.
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
        except Exception as error:  # readers of record files raise all kinds of exceptions
            raise ImageError(f"{name}: {_reason(error)}") from error
        return decode_image(file, name=name, image_size=self._image_size, resize=self._resize)


def try_images(images: Sequence[np.ndarray]) -> Iterable[np.ndarray | ImageError]:
    """Decodes a sequence in threads and yields, in order, each image or its error."""

    def attempt(index: int) -> np.ndarray | ImageError:
        try:
            return images[index]
        except ImageError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(attempt, range(len(images)))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_samples(opened: ImageFile.ImageFile) -> None:
    """Raises a ValueError for a TIFF whose samples 8 bits cannot hold."""
    if opened.format == "TIFF" and set(_tiff_tag(opened, _SAMPLE_FORMAT, _UNSIGNED)) != {_UNSIGNED}:
        raise ValueError(f"signed or floating-point samples, {_WHITE_UNKNOWN}")


def _transparent_color(opened: ImageFile.ImageFile) -> Any:
    """Returns the file's transparent color or palette entries, in the scale of Pillow's pixels."""
    transparent = opened.info.get("transparency")
    rawmode = opened.tile[0].args if opened.format == "PNG" and opened.tile else None
    if transparent is not None and rawmode == "RGB;16B":  # Pillow keeps only the upper bytes
        raise ValueError("16-bit colors with a transparent color; save it with an alpha channel")
    if transparent is not None and rawmode in _GRAY_SCALES:
        return transparent * _GRAY_SCALES[rawmode]
    return transparent


def _deep_gray_scale(opened: ImageFile.ImageFile) -> tuple[int, bool]:
    """Returns the bits per sample of a deep gray file, and whether 0 is white.

    Raises:
      ValueError: if the white level is unknown.
    """
    sixteen = opened.mode.startswith("I;16")
    if sixteen and opened.format == "TIFF":
        (bits,), photometric = _tiff_tag(opened, _BITS_PER_SAMPLE, 16), _tiff_tag(opened, _PHOTOMETRIC, None)
        return bits, photometric == (_WHITE_IS_ZERO,)
    scaled_by_pillow = opened.format == "PPM" and opened.mode == "I"
    if scaled_by_pillow or (sixteen and opened.format in ("PNG", "JPEG2000")):
        return 16, False
    raise ValueError(f"{opened.format} samples of mode {opened.mode}, {_WHITE_UNKNOWN}")


def _tiff_tag(opened: ImageFile.ImageFile, tag: int, default: int | None) -> tuple[Any, ...]:
    value = opened.tag_v2.get(tag, default)  # type: ignore[attr-defined]  # only TIFF has tags
    return value if isinstance(value, tuple) else (value,)


def _rgb(image: Image.Image, transparent: Any) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    if transparent is not None:
        image.info["transparency"] = transparent
    straight = image.convert("LA") if image.mode == "La" else image  # Pillow cannot convert La to RGBA
    rgba = straight.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _rgb_from_deep_gray(image: Image.Image, transparent: Any, bits: int, white_is_zero: bool) -> Image.Image:
    samples = np.asarray(image).astype(np.uint16)
    gray = (samples >> (bits - 8)).astype(np.uint8)
    if white_is_zero:
        gray = 255 - gray
    if transparent is not None:
        gray[samples == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _fit(image: Image.Image, image_size: int, resize: Resize) -> Image.Image:
    width, height = image.size
    if resize == "squash":
        return _scale(image, (image_size, image_size))
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return _scale(image, (image_size, image_size), box=(left, top, left + side, top + side))


def _scale(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, box=box)
