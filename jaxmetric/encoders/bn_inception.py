"""BN-Inception: the network of the SoftTriple paper and of many others on the same benchmarks.

Layers, names and padding are those of the Caffe model, which `pretrainedmodels` converted to torch: convolutions have a
bias in front of batch norm, and pooling of stride 2 pads only on the bottom and on the right. Its images are blue,
green and red in [0, 255], minus a mean. One thing differs in training: `pretrainedmodels` gives the newest batch a
weight of 0.9 in the batch statistics; the authors of SoftTriple, and all networks here, give it 0.1.

References:
  S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
  ICML 2015.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmetric.encoders.convolution import max_pool
from jaxmetric.encoders.layers import DEFAULT_OPTIONS, LayerOptions, batch_norm, convolution
from jaxmetric.encoders.preprocessing import Preprocessing
from jaxmetric.encoders.trunk import Stage, Trunk

CAFFE = Preprocessing(mean=(128 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3, channels="BGR")


class BlockSizes(NamedTuple):
    """Channels of the branches of an inception block.

    Attributes:
      one: the 1x1 convolution; 0 for none, in blocks of stride 2.
      three: the 1x1 convolution and the 3x3 convolution after it.
      double: the 1x1 convolution and the two 3x3 convolutions after it.
      projection: the 1x1 convolution after pooling; 0 for none, in blocks of stride 2.
      pooling: how the last branch pools.
    """

    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    projection: int
    pooling: Literal["average", "max"]


BLOCKS = {
    "inception_3a": BlockSizes(64, (64, 64), (64, 96), 32, "average"),
    "inception_3b": BlockSizes(64, (64, 96), (64, 96), 64, "average"),
    "inception_3c": BlockSizes(0, (128, 160), (64, 96), 0, "max"),
    "inception_4a": BlockSizes(224, (64, 96), (96, 128), 128, "average"),
    "inception_4b": BlockSizes(192, (96, 128), (96, 128), 128, "average"),
    "inception_4c": BlockSizes(160, (128, 160), (128, 160), 128, "average"),
    "inception_4d": BlockSizes(96, (128, 192), (160, 192), 128, "average"),
    "inception_4e": BlockSizes(0, (128, 192), (192, 256), 0, "max"),
    "inception_5a": BlockSizes(352, (192, 320), (160, 224), 128, "average"),
    "inception_5b": BlockSizes(352, (192, 320), (192, 224), 128, "max"),
}


class Unit(nn.Module):
    """Convolutions in a row, each with batch norm and ReLU, then max pooling of stride 2: the start of the network.

    Attributes:
      layers: name, channels, kernel size and stride of each convolution.
      options: see `LayerOptions`.
    """

    layers: tuple[tuple[str, int, int, int], ...]
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, h, w, features]`; pooling rounds odd sizes down."""
        x = x.astype(self.options.dtype)
        for name, features, size, stride in self.layers:
            x = _unit(x, features, size, stride, options=self.options, train=train, name=name)
        return _halved(x, round_up=False)


class InceptionBlock(nn.Module):
    """Three or four branches, whose channels are concatenated."""

    sizes: BlockSizes
    stride: int
    options: LayerOptions
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`, sizes rounded up."""
        unit = partial(_unit, options=self.options, train=self.train)
        sizes, branches = self.sizes, []
        if sizes.one:
            branches.append(unit(x, sizes.one, 1, 1, name="1x1"))
        y = unit(x, sizes.three[0], 1, 1, name="3x3_reduce")
        branches.append(unit(y, sizes.three[1], 3, self.stride, name="3x3"))
        y = unit(x, sizes.double[0], 1, 1, name="double_3x3_reduce")
        y = unit(y, sizes.double[1], 3, 1, name="double_3x3_1")
        branches.append(unit(y, sizes.double[1], 3, self.stride, name="double_3x3_2"))
        if self.stride == 2:
            y = _halved(x, round_up=True)
        elif sizes.pooling == "max":
            y = max_pool(x, size=3, stride=1, padding=((1, 1), (1, 1)))
        else:
            y = nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))
        branches.append(unit(y, sizes.projection, 1, 1, name="pool_proj") if sizes.projection else y)
        return jnp.concatenate(branches, axis=-1)


def _unit(
    x: jax.Array, features: int, size: int, stride: int, *, options: LayerOptions, train: bool, name: str
) -> jax.Array:
    x = convolution(x, features, size, stride, options=options, name=name)
    return nn.relu(batch_norm(x, options=options, train=train, name=f"{name}_bn"))


def _halved(x: jax.Array, *, round_up: bool) -> jax.Array:
    """Pools the maximum of 3x3 windows at stride 2, the first of which begins in the top left corner.

    Caffe has half as many windows as rows, rounded down. A block with an odd number of rows needs one more, to fit the
    convolutions beside it; the original network fails on such images.
    """
    sides = x.shape[1:3]
    windows = [max(1, (side + round_up) // 2) for side in sides]
    rows, columns = ((0, 2 * count + 1 - side) for count, side in zip(windows, sides, strict=True))
    return max_pool(x, size=3, stride=2, padding=(rows, columns))


def bn_inception(options: LayerOptions = DEFAULT_OPTIONS) -> Trunk:
    """Makes the trunk, with the stages "conv1", "conv2", "inception_3a" to "inception_5b".

    Its total stride is 32, and its feature map has 1024 channels.

    Args:
      options: see `LayerOptions`; biases are the network's own.
    """
    options = dataclasses.replace(options, bias_init=nn.initializers.zeros)
    conv1 = partial(Unit, (("7x7_s2", 64, 7, 2),), options)
    conv2 = partial(Unit, (("3x3_reduce", 64, 1, 1), ("3x3", 192, 3, 1)), options)
    block = nn.remat(InceptionBlock) if options.remat else InceptionBlock
    blocks = [
        (name, partial(Stage, partial(block, sizes=sizes, options=options), count=1, stride=1 if sizes.one else 2))
        for name, sizes in BLOCKS.items()
    ]
    return Trunk((("conv1", conv1), ("conv2", conv2), *blocks), 32)
