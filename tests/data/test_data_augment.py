"""Augmentation: bounds, independence of the batch layout, and resizing compared with Pillow and worked values."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmetric.data import Augmentation, augment, augment_image, image_keys, prepare

augmenting = sys.modules[augment.__module__]  # the function hides its module

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
KEYS = image_keys(jax.random.key(1), jnp.arange(8))

DEFAULT = Augmentation()


@functools.partial(jax.jit, static_argnames=("image_size", "augmentation"))
def jitted(keys, images, image_size=16, augmentation=DEFAULT):
    return augment(keys, images, image_size=image_size, augmentation=augmentation)


def test_augmentation_does_not_depend_on_the_batch_layout():
    whole = jitted(KEYS, IMAGES)
    halves = [jitted(KEYS[part], IMAGES[part]) for part in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-6)
    order = np.array([3, 1, 7, 0, 2, 6, 4, 5])
    np.testing.assert_allclose(jitted(KEYS[order], IMAGES[order]), whole[order], atol=1e-6)


def test_augmentation_depends_on_the_key():
    np.testing.assert_array_equal(jitted(KEYS, IMAGES), jitted(KEYS, IMAGES))
    other = image_keys(jax.random.key(2), jnp.arange(8))
    assert (np.abs(jitted(other, IMAGES) - jitted(KEYS, IMAGES)).mean(axis=(1, 2, 3)) > 0.01).all()
    same = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    assert len({image.tobytes() for image in np.asarray(jitted(KEYS, same))}) == 8


def test_values_stay_within_bounds():
    out = jitted(KEYS, IMAGES, augmentation=Augmentation(color=0.9))
    assert out.shape == (8, 16, 16, 3)
    assert out.dtype == jnp.float32
    assert float(out.min()) >= -1
    assert float(out.max()) <= 1


def test_augmentation_without_changes_equals_prepare():
    still = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False, color=0.0)
    np.testing.assert_allclose(
        jitted(KEYS, IMAGES, augmentation=still), prepare(jnp.asarray(IMAGES), image_size=16), atol=1e-5
    )


def test_unchanged_colors_need_no_random_numbers():
    def draws(color):
        augmentation = Augmentation(color=color)
        jaxpr = jax.make_jaxpr(lambda keys: augment(keys, IMAGES, image_size=16, augmentation=augmentation))(KEYS)
        return str(jaxpr).count("random_bits")

    assert draws(0.0) < draws(0.1)


def test_flip_alone_mirrors_about_half():
    flip = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), color=0.0)
    keys = image_keys(jax.random.key(0), jnp.arange(64))
    out = np.asarray(jitted(keys, np.broadcast_to(IMAGES[:1], (64, 24, 24, 3)), 24, flip))
    plain = IMAGES[0] / 127.5 - 1
    mirrored = np.abs(out - plain[:, ::-1]).max(axis=(1, 2, 3)) < 1e-5
    same = np.abs(out - plain).max(axis=(1, 2, 3)) < 1e-5
    assert (mirrored ^ same).all()
    assert 16 < mirrored.sum() < 48


def test_a_crop_keeps_the_requested_share_of_the_area():
    """On a horizontal ramp, the width of a crop is the range of its values."""
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[:, None], (64, 128, 128, 3))
    quarter = Augmentation(crop_scale=(0.25, 0.25), crop_aspect=(1.0, 1.0), flip=False, color=0.0)
    keys = image_keys(jax.random.key(0), jnp.arange(64))
    out = (np.asarray(jitted(keys, ramp, 32, quarter)) + 1) * 127.5
    steps = np.diff(out[:, 0, :, 0], axis=1)[:, 1:-1]
    np.testing.assert_allclose(steps, 2 * 64 / 32, atol=0.05)  # 64 pixels of 128, two gray levels each, over 32
    assert out.min() >= 0
    assert np.ptp(out[:, 0, 0, 0]) > 60  # crops start at different places


def test_color_bounds_the_change_of_brightness():
    gray = np.full((64, 8, 8, 3), 100, np.uint8)
    only_color = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False, color=0.2)
    keys = image_keys(jax.random.key(0), jnp.arange(64))
    out = (np.asarray(jitted(keys, gray, 8, only_color)) + 1) * 127.5
    assert out.min() >= 80 - 1e-3
    assert out.max() <= 120 + 1e-3
    assert np.ptp(out) > 30
    np.testing.assert_allclose(out.std(axis=(1, 2, 3)), 0, atol=1e-4)  # gray stays gray and flat


def test_prepare_resizes_like_pillow():
    """Pillow's bilinear filter is the same triangle, rounded to eight bits."""
    ours = (prepare(jnp.asarray(IMAGES), image_size=9) + 1) * 127.5
    theirs = [np.asarray(Image.fromarray(p).resize((9, 9), Image.Resampling.BILINEAR)) for p in IMAGES]
    np.testing.assert_allclose(ours, theirs, atol=1.01)


def test_prepare_standardizes():
    image = jnp.asarray(IMAGES[:1])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = prepare(image, image_size=24, mean=mean, std=std)
    np.testing.assert_allclose(out, (IMAGES[:1] / 255 - mean) / std, atol=1e-5)
    np.testing.assert_allclose(prepare(image, image_size=24), IMAGES[:1] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale must satisfy 0 < low <= high <= 1, got \(0.0, 1.0\)"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_aspect": (0.0, 1.0)}, "crop_aspect must satisfy 0 < low <= high"),
        ({"color": 1.0}, r"color must lie in \[0, 1\), got 1.0"),
        ({"color": float("nan")}, "color"),
    ],
)
def test_ranges_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


def test_bad_arrays_are_refused():
    with pytest.raises(TypeError, match="images must be uint8, got float32"):
        prepare(jnp.zeros((1, 4, 4, 3)), image_size=4)
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], got \(4, 4, 3\)"):
        prepare(jnp.zeros((4, 4, 3), jnp.uint8), image_size=4)
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        prepare(jnp.zeros((1, 4, 4, 3), jnp.uint8), image_size=0)
    with pytest.raises(ValueError, match=r"one key per image \(8\), got 4"):
        augment(KEYS[:4], jnp.asarray(IMAGES), image_size=4)
    with pytest.raises(TypeError, match="images must be a uint8 array, got list"):
        prepare(IMAGES.tolist(), image_size=4)
    with pytest.raises(TypeError, match=r"image_size must be an integer, got 4\.0"):
        prepare(jnp.asarray(IMAGES), image_size=4.0)
    with pytest.raises(ValueError, match=r"std must be a number or 3, one for each channel, got shape \(2,\)"):
        prepare(jnp.asarray(IMAGES), image_size=4, std=(1.0, 1.0))


STILL = Augmentation(crop_scale=(1.0, 1.0), flip=False, color=0.0)
WORK = {
    "prepare": lambda keys, images: prepare(images, image_size=16),
    "prepare at its size": lambda keys, images: prepare(images, image_size=24, mean=(0.1, 0.2, 0.3), std=(1, 2, 3)),
    "augment": lambda keys, images: augment(keys, images, image_size=16),
    "augment hardly": lambda keys, images: augment(keys, images, image_size=16, augmentation=STILL),
    "augment_image": lambda keys, images: augment_image(keys[0], images[0], image_size=16, augmentation=DEFAULT),
    "image_keys": lambda keys, images: jax.random.key_data(image_keys(keys[0], jnp.arange(8))),
}


def test_all_public_functions_are_covered():
    public = {
        name for name in vars(augmenting) if getattr(vars(augmenting)[name], "__module__", "") == augment.__module__
    }
    assert {name for name in public if not name.startswith("_")} == {*WORK, "Augmentation"} - {
        "prepare at its size",
        "augment hardly",
    }


@pytest.mark.parametrize("name", WORK)
def test_nothing_is_promoted_implicitly(name):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(WORK[name], KEYS, IMAGES)


@pytest.mark.parametrize("name", ["prepare", "prepare at its size", "augment", "augment hardly"])
@pytest.mark.parametrize(
    "images_spec",
    [
        jax.P("data", "model"),
        *(pytest.param(spec, marks=pytest.mark.slow) for spec in (jax.P("data"), jax.P(None, "model"), jax.P())),
    ],
)
def test_explicit_mesh_axes_give_the_same_batches_as_one_device(name, images_spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    keys = jax.device_put(KEYS, jax.NamedSharding(mesh, jax.P("data")))
    images = jax.device_put(IMAGES, jax.NamedSharding(mesh, images_spec))
    function = jax.jit(WORK[name])
    expected = function(KEYS, IMAGES)
    np.testing.assert_allclose(function(keys, images), expected, atol=1e-5)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(function(keys, images), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["prepare", "augment"])
def test_shards_are_augmented_like_the_whole_batch(name):
    mesh = jax.make_mesh((8,), ("data",))
    keys, images = (jax.device_put(each, jax.NamedSharding(mesh, jax.P("data"))) for each in (KEYS, IMAGES))
    sharded = jax.jit(jax.shard_map(WORK[name], mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data")))
    np.testing.assert_allclose(sharded(keys, images), jax.jit(WORK[name])(KEYS, IMAGES), atol=1e-5)
