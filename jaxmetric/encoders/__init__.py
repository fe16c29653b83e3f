"""Encoders: Flax Linen modules that map images to embeddings of norm 1.

`make_encoder` builds an encoder by name from a trunk in `ENCODERS` (images to a feature map) and an `EmbeddingHead`
(feature map to embeddings). To add a network, add a function of the trunk's options to `ENCODERS`.
"""

from jaxmetric._extras import require

require(__name__, "flax")

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmetric.encoders.head import POOLINGS, EmbeddingHead
from jaxmetric.encoders.resnet import STEMS, BasicBlock, Bottleneck, ResNet

__all__ = ["ENCODERS", "POOLINGS", "STEMS", "EmbeddingHead", "Encoder", "ResNet", "make_encoder"]

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "tiny": partial(ResNet, (1, 1), BasicBlock, width=8),
    "resnet10": partial(ResNet, (1, 1, 1, 1), BasicBlock),
    "resnet18": partial(ResNet, (2, 2, 2, 2), BasicBlock),
    "resnet34": partial(ResNet, (3, 4, 6, 3), BasicBlock),
    "resnet50": partial(ResNet, (3, 4, 6, 3), Bottleneck),
    "resnet101": partial(ResNet, (3, 4, 23, 3), Bottleneck),
}


class Encoder(nn.Module):
    """A trunk and a head. `apply(..., capture_intermediates=True)` also returns the intermediate layers."""

    trunk: nn.Module
    head: EmbeddingHead

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Embeds images.

        Args:
          images: `[B, H, W, 3]` floating point.
          train: normalize by the batch statistics and update the collection `batch_stats`, which must be mutable;
            otherwise use the stored statistics.

        Returns:
          Float32 embeddings `[B, dim]`.

        Raises:
          TypeError: if `images` is not floating point.
          ValueError: if `images` is not `[B, H, W, 3]`.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images has shape {images.shape}, expected [B, H, W, 3]")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"images has dtype {images.dtype}, expected floating point")
        return self.head(self.trunk(images, train=train))


def make_encoder(
    name: str,
    *,
    embedding_dim: int = 128,
    width: int | None = None,
    stem: str = "imagenet",
    pooling: str = "average",
    axis_name: str | None = None,
    freeze_batch_norm: bool = False,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Encoder:
    """Build the encoder `name`, one of the keys of `ENCODERS`.

    Args:
      name: "tiny" (for tests), "resnet10", "resnet18", "resnet34", "resnet50" or "resnet101".
      embedding_dim: size of the embedding.
      width: channels of the first stage; None for the network's default (64 for the ResNets, 8 for "tiny").
      stem: "imagenet" for large images, "small" for images of about 32 pixels.
      pooling: "average", "max", "gem" or "average+max".
      axis_name: mapped axis over which batch norm averages its statistics.
      freeze_batch_norm: use the stored batch statistics in training too, and do not update them.
      dtype: dtype of the trunk's computation, for example `jnp.bfloat16`. Parameters, batch statistics and embeddings
        are float32.
      remat: keep only the input of each residual block and recompute the rest in the backward pass, with less memory
        and a third more arithmetic. Parameters and results stay the same. XLA undoes it on CPU.

    Returns:
      A Linen module; `apply(variables, images, train=False)` returns `[B, embedding_dim]` vectors of norm 1.

    Raises:
      ValueError: if `name`, `stem` or `pooling` is unknown or a size is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = make_encoder("resnet18", embedding_dim=64, stem="small")
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(lambda key: encoder.init(key, images, train=False), jax.random.key(0))
      >>> jax.eval_shape(lambda v: encoder.apply(v, images, train=False), variables).shape
      (2, 64)
    """
    for argument, value, known in (
        ("encoder", name, ENCODERS),
        ("stem", stem, STEMS),
        ("pooling", pooling, POOLINGS),
    ):
        if value not in known:
            raise ValueError(f"{argument} is {value!r}, expected one of {', '.join(known)}")
    for argument, size in (("embedding_dim", embedding_dim), ("width", width)):
        if size is not None and size < 1:
            raise ValueError(f"{argument} is {size}, expected at least 1")
    options: dict[str, Any] = {} if width is None else {"width": width}
    trunk = ENCODERS[name](
        stem=stem, axis_name=axis_name, freeze_batch_norm=freeze_batch_norm, dtype=dtype, remat=remat, **options
    )
    return Encoder(trunk=trunk, head=EmbeddingHead(embedding_dim, pooling=pooling))
