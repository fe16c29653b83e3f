"""Packs images into WebP sprite sheets in data URIs. Each image is embedded once, even if it is shown several times.

Image i is on sheet `i // PER_SHEET`, row by row. `page.js` relies on this layout.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 16
PER_SHEET = SIDE * SIDE
BUDGET = 3_000_000
# (pixels, WebP quality), best first; the first that fits the budget is used.
LADDER = ((64, 84), (64, 74), (64, 60), (48, 64), (48, 45), (32, 50), (24, 40))


def sprite_sheets(images: Sequence[np.ndarray], *, budget: int = BUDGET) -> list[str]:
    """Pack images into sheets of 16 x 16.

    Args:
        images: N arrays, uint8 [S, S, 3].
        budget: largest number of characters of all sheets together. Size and quality are reduced, down to 24 pixels,
            until an estimate from one sheet fits.

    Returns:
        One data URI per 256 images.
    """
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is {image.dtype} {image.shape}, expected uint8 (S, S, 3)")
    sample = [images[i] for i in np.linspace(0, len(images) - 1, min(PER_SHEET, len(images)), dtype=int)]
    for pixels, quality in LADDER:
        if len(_sheet(sample, pixels, quality)) * len(images) / len(sample) <= budget:
            break
    pixels = min(pixels, max(image.shape[0] for image in images))
    return [_sheet(images[i : i + PER_SHEET], pixels, quality) for i in range(0, len(images), PER_SHEET)]


def _sheet(images: Sequence[np.ndarray], pixels: int, quality: int) -> str:
    sheet = Image.new("RGB", (SIDE * pixels, SIDE * pixels), "white")
    for i, image in enumerate(images):
        tile = Image.fromarray(image).resize((pixels, pixels), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % SIDE * pixels, i // SIDE * pixels))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
