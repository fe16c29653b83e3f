"""Encoders: a network's preprocessing, its trunk, and a head that makes embeddings."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmetric.encoders.architectures import ENCODERS
from jaxmetric.encoders.head import POOLINGS, EmbeddingHead
from jaxmetric.encoders.layers import LayerOptions
from jaxmetric.encoders.preprocessing import CENTERED, Preprocessing
from jaxmetric.encoders.resnet import STEMS
from jaxmetric.encoders.trunk import Trunk


class Encoder(nn.Module):
    """Maps images to embeddings. `apply(..., capture_intermediates=True)` also returns the intermediate layers.

    Attributes:
      trunk: maps normalized images to a feature map.
      head: maps the feature map to embeddings.
      preprocessing: normalizes images as the trunk expects them.
    """

    trunk: Trunk
    head: EmbeddingHead
    preprocessing: Preprocessing = CENTERED

    def __call__(self, images: jax.Array, *, train: bool, after: str | None = None) -> jax.Array:
        """Embeds images.

        Args:
          images: `[B, H, W, 3]` floating point, red, green and blue in [0, 1]; or what `activations` returned.
          train: normalize by the batch statistics and update the collection `batch_stats`, which must be mutable;
            otherwise use the stored statistics.
          after: the stage of the trunk whose activations are given instead of images.

        Returns:
          Float32 embeddings `[B, dim]`.

        Raises:
          TypeError: if `images` is not floating point.
          ValueError: if `images` is not `[B, H, W, 3]`.
        """
        features = images if after else self._normalized(images)
        return self.head(self.trunk(features, train=train, after=after))

    def activations(self, images: jax.Array, *, until: str) -> jax.Array:
        """Returns what stage `until` of the trunk makes of images, with the stored batch statistics.

        Args:
          images: as in `__call__`.
          until: the name of the stage.

        Raises:
          TypeError: if `images` is not floating point.
          ValueError: if `images` is not `[B, H, W, 3]`, or the stage is unknown.
        """
        return self.trunk(self._normalized(images), train=False, until=until)

    def _normalized(self, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images has shape {images.shape}, expected [B, H, W, 3]")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"images has dtype {images.dtype}, expected floating point")
        return self.preprocessing(images)


def make_encoder(
    name: str,
    *,
    embedding_dim: int = 128,
    width: int | None = None,
    stem: str | None = None,
    pooling: str = "average",
    pretrained: bool = False,
    axis_name: str | None = None,
    freeze_batch_norm: bool = False,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Encoder:
    """Builds the encoder `name`, one of the keys of `ENCODERS`.

    Args:
      name: "tiny" (for tests), "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_lite0",
        "efficientnet_lite2", "mobilenet_v2", "mobilenet_v2_tf", which pads as TensorFlow does, "bn_inception",
        "quadruplet_vgg", "vit_s16", "vit_b16", "vit_s14", "vit_s14_reg4", "vit_b14" or "vit_b14_reg4".
      embedding_dim: size of the embedding.
      width: channels of a ResNet's first stage; None for the network's default (64, or 8 for "tiny").
      stem: of a ResNet: "imagenet" for large images, which None stands for, or "small" for images of about 32 pixels.
      pooling: "average", "max", "gem" or "average+max".
      pretrained: normalize images as weights from ImageNet expect, which `load_weights` loads.
      axis_name: mapped axis over which batch norm averages its statistics.
      freeze_batch_norm: use the stored batch statistics in training too, and do not update them.
      dtype: dtype of the trunk's computation, for example `jnp.bfloat16`. Parameters, batch statistics and embeddings
        are float32.
      remat: keep only the input of each block and recompute the rest in the backward pass, with less memory
        and a third more arithmetic. Parameters and results stay the same. XLA undoes it on CPU.

    Returns:
      A Linen module; `apply(variables, images, train=False)` maps images in [0, 1] to `[B, embedding_dim]` vectors of
      norm 1.

    Raises:
      ValueError: if `name`, `stem` or `pooling` is unknown, a size is not positive, or the network does not have an
        option.

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
        ("stem", stem or "imagenet", STEMS),
        ("pooling", pooling, POOLINGS),
    ):
        if value not in known:
            raise ValueError(f"{argument} is {value!r}, expected one of {', '.join(known)}")
    for argument, size in (("embedding_dim", embedding_dim), ("width", width)):
        if size is not None and size < 1:
            raise ValueError(f"{argument} is {size}, expected at least 1")
    architecture = ENCODERS[name]
    own: dict[str, Any] = {option: value for option, value in (("width", width), ("stem", stem)) if value is not None}
    for option in own:
        if option not in architecture.options:
            raise ValueError(f"{option} is given, but {name} has no such option")
    options = LayerOptions(axis_name=axis_name, freeze_batch_norm=freeze_batch_norm, dtype=dtype, remat=remat)
    preprocessing = (pretrained and architecture.pretrained_preprocessing) or architecture.preprocessing
    return Encoder(
        trunk=architecture.trunk(options, **own),
        head=EmbeddingHead(embedding_dim, pooling=pooling),
        preprocessing=preprocessing,
    )
