"""The network of the quadruplet paper's published code: ten convolutions and three fully connected layers.

The code calls it `vgg_like`. Its convolutions are 3x3 with ReLU, without batch norm. Its dropout keeps every unit, and
is left out here. Its last fully connected layer is the projection of the `EmbeddingHead`. The code does not
normalize embeddings; `EmbeddingHead(normalize=False)` does not either.

The code divides blue, green and red by the mean image of the learning set. Here they are divided by 0.5, so that the
network does not depend on the data; `Encoder.clone(preprocessing=...)` sets other divisors of the channels.

References:
  H. Proença, E. Yaghoubi, P. Alirezazadeh, "A Quadruplet Loss for Enforcing Semantically Coherent Embeddings in
  Multi-output Classification Problems", IEEE TIFS 2020, arXiv 2002.11644.
  Its code, hugomcp/quadruplets on GitHub, models.py.
"""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax

from jaxmetric.encoders.convolution import max_pool
from jaxmetric.encoders.layers import DEFAULT_OPTIONS, LayerOptions, convolution
from jaxmetric.encoders.preprocessing import Preprocessing
from jaxmetric.encoders.trunk import Trunk

OVER_GRAY = Preprocessing(mean=(0.0,) * 3, std=(0.5,) * 3, channels="BGR", image_size=64)

_CONVOLUTIONS = {"conv1": (64, 64, 128), "conv2": (128, 256, 256, 256), "conv3": (512, 512, 512)}
_FULLY_CONNECTED = {"fc6": 512, "fc7": 256}

_kernel_init = nn.initializers.xavier_uniform()


def _bias_init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Xavier's uniform initializer for a vector, whose length counts as the number of inputs and of outputs."""
    limit = math.sqrt(3 / shape[0])
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class Convolutions(nn.Module):
    """3x3 convolutions with ReLU, then max pooling of stride 2.

    Attributes:
      features: channels of each convolution.
      options: see `LayerOptions`.
    """

    features: tuple[int, ...]
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features]`, sizes rounded up."""
        x = x.astype(self.options.dtype)
        for number, features in enumerate(self.features, 1):
            x = nn.relu(convolution(x, features, 3, 1, options=self.options, name=f"{self.name}_{number}"))
        return max_pool(x, size=2, stride=2, padding=((0, x.shape[1] % 2), (0, x.shape[2] % 2)))


class FullyConnected(nn.Module):
    """A fully connected layer with ReLU, over all positions of the feature map."""

    features: int
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, h, w, C]` to `[B, 1, 1, features]`.

        Raises:
          ValueError: if the feature map has another size than the parameters were made for.
        """
        positions = x.shape[1] * x.shape[2]
        if self.has_variable("params", "dense"):
            rows: int = self.get_variable("params", "dense")["kernel"].shape[0]
            if rows != positions * x.shape[3]:
                raise ValueError(
                    f"images give a feature map of {x.shape[1]} x {x.shape[2]} positions, but {self.name} was made for "
                    f"{rows // x.shape[3]} of them: it takes images of one size"
                )
        dense = nn.Dense(
            self.features, kernel_init=_kernel_init, bias_init=_bias_init, dtype=self.options.dtype, name="dense"
        )
        return nn.relu(dense(x.reshape(x.shape[0], 1, 1, -1)))


def quadruplet_vgg(options: LayerOptions = DEFAULT_OPTIONS) -> Trunk:
    """Makes the trunk, with the stages "conv1", "conv2", "conv3", "fc6" and "fc7".

    Its total stride is 8 up to "conv3". Its feature map is `[B, 1, 1, 256]`: one position, which every pooling returns.
    The images of a network are of one size, that of those which initialize it; the authors' are of 64 pixels.

    Args:
      options: see `LayerOptions`; initializers are the network's own.
    """
    options = dataclasses.replace(options, kernel_init=_kernel_init, bias_init=_bias_init)
    stage = nn.remat(Convolutions) if options.remat else Convolutions
    convolutions = [(name, partial(stage, features, options)) for name, features in _CONVOLUTIONS.items()]
    layers = [(name, partial(FullyConnected, features, options)) for name, features in _FULLY_CONNECTED.items()]
    return Trunk((*convolutions, *layers), 8)
