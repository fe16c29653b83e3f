"""Decoding of generated images."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmetric.data import ImageError, LazyImages, decode_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image, kind="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stripes(width=60, height=20):
    """Three vertical stripes: red, green, blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for i, color in enumerate((RED, GREEN, BLUE)):
        pixels[:, i * width // 3 : (i + 1) * width // 3] = color
    return Image.fromarray(pixels)


def test_crop_keeps_the_center_undistorted():
    decoded = decode_image(encoded(stripes()), name="x", image_size=20)
    assert (decoded == GREEN).all()
    assert decoded.shape == (20, 20, 3)
    assert decoded.dtype == np.uint8


def test_squash_keeps_everything():
    decoded = decode_image(encoded(stripes()), name="x", image_size=30, resize="squash")
    assert [tuple(decoded[15, column]) for column in (4, 15, 25)] == [RED, GREEN, BLUE]


def test_the_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left becomes the top
    decoded = decode_image(encoded(stripes(), "PNG", exif=exif), name="x", image_size=30, resize="squash")
    assert [tuple(decoded[row, 15]) for row in (4, 15, 25)] == [RED, GREEN, BLUE]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 100), 100),
        (Image.new("1", (8, 8), 1), 255),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 255),
        (Image.new("LA", (8, 8), (0, 0)), 255),
        (Image.new("P", (8, 8)), 0),
        (Image.fromarray(np.full((8, 8), 40_000, np.uint16)), 40_000 // 256),
    ],
    ids=["gray", "bits", "transparent", "gray-alpha", "palette", "16-bit"],
)
def test_every_mode_becomes_rgb(image, expected):
    assert (decode_image(encoded(image), name="x", image_size=4) == expected).all()


def png(rows, *, bits, transparent=None):
    """Writes a gray PNG with the given bits per sample; `rows` are the packed bytes of each row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, len(rows), bits, 0, 0, 0, 0)
    key = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + pixels + chunk(b"IEND", b"")


def tiff(data, *, bits, photometric=1, sample_format=1, samples=1, extra=None, order="<"):
    """Writes a TIFF of 4 x 4 pixels."""
    tags = {256: [4], 257: [4], 258: [bits] * samples, 259: [1], 262: [photometric], 273: [8], 277: [samples]}
    tags |= {278: [4], 279: [len(data)], 339: [sample_format] * samples} | ({338: [extra]} if extra is not None else {})
    start = 8 + len(data)
    tail_start, entries, tail = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag in sorted(tags):
        packed = struct.pack(f"{order}{len(tags[tag])}H", *tags[tag])
        if len(packed) > 4:
            packed, tail = struct.pack(order + "I", tail_start + len(tail)), tail + packed
        entries += struct.pack(order + "HHI", tag, 3, len(tags[tag])) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4) + tail


def pgm(values, maximum):
    return f"P5 4 4 {maximum}\n".encode() + np.array(values, ">u2" if maximum > 255 else "u1").tobytes()


def packed_12(values):
    pairs = zip(values[::2], values[1::2], strict=True)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


def jpeg2000(values):
    return encoded(Image.fromarray(np.array(values, np.uint16).reshape(4, 4)), "JPEG2000", irreversible=False)


# A file of 16 gray values from 0 to a maximum, which is white.
GRAY_FILES = {
    "16-bit PNG": (65535, lambda v: png([np.array(v[i : i + 4], ">u2").tobytes() for i in range(0, 16, 4)], bits=16)),
    **{f"PGM to {white}": (white, lambda v, white=white: pgm(v, white)) for white in (1, 100, 255, 256, 1023, 65535)},
    "plain PGM": (4095, lambda v: b"P2 4 4 4095\n" + " ".join(map(str, v)).encode()),
    "16-bit TIFF": (65535, lambda v: tiff(np.array(v, "<u2").tobytes(), bits=16)),
    "big-endian TIFF": (65535, lambda v: tiff(np.array(v, ">u2").tobytes(), bits=16, order=">")),
    "TIFF whose zero is white": (
        65535,
        lambda v: tiff((65535 - np.array(v)).astype("<u2").tobytes(), bits=16, photometric=0),
    ),
    "12-bit TIFF": (4095, lambda v: tiff(packed_12(v), bits=12)),
    "8-bit TIFF": (255, lambda v: tiff(bytes(v), bits=8)),
    "RGB TIFF of 16 bits": (
        65535,
        lambda v: tiff(np.repeat(v, 3).astype("<u2").tobytes(), bits=16, photometric=2, samples=3),
    ),
    "TIFF with alpha": (255, lambda v: tiff(b"".join(bytes([x, 255]) for x in v), bits=8, samples=2, extra=2)),
    "TIFF with premultiplied alpha": (
        255,
        lambda v: tiff(b"".join(bytes([x, 255]) for x in v), bits=8, samples=2, extra=1),
    ),
    "CMYK TIFF": (
        255,
        lambda v: tiff(b"".join(bytes([0, 0, 0, 255 - x]) for x in v), bits=8, samples=4, photometric=5),
    ),
    "JPEG 2000 of 16 bits": (65535, jpeg2000),
}


@pytest.mark.parametrize("kind", GRAY_FILES)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_every_bit_depth_is_scaled_to_white(kind, data):
    white, make = GRAY_FILES[kind]
    values = data.draw(st.lists(st.integers(0, white), min_size=16, max_size=16))
    decoded = decode_image(make(values), name="x", image_size=4)
    expected = 255 * np.array(values).reshape(4, 4) / white
    assert np.abs(decoded - expected[..., None]).max() <= 1 + 1e-9


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("kind", "bits", "sample_format"), [("i1", 8, 2), ("i2", 16, 2), ("i4", 32, 2), ("f4", 32, 3), ("u4", 32, 1)]
)
def test_a_tiff_without_a_known_white_is_refused(kind, bits, sample_format, order):
    data = np.arange(16).astype(order + kind).tobytes()
    with pytest.raises(ImageError, match=r"^x: .*(white level is unknown; save it with 8 or 16 bits|not an image)"):
        decode_image(tiff(data, bits=bits, sample_format=sample_format, order=order), name="x", image_size=4)


def test_a_file_of_floating_point_numbers_is_refused():
    with pytest.raises(ImageError, match=r"^x: PPM samples of mode F, whose white level is unknown; save it with 8 or"):
        decode_image(b"Pf 4 4 -1.0\n" + np.linspace(0, 1, 16, dtype="<f4").tobytes(), name="x", image_size=4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_gray_of_a_png_becomes_white(bits):
    white = 2**bits - 1
    values = [0, white // 3 or 1, 0, white]
    row = np.packbits([int(bit) for value in values for bit in f"{value:0{bits}b}"]).tobytes()
    for transparent in {0, white // 3 or 1}:
        decoded = decode_image(png([row] * 4, bits=bits, transparent=transparent), name="x", image_size=4)
        expected = [255 if value == transparent else 255 * value // white for value in values]
        np.testing.assert_allclose(decoded[0, :, 0], expected, atol=1)


def test_16_bit_colors_with_a_transparent_color_are_refused():
    image = encoded(Image.new("RGB", (4, 4)))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    wide = image[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    key = b"tRNS" + struct.pack(">HHH", 1, 2, 3)
    wide += struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    with pytest.raises(ImageError, match="16-bit colors with a transparent color; save it with an alpha channel"):
        decode_image(wide + image[33:], name="x", image_size=4)


def of_brightness_three_fifths(mode):
    white = {"1": 1, "F": 1.0, "I": 65535, "I;16": 65535, "I;16L": 65535, "I;16B": 65535}
    if mode in white:
        return Image.new(mode, (8, 8), white[mode] if mode == "1" else type(white[mode])(0.6 * white[mode]))
    return Image.new("RGB", (8, 8), (153, 153, 153)).convert(mode)


@pytest.mark.parametrize("mode", Image.MODES)
@pytest.mark.filterwarnings("ignore:IM image format")
def test_every_mode_of_every_format_is_read_correctly_or_refused(mode):
    image = of_brightness_three_fifths(mode)
    for kind in ("PNG", "TIFF", "PPM", "JPEG2000", "IM", "BMP", "SGI", "TGA"):
        try:
            file = encoded(image, kind)
            with Image.open(BytesIO(file)) as opened:
                kept = np.array_equal(np.asarray(opened).astype(float), np.asarray(image).astype(float))
        except (OSError, ValueError, KeyError):  # the format has no such mode
            continue
        if not kept:  # Pillow reduced the samples while writing
            continue
        if mode == "F" or (kind == "IM" and mode.startswith("I")) or (kind == "TIFF" and mode == "I"):
            with pytest.raises(ImageError, match="white level is unknown; save it with 8 or 16 bits"):
                decode_image(file, name="x", image_size=8)
            continue
        decoded = decode_image(file, name="x", image_size=8)
        assert np.abs(decoded.astype(int) - (255 if mode == "1" else 153)).max() <= 3, kind


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_the_rotation_is_applied_in_every_format_and_depth(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner = np.zeros((32, 32), np.uint16)
    corner[:16, :16] = 65535  # stored at the upper left
    depths = [Image.fromarray(corner)] if kind in ("PNG", "TIFF") else []
    shown = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    for image in [*depths, Image.fromarray((corner >> 8).astype(np.uint8)).convert("RGB")]:
        decoded = decode_image(encoded(image, kind, exif=exif), name="x", image_size=32).astype(int)
        quarters = decoded.reshape(2, 16, 2, 16, 3)[:, 4:12, :, 4:12].mean(axis=(1, 3, 4))
        assert np.unravel_index(quarters.argmax(), (2, 2)) == shown


def test_a_large_jpeg_is_decoded_close_to_its_pixels():
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[:, None, None], (512, 512, 3)).astype(np.uint8)
    decoded = decode_image(encoded(Image.fromarray(ramp), "JPEG", quality=95), name="x", image_size=32)
    expected = ramp.reshape(32, 16, 32, 16, 3).mean(axis=(1, 3))
    assert np.abs(decoded - expected)[2:-2].max() < 4


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"not an image", "a.png: not an image that Pillow knows"),
        (b"", "a.png: not an image that Pillow knows"),
        (encoded(Image.effect_noise((99, 99), 60))[:2000], "a.png: .*truncated"),
        (encoded(Image.effect_noise((99, 99), 60), "JPEG")[:2000], "a.png: .*truncated"),
    ],
    ids=["text", "empty", "half-png", "half-jpeg"],
)
def test_files_that_cannot_be_decoded_are_named(file, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(file, name="a.png", image_size=8)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"b\.png: no such file"):
        decode_image(tmp_path / "b.png", name="b.png", image_size=8)
    with pytest.raises(ImageError, match="b: a folder, not an image"):
        decode_image(tmp_path, name="b", image_size=8)


def test_lazy_images_decode_on_access():
    files = [encoded(Image.new("RGB", (9, 9), color)) for color in (RED, BLUE)] + [b""]
    images = LazyImages(files.__getitem__, ("r", "b", "bad"), image_size=5)
    assert len(images) == 3
    assert (images[1] == BLUE).all()
    with pytest.raises(ImageError, match="bad: not an image"):
        images[2]


def test_a_record_that_cannot_be_fetched_is_named():
    def read(index):
        raise RuntimeError("open() failed:\nno such file")

    with pytest.raises(ImageError, match=r"^train\[0\]: open\(\) failed: no such file$"):
        LazyImages(read, ("train[0]",), image_size=5)[0]
