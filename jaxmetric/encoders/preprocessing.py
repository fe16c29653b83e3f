"""What a network expects of its input images."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The normalization, order of channels and size of a network's images. Called on images, it normalizes them.

    Attributes:
      mean: subtracted from red, green and blue in [0, 1].
      std: divisor of red, green and blue after that.
      channels: the order that the network expects, "RGB" or "BGR".
      image_size: the side in pixels at which the network was designed or trained. Others are possible.

    Example:
      >>> import jax.numpy as jnp
      >>> red = jnp.array([[[[1.0, 0.0, 0.0]]]])
      >>> Preprocessing()(red).tolist()
      [[[[1.0, -1.0, -1.0]]]]
      >>> Preprocessing(channels="BGR")(red).tolist()
      [[[[-1.0, -1.0, 1.0]]]]
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    channels: Literal["RGB", "BGR"] = "RGB"
    image_size: int = 224

    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalizes float RGB images `[B, H, W, 3]` in [0, 1]; the result is float32."""
        mean, std = (jnp.array(each, jnp.float32).reshape(1, 1, 1, 3) for each in (self.mean, self.std))
        normalized = (images.astype(jnp.float32) - mean) / std
        return normalized[..., ::-1] if self.channels == "BGR" else normalized


CENTERED = Preprocessing()  # to [-1, 1]
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
