"""A second set of examples that a loss compares with the examples of the batch."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks

# `pairs=` of a loss: which pairs may be used, [A, R]; or, instead of labels, the positives and the negatives.
PairMasks: TypeAlias = ArrayLike | tuple[ArrayLike, ArrayLike]


class References(NamedTuple):
    """The examples that the anchors of a batch are compared with, instead of the batch itself.

    Such as a gallery, a second view, the examples of all devices, or a memory of past batches:
    `loss(embeddings, labels, references=References(...))`.

    Attributes:
      embeddings: `[R, D]` floats.
      labels: `[R]` or `[R, T]` integers, with the same codes as the batch's labels; None if
        `pairs=(positives, negatives)` defines positives and negatives.
      where: `[R]` booleans, or `[R, T]` for single missing labels: which are valid; all if None.
      weights: `[R]` weights >= 0; 1 if None.
      own: `[B]` integers: the row of each example of the batch among the references, so that it is not compared with
        itself; -1 for an example that is not among them. If None, no example is.
    """

    embeddings: ArrayLike | None
    labels: ArrayLike | None
    where: ArrayLike | None = None
    weights: ArrayLike | None = None
    own: ArrayLike | None = None


def check_references(references: Any) -> None:
    """Raises TypeError unless `references` is None or a `References`."""
    if references is not None and not isinstance(references, References):
        raise TypeError(f"references is a {type(references).__name__}, expected jaxmetric.References")


def check_own_rows(references: References, batch: int) -> jax.Array | None:
    """Returns `references.own` as `[B]` integers, or None.

    Raises:
      ValueError: if `references.own` has another shape than `[B]`.
      TypeError: if its dtype is not an integer dtype.
    """
    if references.own is None:
        return None
    own = checks.check_integers("references.own", references.own)
    if own.shape != (batch,):
        raise ValueError(f"references.own has shape {own.shape}, expected {(batch,)} as labels")
    return own


def own_pairs(own: jax.Array | None, batch: int, num_references: int) -> jax.Array:
    """Returns `[B, R]` booleans: which reference is the example itself."""
    if own is None:
        return jnp.zeros((batch, num_references), bool)
    return own[:, None] == jnp.arange(num_references, dtype=own.dtype)[None, :]
