"""Decoding: what every picture goes through, on pictures drawn here."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from jaxmetric.data import LazyPictures, PictureError, decode_picture

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(picture, kind="PNG", **options):
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def stripes(width=60, height=20):
    """Three vertical stripes: red, green, blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for i, colour in enumerate((RED, GREEN, BLUE)):
        pixels[:, i * width // 3 : (i + 1) * width // 3] = colour
    return Image.fromarray(pixels)


def test_crop_keeps_the_centre_undistorted():
    decoded = decode_picture(encoded(stripes()), name="x", image_size=20)
    assert (decoded == GREEN).all()
    assert decoded.shape == (20, 20, 3)
    assert decoded.dtype == np.uint8


def test_squash_keeps_everything():
    decoded = decode_picture(encoded(stripes()), name="x", image_size=30, resize="squash")
    assert [tuple(decoded[15, column]) for column in (4, 15, 25)] == [RED, GREEN, BLUE]


def test_the_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left becomes the top
    decoded = decode_picture(encoded(stripes(), "PNG", exif=exif), name="x", image_size=30, resize="squash")
    assert [tuple(decoded[row, 15]) for row in (4, 15, 25)] == [RED, GREEN, BLUE]


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (8, 8), 100), 100),
        (Image.new("1", (8, 8), 1), 255),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 255),
        (Image.new("LA", (8, 8), (0, 0)), 255),
        (Image.new("P", (8, 8)), 0),
        (Image.fromarray(np.full((8, 8), 40_000, np.uint16)), 40_000 // 256),
    ],
    ids=["grey", "bits", "transparent", "grey-alpha", "palette", "16-bit"],
)
def test_every_mode_becomes_rgb(picture, expected):
    assert (decode_picture(encoded(picture), name="x", image_size=4) == expected).all()


def test_a_large_jpeg_is_decoded_close_to_its_pixels():
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[:, None, None], (512, 512, 3)).astype(np.uint8)
    decoded = decode_picture(encoded(Image.fromarray(ramp), "JPEG", quality=95), name="x", image_size=32)
    expected = ramp.reshape(32, 16, 32, 16, 3).mean(axis=(1, 3))
    assert np.abs(decoded - expected)[2:-2].max() < 4


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"not a picture", "a.png: not a picture that Pillow knows"),
        (b"", "a.png: not a picture that Pillow knows"),
        (encoded(Image.effect_noise((99, 99), 60))[:2000], "a.png: .*truncated"),
        (encoded(Image.effect_noise((99, 99), 60), "JPEG")[:2000], "a.png: .*truncated"),
    ],
    ids=["text", "empty", "half-png", "half-jpeg"],
)
def test_what_cannot_be_decoded_is_named(file, message):
    with pytest.raises(PictureError, match=message) as caught:
        decode_picture(file, name="a.png", image_size=8)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(PictureError, match=r"b\.png: no such file"):
        decode_picture(tmp_path / "b.png", name="b.png", image_size=8)
    with pytest.raises(PictureError, match="b: a folder, not a picture"):
        decode_picture(tmp_path, name="b", image_size=8)


def test_lazy_pictures_decode_when_asked():
    files = [encoded(Image.new("RGB", (9, 9), colour)) for colour in (RED, BLUE)] + [b""]
    pictures = LazyPictures(files.__getitem__, ("r", "b", "bad"), image_size=5)
    assert len(pictures) == 3
    assert (pictures[1] == BLUE).all()
    with pytest.raises(PictureError, match="bad: not a picture"):
        pictures[2]


def test_a_record_that_cannot_be_fetched_is_named():
    def read(index):
        raise RuntimeError("open() failed:\nno such file")

    with pytest.raises(PictureError, match=r"^train\[0\]: open\(\) failed: no such file$"):
        LazyPictures(read, ("train[0]",), image_size=5)[0]
