"""Converts uint8 images to encoder inputs: with random augmentation for training, without for evaluation.

`augment_image` augments one image with one key. `augment` vmaps it over a batch with one key per image
(`image_keys`), so that the result does not depend on the device. `prepare` only resizes. `augment` and
`prepare` standardize their results, by default to [-1, 1].

Cropping, resizing and mirroring are two matmuls, one per axis, whose matrices hold the weights of a triangle
filter (bilinear, widened when the image shrinks). This is fast on every backend and has static shapes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """The strength of the random changes to an image.

    Attributes:
      crop_scale: range within (0, 1] of the share of the area that a crop keeps, sampled uniformly.
      crop_aspect: range of the width over height of a crop, sampled log-uniformly.
      flip: whether half of the images are mirrored left to right.
      color: brightness, contrast and saturation are each multiplied by a sample from [1 - color, 1 + color].
        Keep it small if color is a label.

    Raises:
      ValueError: if a range is empty or out of bounds.

    Example:
      >>> Augmentation(crop_scale=(0.8, 1.0), flip=False).color
      0.1
    """

    crop_scale: tuple[float, float] = (0.6, 1.0)
    crop_aspect: tuple[float, float] = (0.8, 1.25)
    flip: bool = True
    color: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must satisfy 0 < low <= high <= 1, got {self.crop_scale}")
        low, high = self.crop_aspect
        if not 0 < low <= high:
            raise ValueError(f"crop_aspect must satisfy 0 < low <= high, got {self.crop_aspect}")
        if not 0 <= self.color < 1:
            raise ValueError(f"color must lie in [0, 1), got {self.color}")


def image_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """Derives one key per image from the key of the step and the image's position in the global batch.

    Args:
      key: a `jax.random` key.
      positions: distinct integers `[B]`.

    Returns:
      Keys `[B]`.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def augment(
    keys: jax.Array,
    images: jax.Array,
    *,
    image_size: int,
    augmentation: Augmentation = Augmentation(),
    mean: float | tuple[float, float, float] = 0.5,
    std: float | tuple[float, float, float] = 0.5,
) -> jax.Array:
    """Augments every image of a batch at random and standardizes it.

    Args:
      keys: one `jax.random` key per image, `[B]`; see `image_keys`.
      images: uint8 `[B, H, W, 3]`.
      image_size: the side S of the result.
      augmentation: the strength of the changes.
      mean: subtracted from images in [0, 1]; one number, or one per channel.
      std: divisor after that; one number, or one per channel.

    Returns:
      float32 `[B, S, S, 3]`; with the default mean and std in [-1, 1].

    Raises:
      TypeError: if the images are not uint8 or `image_size` is not an integer.
      ValueError: if a shape is wrong.

    Example:
      >>> images = jnp.zeros((4, 64, 64, 3), jnp.uint8)
      >>> keys = image_keys(jax.random.key(0), jnp.arange(4))
      >>> jax.jit(augment, static_argnames="image_size")(keys, images, image_size=32).shape
      (4, 32, 32, 3)
    """
    _check(images, image_size, mean, std)
    if len(keys) != len(images):
        raise ValueError(f"keys must hold one key per image ({len(images)}), got {len(keys)}")

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        return augment_image(key, image, image_size=image_size, augmentation=augmentation)

    keys, images = _sharded_alike(keys, jnp.asarray(images))
    return _standardize(jax.vmap(one)(keys, images), mean, std)


def augment_image(key: jax.Array, image: jax.Array, *, image_size: int, augmentation: Augmentation) -> jax.Array:
    """Augments one image at random: uint8 `[H, W, 3]` -> float32 `[S, S, 3]` in [0, 1]."""
    crop_key, flip_key, color_key = jax.random.split(key, 3)
    top, left, height, width = _random_box(crop_key, augmentation)
    mirrored = jax.random.bernoulli(flip_key) if augmentation.flip else jnp.array(False)
    start, extent = jnp.where(mirrored, left + width, left), jnp.where(mirrored, -width, width)
    rows = _resize_weights(image.shape[0], image_size, top, height)
    columns = _resize_weights(image.shape[1], image_size, start, extent)
    return _change_color(color_key, _resize(image, rows, columns), augmentation.color)


def prepare(
    images: jax.Array,
    *,
    image_size: int,
    mean: float | tuple[float, float, float] = 0.5,
    std: float | tuple[float, float, float] = 0.5,
) -> jax.Array:
    """Resizes and standardizes whole images for evaluation, without randomness.

    Args:
      images: uint8 `[B, H, W, 3]`.
      image_size: the side S of the result.
      mean: subtracted from images in [0, 1]; one number, or one per channel.
      std: divisor after that; one number, or one per channel.

    Returns:
      float32 `[B, S, S, 3]`; with the default mean and std in [-1, 1].

    Raises:
      TypeError: if the images are not uint8 or `image_size` is not an integer.
      ValueError: if a shape is wrong.

    Example:
      >>> prepare(jnp.full((1, 4, 4, 3), 255, jnp.uint8), image_size=2)[0, 0, 0].tolist()
      [1.0, 1.0, 1.0]
    """
    _check(images, image_size, mean, std)
    _, height, width, _ = images.shape
    if (height, width) == (image_size, image_size):
        return _standardize(images.astype(jnp.float32) / 255, mean, std)
    rows = _resize_weights(height, image_size, 0.0, 1.0)
    columns = _resize_weights(width, image_size, 0.0, 1.0)
    resized = jax.vmap(_resize, in_axes=(0, None, None))(images, rows, columns)
    return _standardize(jnp.clip(resized, 0.0, 1.0), mean, std)


def _sharded_alike(keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reshards both explicitly along the batch axis only, as `images` are, or else as `keys` are."""
    shardings = [jax.typeof(each).sharding for each in (images, keys)]
    sharding = next((each for each in shardings if each.spec[0] is not None), shardings[0])
    rows = jax.P(sharding.spec[0])

    def resharded(x: jax.Array) -> jax.Array:
        spec = jax.typeof(x).sharding.spec
        if spec[0] == rows[0] and not any(spec[1:]):
            return x
        return jax.sharding.reshard(x, jax.NamedSharding(sharding.mesh, rows))

    return resharded(keys), resharded(images)


def _check(images: jax.Array, image_size: int, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> None:
    if not isinstance(images, (jax.Array, np.ndarray)):
        raise TypeError(f"images must be a uint8 array, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [B, H, W, 3], got {images.shape}")
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if isinstance(image_size, bool) or not isinstance(image_size, (int, np.integer)):
        raise TypeError(f"image_size must be an integer, got {image_size!r}")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    for name, value in (("mean", mean), ("std", std)):
        if np.shape(value) not in ((), (3,)):
            raise ValueError(f"{name} must be a number or 3, one for each channel, got shape {np.shape(value)}")


def _standardize(images: jax.Array, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> jax.Array:
    offset, scale = (jnp.broadcast_to(jnp.asarray(each, jnp.float32), (1, 1, 1, 3)) for each in (mean, std))
    return (images - offset) / scale


def _random_box(key: jax.Array, augmentation: Augmentation) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Samples top, left, height and width of a crop, as shares of the image's sides."""
    scale_key, aspect_key, place_key = jax.random.split(key, 3)
    low, high = augmentation.crop_scale
    area = jax.random.uniform(scale_key, minval=low, maxval=high)
    low, high = augmentation.crop_aspect
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=jnp.log(low), maxval=jnp.log(high)))
    height = jnp.minimum(jnp.sqrt(area / aspect), 1.0)
    width = jnp.minimum(jnp.sqrt(area * aspect), 1.0)
    top, left = jax.random.uniform(place_key, (2,)) * (1 - jnp.stack([height, width]))
    return top, left, height, width


def _resize_weights(source: int, target: int, start: jax.Array | float, extent: jax.Array | float) -> jax.Array:
    """Returns weights `[target, source]` that resample `[start, start + extent)` of a side; negative extents mirror."""
    step = extent * source / target
    centers = start * source + (jnp.arange(target, dtype=jnp.float32) + 0.5) * step - 0.5
    positions = jnp.arange(source, dtype=jnp.float32)
    distances = jnp.abs(centers[:, None] - positions[None, :]) / jnp.maximum(jnp.abs(step), 1.0)
    weights = jnp.maximum(1.0 - distances, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _resize(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Resizes uint8 `[H, W, 3]` to `[S, S, 3]` in [0, 1], by one matmul per axis."""
    height, width, channels = image.shape
    by_rows = rows @ (image.reshape(height, width * channels).astype(jnp.float32) / 255)
    return jnp.einsum("ywc,xw->yxc", by_rows.reshape(-1, width, channels), columns)


def _change_color(key: jax.Array, image: jax.Array, strength: float) -> jax.Array:
    """Multiplies brightness, contrast and saturation by one random factor each."""
    if not strength:
        return jnp.clip(image, 0.0, 1.0)
    brightness, contrast, saturation = jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength)
    image = image * brightness
    gray = image @ jnp.array(_LUMA)
    image = gray.mean() + contrast * (image - gray.mean())
    gray = (image @ jnp.array(_LUMA))[..., None]
    return jnp.clip(gray + saturation * (image - gray), 0.0, 1.0)
