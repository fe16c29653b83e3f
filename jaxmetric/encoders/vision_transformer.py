"""Vision transformers in Flax Linen: images as sequences of patches, and a class token whose last state is the feature.

Layers and names follow DINO and DINOv2, so that their weights can be used directly; timm has the same layers. ViT-S has
6 heads and 384 features, ViT-B 12 and 768; both have 12 blocks. DINOv2 adds a learned scale to the result of each
residual branch (LayerScale) and, in one version, 4 register tokens, which take part in attention and are then dropped.
Stochastic depth, with which they were trained, is left out.

References:
  A. Dosovitskiy et al., "An Image Is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021.
  M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (DINO), ICCV 2021.
  M. Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024.
  T. Darcet, M. Oquab, J. Mairal, P. Bojanowski, "Vision Transformers Need Registers", ICLR 2024.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmetric.encoders.layers import DEFAULT_OPTIONS, LayerOptions, convolution
from jaxmetric.encoders.positions import ANTIALIASED, PLAIN, Resizing, resized_positions
from jaxmetric.encoders.trunk import Trunk

_EPSILON = 1e-6
_FIRST_SCALE = 1e-5  # of LayerScale, as DINOv2 was trained

_init = nn.initializers.truncated_normal(0.02)
_token_init = nn.initializers.normal(1e-6)


class Embedding(nn.Module):
    """The tokens of an image: the class token, register tokens, and the patches by a linear layer.

    Attributes:
      features: length of a token.
      patch: side of a patch in pixels.
      grid: rows of patches, and columns, for which there are position embeddings; they are resized for other images.
      registers: number of register tokens, which have no position.
      resizing: how position embeddings are resized.
      options: see `LayerOptions`.
    """

    features: int
    patch: int
    grid: int
    registers: int
    resizing: Resizing
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to tokens `[B, 1 + registers + H / patch * W / patch, features]`."""
        dtype = self.options.dtype
        x = convolution(x.astype(dtype), self.features, self.patch, self.patch, options=self.options, name="patches")
        B, rows, columns, D = x.shape
        class_token = self.param("class_token", _token_init, (1, 1, D))
        positions = self.param("positions", _init, (1, 1 + self.grid**2, D))
        positions = resized_positions(positions, (rows, columns), self.resizing)
        first = [class_token + positions[:, :1]]
        if self.registers:
            first.append(self.param("registers", _token_init, (1, self.registers, D)))
        x = x.reshape(B, rows * columns, D) + positions[:, 1:].astype(dtype)
        return jnp.concatenate([*(jnp.broadcast_to(t.astype(dtype), (B, *t.shape[1:])) for t in first), x], axis=1)


class Block(nn.Module):
    """Self-attention and a perceptron of one hidden layer, each behind layer norm and with a shortcut.

    Attributes:
      heads: number of attention heads.
      layer_scale: whether the result of each of the two is multiplied by a learned scale.
      options: see `LayerOptions`.
    """

    heads: int
    layer_scale: bool
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        B, T, D = x.shape
        dense = partial(nn.Dense, kernel_init=_init, dtype=self.options.dtype)
        y = _layer_norm(x, options=self.options, name="norm1")
        query, key, value = jnp.moveaxis(dense(3 * D, name="qkv")(y).reshape(B, T, 3, self.heads, -1), 2, 0)
        y = dense(D, name="proj")(attention(query, key, value).reshape(B, T, D))
        x = x + self._scaled(y, "scale1")
        y = _layer_norm(x, options=self.options, name="norm2")
        y = dense(D, name="fc2")(nn.gelu(dense(4 * D, name="fc1")(y), approximate=False))
        return x + self._scaled(y, "scale2")

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return x
        scale = self.param(name, nn.initializers.constant(_FIRST_SCALE), x.shape[-1:])
        return x * scale.astype(x.dtype)


class ClassToken(nn.Module):
    """The class token after layer norm, as a feature map of one position."""

    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, T, D]` to `[B, 1, 1, D]`."""
        return _layer_norm(x[:, None, :1], options=self.options, name="norm")


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Computes `softmax(q k^T / sqrt(d)) v` of each head; the softmax is in float32.

    Args:
      query: `[B, T, heads, d]`.
      key: `[B, T, heads, d]`.
      value: `[B, T, heads, d]`.

    Returns:
      `[B, T, heads, d]` in the dtype of `value`.
    """
    # With the heads in front, both products are batches of plain matrix products, which a CPU computes fast.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5).astype(value.dtype)
    return jnp.swapaxes(weights @ value, 1, 2)


def _layer_norm(x: jax.Array, *, options: LayerOptions, name: str) -> jax.Array:
    return nn.LayerNorm(epsilon=_EPSILON, dtype=options.dtype, use_fast_variance=False, name=name)(x)


def vision_transformer(
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    features: int,
    heads: int,
    patch: int,
    grid: int,
    depth: int = 12,
    registers: int = 0,
    layer_scale: bool = False,
) -> Trunk:
    """Makes a vision transformer with the stages "embed", "block0", "block1", ..., "norm".

    Its feature map is the class token, `[B, 1, 1, features]`. Between the stages are tokens `[B, T, features]`: the
    class token, the registers and the patches. The sides of images must be multiples of `patch`.

    Args:
      options: see `LayerOptions`; padding and initializers are the network's own.
      features: length of a token.
      heads: number of attention heads.
      patch: side of a patch in pixels.
      grid: rows of patches, and columns, for which there are position embeddings.
      depth: number of blocks.
      registers: number of register tokens.
      layer_scale: whether blocks have LayerScale.
    """
    # Without a remainder, "same" adds no padding.
    patches = dataclasses.replace(
        options, padding="same", kernel_init=nn.initializers.lecun_normal(), bias_init=nn.initializers.zeros
    )
    embed = partial(Embedding, features, patch, grid, registers, ANTIALIASED if registers else PLAIN, patches)
    block = partial(nn.remat(Block) if options.remat else Block, heads, layer_scale, options)
    blocks = [(f"block{number}", block) for number in range(depth)]
    return Trunk((("embed", embed), *blocks, ("norm", partial(ClassToken, options))), patch, multiple=patch)
