"""Which examples of a batch make a hard tuple: indices into the batch, chosen from its distances.

Distances are `[A, B]` from anchors to references; `positives` and `negatives` are `[A, B]` masks. Nothing here is
differentiated: a loss gathers its own distances at the indices returned.
"""

import jax
import jax.numpy as jnp


def hardest_positives(distances: jax.Array, positives: jax.Array) -> jax.Array:
    """Returns `[A]`: for each anchor the index of its farthest positive (0 if it has none)."""
    return jnp.argmax(jnp.where(positives, distances, -jnp.inf), axis=1)


def hardest_negatives(distances: jax.Array, negatives: jax.Array) -> jax.Array:
    """Returns `[A]`: for each anchor the index of its nearest negative (0 if it has none)."""
    return jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1)


def semi_hard_negatives(distances: jax.Array, negatives: jax.Array) -> jax.Array:
    """Returns `[A, B]`: for each anchor and reference the index of the nearest negative that is farther than it.

    Where no negative is farther, the farthest negative; meaningless for an anchor without negatives, or with one at a
    distance of NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.0, 2.0, 1.0, 3.0]])
      >>> semi_hard_negatives(distances, jnp.array([[False, False, True, True]])).tolist()
      [[2, 3, 3, 3]]

    References:
      F. Schroff, D. Kalenichenko, J. Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR
      2015.
    """

    def of_anchor(distance: jax.Array, negative: jax.Array) -> jax.Array:
        ascending, index = jax.lax.sort((jnp.where(negative, distance, jnp.inf), jnp.arange(distance.size)), num_keys=1)
        farther = jnp.searchsorted(ascending, distance, side="right")
        return index[jnp.clip(farther, 0, jnp.sum(negative) - 1)]

    return jax.vmap(of_anchor)(distances, negatives)
