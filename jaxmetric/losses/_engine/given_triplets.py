"""Triplets that the caller lists instead of labels: their checks and the distances within them."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.comparison import (
    Examples,
    check_examples,
    check_matrix,
    check_reference_examples,
    function_values,
    masked_examples,
    named_function,
)
from jaxmetric.losses._engine.types import Distance, PairwiseFunction
from jaxmetric.references import References, check_references


class TripletDistances(NamedTuple):
    """The distances within N given triplets of an anchor, a positive and a negative.

    Attributes:
      near: `[N]`, between anchors and positives.
      far: `[N]`, between anchors and negatives.
      between: `[N]`, between positives and negatives; None unless requested.
      weights: `[N]`: the product of the members' weights, 0 for rows without a triplet.
    """

    near: jax.Array
    far: jax.Array
    between: jax.Array | None
    weights: jax.Array


def triplet_distances(
    embeddings: ArrayLike | None,
    triplets: Any,
    references: References | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    *,
    distance: Distance,
    between: bool,
) -> TripletDistances:
    """Checks the arguments of a loss over given triplets `[N, 3]` and returns their distances.

    Rows with a negative index are skipped. A concrete index out of range, or an example that occurs twice in a triplet,
    is an error. If the indices are traced, the first gives NaN and the second is skipped.
    """
    matrix = None if isinstance(distance, str) or callable(distance) else check_matrix("distance", distance)
    check_references(references)
    if references is not None and references.labels is not None:
        raise ValueError("references.labels and triplets are both given, expected one of them")
    batch = others = check_examples(embeddings, None, where, weights, multi_output=False, matrix=matrix, unlabeled=True)
    if references is not None:
        others = check_reference_examples(references, batch, matrix, multi_output=False)
    if between and matrix is not None and references is not None:
        raise ValueError("distance is an array, expected a name or a function: references are compared with each other")
    rows = _check_triplets(triplets, batch, others, within_batch=references is None)
    anchors = masked_examples(batch)
    gallery = anchors if references is None else masked_examples(others)
    members = [side.embeddings[index] for side, index in zip((anchors, gallery, gallery), rows.members, strict=True)]
    member_weights = [
        side.weights[index] for side, index in zip((anchors, gallery, gallery), rows.members, strict=True)
    ]
    anchor, positive, negative = member_weights
    weight = jnp.where(rows.exists, anchor * positive * negative, 0)

    def distances(first: int, second: int) -> jax.Array:
        if matrix is None:
            values = _distances_of_rows(distance, members[first], members[second], weight > 0)
        else:
            values = matrix[rows.members[first], rows.members[second]]
        return jnp.where(weight > 0, jnp.where(rows.inside, values, jnp.nan), 0)

    return TripletDistances(distances(0, 1), distances(0, 2), distances(1, 2) if between else None, weight)


def _distances_of_rows(distance: Distance, x: jax.Array, y: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the distances `[N]` of each row of `x` and the same row of `y`."""
    function = named_function("distance", distance) if isinstance(distance, str) else cast(PairwiseFunction, distance)
    values = partial(function_values, "distance", function)
    return jax.vmap(lambda x, y, valid: values(x[None], y[None], valid[None], valid[None])[0, 0])(x, y, valid)


class _Rows(NamedTuple):
    """Checked triplets."""

    members: list[jax.Array]  # [N] anchors, positives and negatives, clipped to valid rows
    exists: jax.Array  # [N]: which rows are triplets
    inside: jax.Array  # [N]: which triplets have all indices in range


def _check_triplets(triplets: Any, batch: Examples, others: Examples, *, within_batch: bool) -> _Rows:
    if isinstance(triplets, tuple):
        triplets = jnp.stack([checks.check_integers(f"triplets[{i}]", rows) for i, rows in enumerate(triplets)], axis=1)
    array = checks.check_integers("triplets", triplets)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"triplets has shape {array.shape}, expected [N, 3]: anchors, positives and negatives")
    sizes = batch.size, others.size, others.size
    anchors, positives, negatives = array.T
    repeated = (positives == negatives) | (within_batch & ((anchors == positives) | (anchors == negatives)))
    exists = jnp.all(array >= 0, axis=1)
    if not isinstance(array, jax.core.Tracer):
        for size, column in zip(sizes, np.asarray(array).T, strict=True):
            if column.size and column.max() >= size:
                raise ValueError(f"triplets has the row {column.max()}, expected rows below {size}, or -1 for none")
        if wrong := np.asarray(array)[np.asarray(exists & repeated)].tolist():
            raise ValueError(f"triplets has {wrong[0]}, expected three different examples, or -1 for none")
    inside = jnp.all(array < jnp.asarray(sizes, array.dtype)[None, :], axis=1)
    members = [jnp.clip(column, 0, max(size - 1, 0)) for size, column in zip(sizes, array.T, strict=True)]
    return _Rows(members, exists & ~repeated, inside)
