"""Position embeddings of vision transformers, resized to the grid of patches of an image.

There are two conventions, and this module follows torch's `interpolate` in both to rounding. DINO and DINOv2 resize by
cubic convolution with coefficient -0.75 without antialiasing, at a scale of `(target + 0.1) / source`. DINOv2 with
register tokens resizes with antialiasing, which has the coefficient -0.5, at a scale of `target / source`. In both, a
grid of the right size stays as it is.

References:
  R. Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE TASSP 1981.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Resizing(NamedTuple):
    """How position embeddings are resized.

    Attributes:
      antialias: whether the kernel is widened when a grid shrinks.
      offset: added to the target's length in the scale.
    """

    antialias: bool
    offset: float


PLAIN = Resizing(antialias=False, offset=0.1)
ANTIALIASED = Resizing(antialias=True, offset=0.0)


def resized_positions(positions: jax.Array, grid: tuple[int, int], resizing: Resizing) -> jax.Array:
    """Resizes position embeddings to a grid.

    Args:
      positions: float32 `[1, 1 + n * n, D]`: that of the class token, and those of n x n patches, row by row.
      grid: rows and columns of the result.
      resizing: the convention.

    Returns:
      Float32 `[1, 1 + rows * columns, D]`; that of the class token is unchanged.

    Example:
      >>> import jax.numpy as jnp
      >>> resized_positions(jnp.ones((1, 1 + 4 * 4, 8)), (2, 3), PLAIN).shape
      (1, 7, 8)
    """
    side, features = math.isqrt(positions.shape[1] - 1), positions.shape[2]
    if grid == (side, side):
        return positions
    rows, columns = (jnp.asarray(resize_matrix(side, length, resizing), jnp.float32) for length in grid)
    patches = positions[0, 1:].reshape(side, side, features)
    patches = jnp.einsum("ir,jc,rcd->ijd", rows, columns, patches, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([positions[:, :1], patches.reshape(1, -1, features)], axis=1)


def resize_matrix(source: int, target: int, resizing: Resizing) -> np.ndarray:
    """Returns the weights `[target, source]` of a line's samples in each sample of the resized line."""
    step = source / (target + resizing.offset)
    centers = step * (np.arange(target) + 0.5) - 0.5
    if resizing.antialias:
        weights = _cubic((np.arange(source) - centers[:, None]) / max(step, 1.0), -0.5)
        return weights / weights.sum(1, keepdims=True)
    # Two samples more on either side, which repeat the first and the last.
    padded = _cubic(np.arange(-2, source + 2) - centers[:, None], -0.75)
    weights = padded[:, 2:-2].copy()
    weights[:, 0] += padded[:, :2].sum(1)
    weights[:, -1] += padded[:, -2:].sum(1)
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
