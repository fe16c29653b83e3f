"""A second set of examples, against which a loss compares those of the batch."""

from typing import NamedTuple

import jax


class References(NamedTuple):
    """What the anchors of a batch are compared with, where that is not the batch itself.

    A gallery for its queries, one view for another, the examples of all devices for those of one, or a memory of past
    batches: `loss(embeddings, labels, references=References(...))`.

    Attributes:
      embeddings: `[R, D]` floats.
      labels: `[R]` or `[R, T]` integers, in the code of the batch's labels.
      where: `[R]` booleans, or `[R, T]` for single missing labels: which are valid; all if None.
      weights: `[R]` weights >= 0; 1 if None.
      own: `[B]` integers: the row at which each example of the batch stands among the references itself, so that it is
        not compared with itself; -1, or None for all, where it does not.
    """

    embeddings: jax.Array
    labels: jax.Array
    where: jax.Array | None = None
    weights: jax.Array | None = None
    own: jax.Array | None = None
