"""A second set of examples, against which a loss compares those of the batch."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric import _checks as checks

# `pairs=` of a loss: which pairs may be used, [A, R]; or, in place of labels, which are positives and which negatives.
PairMasks: TypeAlias = jax.Array | tuple[jax.Array, jax.Array]


class References(NamedTuple):
    """What the anchors of a batch are compared with, where that is not the batch itself.

    A gallery for its queries, one view for another, the examples of all devices for those of one, or a memory of past
    batches: `loss(embeddings, labels, references=References(...))`.

    Attributes:
      embeddings: `[R, D]` floats.
      labels: `[R]` or `[R, T]` integers, in the code of the batch's labels; None where `pairs=(positives, negatives)`
        says what is alike.
      where: `[R]` booleans, or `[R, T]` for single missing labels: which are valid; all if None.
      weights: `[R]` weights >= 0; 1 if None.
      own: `[B]` integers: the row at which each example of the batch stands among the references itself, so that it is
        not compared with itself; -1, or None for all, where it does not.
    """

    embeddings: jax.Array
    labels: jax.Array | None
    where: jax.Array | None = None
    weights: jax.Array | None = None
    own: jax.Array | None = None


def check_references(references: References | None) -> None:
    """Raises TypeError for anything else."""
    if references is not None and not isinstance(references, References):
        raise TypeError(f"references is a {type(references).__name__}, expected jaxmetric.References")


def own_pairs(references: References | None, batch: int, num_references: int) -> jax.Array:
    """Returns `[B, R]` booleans: which reference is the example itself; within a batch the diagonal.

    Raises:
      ValueError: if `references.own` has another shape than `[B]`.
      TypeError: if it has no integer dtype.
    """
    if references is None:
        own = jnp.arange(batch)
    elif references.own is None:
        own = jnp.full(batch, -1)
    else:
        own = checks.check_integers("references.own", references.own)
        if own.shape != (batch,):
            raise ValueError(f"references.own has shape {own.shape}, expected {(batch,)} as labels")
    return own[:, None] == jnp.arange(num_references, dtype=own.dtype)[None, :]
