"""Trunks: networks without their classifier, as chains of named stages that can be run in parts.

A parameter's stage is the first key of its path, so that stages can be frozen or given their own learning rate by name.
"""

from collections.abc import Callable

import flax.linen as nn
import jax


class Stage(nn.Module):
    """Blocks in a row.

    Attributes:
      block: makes a block from `stride`, `train` and `name`.
      count: number of blocks.
      stride: stride of the first block; the others have stride 1.
    """

    block: Callable[..., nn.Module]
    count: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`, sizes rounded up."""
        for index in range(self.count):
            x = self.block(stride=self.stride if index == 0 else 1, train=train, name=f"block{index}")(x)
        return x


class Trunk(nn.Module):
    """A chain of named stages that maps images to a feature map.

    Attributes:
      stages: the name of each stage, and what makes its module from that name. A module is called as
        `stage(x, train=train)`.
      stride: the side of an image divided by the side of its feature map (in a vision transformer, of its patches).
      multiple: the sides of images must be multiples of it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmetric.encoders import make_encoder
      >>> trunk, images = make_encoder("tiny", width=2).trunk, jnp.ones((1, 16, 16, 3))
      >>> trunk.names, trunk.stride
      (('stem', 'layer1', 'layer2'), 8)
      >>> variables = trunk.init(jax.random.key(0), images, train=False)
      >>> cached = trunk.apply(variables, images, train=False, until="layer1")
      >>> features = trunk.apply(variables, cached, train=False, after="layer1")
      >>> bool(jnp.allclose(features, trunk.apply(variables, images, train=False)))
      True
    """

    stages: tuple[tuple[str, Callable[..., nn.Module]], ...]
    stride: int
    multiple: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stages in order."""
        return tuple(name for name, _ in self.stages)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, after: str | None = None, until: str | None = None) -> jax.Array:
        """Runs the stages after stage `after`, up to and including stage `until`.

        Args:
          x: normalized images `[B, H, W, 3]`, or what stage `after` returned.
          train: as in `Encoder`.
          after: the stage that `x` comes from; None for images.
          until: the stage whose result is returned; None for the last.

        Returns:
          Features `[B, h, w, C]`; between the stages of a vision transformer, tokens `[B, T, C]`.

        Raises:
          ValueError: if a stage is unknown, or `until` does not come after `after`, or the sides of the images are not
            multiples of `multiple`.
        """
        start = 0 if after is None else self._position("after", after) + 1
        stop = len(self.stages) if until is None else self._position("until", until) + 1
        if stop < start:
            raise ValueError(f"until is {until!r}, which comes before {after!r}, the stage that x comes from")
        if start == 0 and any(side % self.multiple for side in x.shape[1:3]):
            raise ValueError(f"images are {x.shape[1]} x {x.shape[2]}, expected multiples of {self.multiple}")
        for name, make in self.stages[start:stop]:
            x = make(name=name)(x, train=train)
        return x

    def _position(self, argument: str, stage: str) -> int:
        if stage not in self.names:
            raise ValueError(f"{argument} is {stage!r}, expected one of {', '.join(self.names)}")
        return self.names.index(stage)
