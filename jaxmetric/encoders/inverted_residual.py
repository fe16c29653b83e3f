"""Networks of inverted residual blocks, which `efficientnet_lite` and `mobilenet_v2` fill in.

A block widens its input by a 1x1 convolution, filters each channel by a depthwise convolution and narrows the result by
another 1x1 convolution, with ReLU6 after the first two.

References:
  M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
  CVPR 2018.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from jaxmetric.encoders.layers import LayerOptions, batch_norm, convolution
from jaxmetric.encoders.trunk import Stage, Trunk


class StageSizes(NamedTuple):
    """The blocks of a stage.

    Attributes:
      expansion: channels inside a block, as a multiple of those of its input.
      features: channels of the result.
      blocks: their number.
      stride: stride of the first block.
      kernel: side of the depthwise kernels.
    """

    expansion: int
    features: int
    blocks: int
    stride: int
    kernel: int = 3


class ConvolutionUnit(nn.Module):
    """A convolution, batch norm and ReLU6: the first and the last layer of a network."""

    features: int
    size: int
    stride: int
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`, sizes rounded up."""
        x = x.astype(self.options.dtype)
        x = convolution(x, self.features, self.size, self.stride, options=self.options, name="conv")
        return nn.relu6(batch_norm(x, options=self.options, train=train, name="bn"))


class InvertedResidual(nn.Module):
    """The block, with a shortcut where input and result have the same shape. An `expansion` of 1 does not widen."""

    features: int
    expansion: int
    kernel: int
    stride: int
    options: LayerOptions
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`, sizes rounded up."""
        convolve = partial(convolution, options=self.options)
        norm = partial(batch_norm, options=self.options, train=self.train)
        y, inside = x, x.shape[-1] * self.expansion
        if self.expansion != 1:
            y = convolve(y, inside, 1, 1, name="expand")
            y = nn.relu6(norm(y, name="expand_bn"))
        y = convolve(y, inside, self.kernel, self.stride, depthwise=True, name="depthwise")
        y = nn.relu6(norm(y, name="depthwise_bn"))
        y = norm(convolve(y, self.features, 1, 1, name="project"), name="project_bn")
        return x + y if x.shape == y.shape else y


def inverted_residual_network(stages: Sequence[StageSizes], options: LayerOptions, *, stem: int, head: int) -> Trunk:
    """Makes a network with the stages "stem", "stage1", "stage2", ..., "head".

    Args:
      stages: the sizes of each stage between the stem and the head.
      options: see `LayerOptions`.
      stem: channels of the 3x3 convolution of stride 2 in front.
      head: channels of the 1x1 convolution at the end.
    """
    block = nn.remat(InvertedResidual) if options.remat else InvertedResidual
    stride, named = 2, []
    for number, sizes in enumerate(stages, 1):
        stride *= sizes.stride
        blocks = partial(
            block, features=sizes.features, expansion=sizes.expansion, kernel=sizes.kernel, options=options
        )
        named.append((f"stage{number}", partial(Stage, blocks, count=sizes.blocks, stride=sizes.stride)))
    first = ("stem", partial(ConvolutionUnit, stem, 3, 2, options))
    last = ("head", partial(ConvolutionUnit, head, 1, 1, options))
    return Trunk((first, *named, last), stride)
