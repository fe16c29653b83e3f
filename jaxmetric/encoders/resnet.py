"""Residual networks in Flax Linen: trunks of encoders that map images to a feature map.

`ResNet` stacks a stem and stages of `BasicBlock` (ResNet-10, 18, 34) or `Bottleneck` (50, 101). Layers, names
and padding follow torchvision, so that its weights can be used directly. Padding is explicit, since "SAME" pads
a convolution of stride 2 on the opposite side from torch.

References:
  K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

STEMS = ("imagenet", "small")

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(x: jax.Array, features: int, size: int, stride: int, *, dtype: Any, name: str) -> jax.Array:
    """Apply a `size` x `size` convolution without bias, padded as torch pads it: `size // 2` on every side.

    Must be called inside a compact Linen method, which then owns the parameters.
    """
    if size == 1 and stride > 1:
        # Gives the same result, since a 1x1 kernel never uses the pixels in between. 7 times faster on CPU.
        x, stride = x[:, ::stride, ::stride], 1
    padding = (size // 2, size // 2)
    layer = nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=(padding, padding),
        use_bias=False,
        kernel_init=_he_normal,
        dtype=dtype,
        name=name,
    )
    return layer(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, H / stride, W / stride, features]`, sizes rounded up."""
        y = convolution(x, self.features, 3, self.stride, dtype=self.dtype, name="conv1")
        y = nn.relu(self.norm(name="bn1")(y))
        y = convolution(y, self.features, 3, 1, dtype=self.dtype, name="conv2")
        y = self.norm(name="bn2")(y)
        return nn.relu(y + _shortcut(self, x, self.features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. The 3x3 convolution has the stride, as in torchvision."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, H / stride, W / stride, 4 * features]`, sizes rounded up."""
        y = convolution(x, self.features, 1, 1, dtype=self.dtype, name="conv1")
        y = nn.relu(self.norm(name="bn1")(y))
        y = convolution(y, self.features, 3, self.stride, dtype=self.dtype, name="conv2")
        y = nn.relu(self.norm(name="bn2")(y))
        y = convolution(y, 4 * self.features, 1, 1, dtype=self.dtype, name="conv3")
        y = self.norm(name="bn3")(y)
        return nn.relu(y + _shortcut(self, x, 4 * self.features))


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, features: int) -> jax.Array:
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = convolution(x, features, 1, block.stride, dtype=block.dtype, name="downsample_conv")
    return block.norm(name="downsample_bn")(x)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Attributes:
      stage_sizes: number of blocks in each stage. Every stage except the first halves height and width.
      block: `BasicBlock` or `Bottleneck`.
      width: channels of the stem and of the first stage's 3x3 convolutions; each stage doubles them.
      stem: "imagenet" (7x7 of stride 2, then max pooling, which together divide height and width by 4) or "small"
        (3x3 of stride 1).
      axis_name: mapped axis over which batch norm averages its statistics in training; None for one device.
      freeze_batch_norm: normalize by the stored statistics in training too, and do not update them.
        Scale and bias remain parameters.
      dtype: dtype of the computation. Parameters and batch statistics are always float32.
      remat: keep only the input of each block and recompute the rest in the backward pass.
    """

    stage_sizes: tuple[int, ...]
    block: Callable[..., nn.Module]
    width: int = 64
    stem: str = "imagenet"
    axis_name: str | None = None
    freeze_batch_norm: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Map images `[B, H, W, 3]` to features `[B, h, w, C]`; `train` as in `Encoder`."""
        if self.stem not in STEMS:
            raise ValueError(f"stem is {self.stem!r}, expected one of {', '.join(STEMS)}")
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train or self.freeze_batch_norm,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = convolution(images.astype(self.dtype), self.width, size, stride, dtype=self.dtype, name="conv1")
        x = nn.relu(norm(name="bn1")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block = nn.remat(self.block) if self.remat else self.block
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                x = block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{index}",
                )(x)
        return x
