"""Embeds images for evaluation on all devices of all processes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmetric.parallel import across_processes, all_devices, place_rows
from jaxmetric.training.state import TrainState, standard_promotion

Embed = Callable[[TrainState, Sequence[np.ndarray]], np.ndarray]


def make_embed(
    apply_fn: Callable[..., Any], prepare: Callable[[jax.Array], jax.Array], *, batch_size: int = 256
) -> Embed:
    """Makes a function `(state, images) -> [N, D]` that returns embeddings as numpy arrays, in batches of a fixed size.

    If the state has a moving average of the parameters, it is used in their place.

    All processes call it with the same images. Each reads its share of them and gets all embeddings.

    Args:
      apply_fn: a Linen module's `apply`.
      prepare: converts uint8 images `[B, S, S, 3]` to inputs of the encoder, without randomness.
      batch_size: images per batch over all devices, rounded up to a multiple of their number. The last batch is
        padded.

    Returns:
      The function; `images` is any sequence of uint8 images of the same size.
    """

    def embed_batch(params: Any, batch_stats: Any, images: jax.Array) -> jax.Array:
        prepared = prepare(images)
        with standard_promotion():
            return apply_fn({"params": params, "batch_stats": batch_stats}, prepared, train=False)

    mesh = all_devices()
    size = -(-batch_size // mesh.size) * mesh.size
    share = size // mesh.size * len(mesh.local_devices)
    embed_batch = jax.jit(embed_batch, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def embed(state: TrainState, images: Sequence[np.ndarray]) -> np.ndarray:
        count = len(images)
        params, batch_stats = across_processes((state.evaluation_params, state.batch_stats))
        parts = []
        for start in range(jax.process_index() * share, count + jax.process_index() * share, size):
            # The last batch repeats the last image, so that every batch has the compiled shape.
            wanted = np.minimum(np.arange(start, start + share), count - 1)
            batch = np.stack([images[int(index)] for index in wanted])
            parts.append(embed_batch(params, batch_stats, place_rows(batch, mesh)))
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    return embed
