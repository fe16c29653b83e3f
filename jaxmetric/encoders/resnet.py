"""Residual networks in Flax Linen: trunks of encoders that map images to a feature map.

`resnet` stacks a stem and stages of `BasicBlock` (ResNet-10, 18, 34) or `Bottleneck` (50, 101). Layers, names
and padding follow torchvision, so that its weights can be used directly.

References:
  K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from jaxmetric.encoders.convolution import max_pool
from jaxmetric.encoders.layers import DEFAULT_OPTIONS, LayerOptions, batch_norm, convolution
from jaxmetric.encoders.trunk import Stage, Trunk

STEMS = ("imagenet", "small")


class Stem(nn.Module):
    """The first convolution: 7x7 of stride 2, then max pooling ("imagenet"), or 3x3 of stride 1 ("small")."""

    features: int
    kind: str
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to `[B, H / 4, W / 4, features]`, or to `[B, H, W, features]`."""
        size, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
        x = convolution(x.astype(self.options.dtype), self.features, size, stride, options=self.options, name="conv1")
        x = nn.relu(batch_norm(x, options=self.options, train=train, name="bn1"))
        if self.kind == "imagenet":
            x = max_pool(x, size=3, stride=2, padding=((1, 1), (1, 1)))
        return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    stride: int
    options: LayerOptions
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`, sizes rounded up."""
        convolve = partial(convolution, options=self.options)
        norm = partial(batch_norm, options=self.options, train=self.train)
        y = convolve(x, self.features, 3, self.stride, name="conv1")
        y = nn.relu(norm(y, name="bn1"))
        y = convolve(y, self.features, 3, 1, name="conv2")
        y = norm(y, name="bn2")
        return nn.relu(y + _shortcut(self, x, self.features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. The 3x3 convolution has the stride, as in torchvision."""

    features: int
    stride: int
    options: LayerOptions
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, 4 * features]`, sizes rounded up."""
        convolve = partial(convolution, options=self.options)
        norm = partial(batch_norm, options=self.options, train=self.train)
        y = convolve(x, self.features, 1, 1, name="conv1")
        y = nn.relu(norm(y, name="bn1"))
        y = convolve(y, self.features, 3, self.stride, name="conv2")
        y = nn.relu(norm(y, name="bn2"))
        y = convolve(y, 4 * self.features, 1, 1, name="conv3")
        y = norm(y, name="bn3")
        return nn.relu(y + _shortcut(self, x, 4 * self.features))


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, features: int) -> jax.Array:
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = convolution(x, features, 1, block.stride, options=block.options, name="downsample_conv")
    return batch_norm(x, options=block.options, train=block.train, name="downsample_bn")


def resnet(
    counts: Sequence[int],
    block: Callable[..., nn.Module],
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    width: int = 64,
    stem: str = "imagenet",
) -> Trunk:
    """Makes a residual network with the stages "stem", "layer1", "layer2", ...

    Args:
      counts: number of blocks in each stage. Every stage except the first halves height and width.
      block: `BasicBlock` or `Bottleneck`.
      options: see `LayerOptions`.
      width: channels of the stem and of the first stage's 3x3 convolutions; each stage doubles them.
      stem: "imagenet" (7x7 of stride 2, then max pooling, which together divide height and width by 4) or "small"
        (3x3 of stride 1).

    Returns:
      A trunk that maps `[B, H, W, 3]` to `[B, h, w, C]`.

    Raises:
      ValueError: if `stem` is unknown.
    """
    if stem not in STEMS:
        raise ValueError(f"stem is {stem!r}, expected one of {', '.join(STEMS)}")
    block = nn.remat(block) if options.remat else block
    layers = [
        (
            f"layer{number + 1}",
            partial(
                Stage,
                partial(block, features=width * 2**number, options=options),
                count=count,
                stride=2 if number else 1,
            ),
        )
        for number, count in enumerate(counts)
    ]
    stride = (4 if stem == "imagenet" else 1) * 2 ** (len(counts) - 1)
    return Trunk((("stem", partial(Stem, width, stem, options)), *layers), stride)
