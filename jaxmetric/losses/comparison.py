"""What every loss over pairs begins with: anchors compared with references, and which of those are alike.

`compare` checks the arguments that these losses share and returns a `Comparison`; a loss is then a formula of its
values and masks, whose sums `jaxmetric.losses.reduction` divides. `between_references` and
`negatives_between_references` are for losses that compare the references with each other, too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric import checks
from jaxmetric.agreement import column_scale, known_labels
from jaxmetric.distances import (
    pairwise_cosine_distance,
    pairwise_cosine_similarity,
    pairwise_dot_product,
    pairwise_euclidean,
    pairwise_snr,
    pairwise_squared_euclidean,
)
from jaxmetric.losses.reduction import LossStats
from jaxmetric.numerics import as_float, safe_divide
from jaxmetric.references import References, own_pairs

_Function: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
# A name, a function of [A, D] and [R, D] that returns [A, R], or an [A, R] array computed beforehand.
Pairwise: TypeAlias = str | _Function | jax.Array

DISTANCES: dict[str, _Function] = {
    "squared_euclidean": pairwise_squared_euclidean,
    "euclidean": pairwise_euclidean,
    "cosine": pairwise_cosine_distance,
    "snr": pairwise_snr,
}
SYMMETRIC_DISTANCES = DISTANCES.keys() - {"snr"}
SIMILARITIES: dict[str, _Function] = {"cosine": pairwise_cosine_similarity, "dot": pairwise_dot_product}


class Comparison(NamedTuple):
    """The anchors of a batch, A of them, against R references.

    Nothing of a masked example is left in it: its embedding is zero and its weight, and all its pairs, too.

    Attributes:
      anchors: `[A, D]`; None if the values were given.
      references: `[R, D]`; None if the values were given.
      values: `[A, R]` distances or similarities, finite if the embeddings are, and 0 where a pair is neither positive
        nor negative; None if the loss asked for neither.
      all_values: `[A, R]`: the same of all pairs of valid examples.
      positives: `[A, R]`: which references are alike; booleans, or the share of the labels that agree, in [0, 1].
      negatives: `[A, R]`: which are not; booleans, or the share of the labels that differ. Neither a positive nor a
        negative is an anchor itself, a masked example, or a pair left out by `pairs`.
      anchor_weights: `[A]`, 0 for a masked example.
      reference_weights: `[R]`, 0 for a masked example.
      anchor_labels: `[A]` (or `[A, T]`).
      reference_labels: `[R]` (or `[R, T]`).
    """

    anchors: jax.Array
    references: jax.Array
    values: jax.Array
    all_values: jax.Array
    positives: jax.Array
    negatives: jax.Array
    anchor_weights: jax.Array
    reference_weights: jax.Array
    anchor_labels: jax.Array
    reference_labels: jax.Array


def compare(
    embeddings: jax.Array | None,
    labels: jax.Array,
    *,
    distance: Pairwise | None = None,
    similarity: Pairwise | None = None,
    references: References | None = None,
    pairs: jax.Array | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    multi_output: bool = False,
    label_weights: Sequence[float] | None = None,
    needs_values: bool = True,
) -> Comparison:
    """Checks the arguments of a loss over pairs and compares the batch with the references, or with itself.

    Args:
      embeddings: `[B, D]` floats; None if `distance` or `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; with `multi_output` also `[B, T]`.
      distance: a name of `DISTANCES`, a function or an array; at most one of `distance` and `similarity` is given.
      similarity: the same of `SIMILARITIES`.
      references: what to compare with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used.
      where: `[B]` booleans, with `multi_output` also `[B, T]`: what is valid.
      weights: `[B]` weights >= 0.
      multi_output: whether positives and negatives are shares of the labels instead of booleans.
      label_weights: T static weights of the labels in those shares.
      needs_values: whether `distance` or `similarity` must be given.

    Returns:
      The comparison.

    Raises:
      ValueError: if a shape does not fit or a name is unknown.
      TypeError: if a dtype does not fit.
    """
    name, pairwise = ("similarity", similarity) if distance is None else ("distance", distance)
    if needs_values and pairwise is None:
        raise TypeError("distance or similarity is None, expected a name, a function or an array")
    matrix = _given_matrix(name, pairwise)
    batch = _check_side(embeddings, labels, where, weights, matrix, 0, multi_output=multi_output, prefix="")
    if references is None:
        others = batch
    else:
        if not isinstance(references, References):
            raise TypeError(f"references is a {type(references).__name__}, expected jaxmetric.References")
        others = _check_side(*references[:4], matrix, 1, multi_output=multi_output, prefix="references.")
        for part in ("labels",) if matrix is not None else ("embeddings", "labels"):
            ours, theirs = getattr(batch, part).shape[1:], getattr(others, part).shape[1:]
            if ours != theirs:
                raise ValueError(f"references.{part} has rows of shape {theirs}, expected {ours} as {part}")
    shape = (batch.labels.shape[0], others.labels.shape[0])
    own = own_pairs(references, *shape)
    _check_pairs(pairs, shape)
    scale = column_scale(batch.labels.shape[1], label_weights, None) if multi_output else None
    column_weights = None if scale is None else jnp.asarray([weight for weight, _ in scale], batch.weights.dtype)
    positives, negatives = _alike_and_not(batch, others, own, pairs, column_weights)
    all_values: Any = None if pairwise is None else _values(name, pairwise, matrix, batch, others, shape)
    compared = (positives + negatives) > 0 if multi_output else positives | negatives
    values: Any = None if pairwise is None else jnp.where(compared, all_values, 0)
    return Comparison(
        batch.embeddings,
        others.embeddings,
        values,
        all_values,
        positives,
        negatives,
        batch.weights,
        others.weights,
        batch.labels if multi_output else batch.labels[:, 0],
        others.labels if multi_output else others.labels[:, 0],
    )


def pair_weights(comparison: Comparison, pairs: jax.Array) -> jax.Array:
    """`[A, R]`: the product of the weights of both members, times `pairs` (positives or negatives)."""
    product = comparison.anchor_weights[:, None] * comparison.reference_weights[None, :]
    return product * pairs.astype(product.dtype)


def weights_of_complete_anchors(comparison: Comparison) -> jax.Array:
    """`[A]`: the anchors' weights, 0 for an anchor without a positive or without a negative."""
    exists = jnp.any(comparison.positives, axis=1) & jnp.any(comparison.negatives, axis=1)
    return jnp.where(exists, comparison.anchor_weights, 0)


def between_references(
    name: str, pairwise: Pairwise, comparison: Comparison, references: References | None
) -> jax.Array:
    """Returns `[R, R]`: the distances or similarities, as `compare` was asked for, among the references."""
    if references is None:
        return comparison.all_values
    if _given_matrix(name, pairwise) is not None:
        raise ValueError(f"{name} is an array, expected a name or a function: references are compared with each other")
    valid = comparison.reference_weights > 0
    return pairwise_values(name, pairwise, comparison.references, comparison.references, valid, valid)


def negatives_between_references(comparison: Comparison) -> jax.Array:
    """Returns `[R, R]` booleans: which valid references are of another class than each reference."""
    labels = comparison.reference_labels
    return (labels[:, None] != labels[None, :]) & (comparison.reference_weights > 0)[None, :]


def pairwise_values(
    name: str, pairwise: Pairwise, x: jax.Array, y: jax.Array, x_valid: jax.Array, y_valid: jax.Array
) -> jax.Array:
    """Returns `[A, R]` of a named or given function, 0 for rows that are not valid.

    In their place the function sees ones and, opposite, minus ones: at zeros, and at equal rows, many have no gradient.
    """
    x, y = jnp.where(x_valid[:, None], x, 1), jnp.where(y_valid[:, None], y, -1)
    values = as_float(_function(name, pairwise)(x, y))
    if values.shape != (x.shape[0], y.shape[0]):
        raise ValueError(f"{name} gives shape {values.shape}, expected {(x.shape[0], y.shape[0])}")
    return jnp.where(x_valid[:, None] & y_valid[None, :], values, 0)


def no_sums(comparison: Comparison) -> LossStats:
    """The sums `[A]` where there are no anchors, or no references for them."""
    return LossStats(*(jnp.zeros_like(comparison.anchor_weights),) * 3)


class _Side(NamedTuple):
    """Checked examples; nothing of a masked one is left in `embeddings`."""

    embeddings: jax.Array  # [N, D]; without columns if the matrix was given instead
    labels: jax.Array  # [N, T]
    known: jax.Array  # [N, T]
    weights: jax.Array  # [N]


def _given_matrix(name: str, pairwise: Pairwise | None) -> jax.Array | None:
    if pairwise is None or isinstance(pairwise, str) or callable(pairwise):
        return None
    matrix = jnp.asarray(pairwise)
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {matrix.dtype}, expected a name, a function or an array of floats")
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {matrix.shape}, expected [B, R]")
    return as_float(matrix)


def _check_side(
    embeddings: jax.Array | None,
    labels: jax.Array,
    where: jax.Array | None,
    weights: jax.Array | None,
    matrix: jax.Array | None,
    axis: int,
    *,
    multi_output: bool,
    prefix: str,
) -> _Side:
    if embeddings is None and matrix is not None:
        rows = jnp.zeros((matrix.shape[axis], 0), matrix.dtype)
    else:
        rows = checks.check_embeddings(embeddings, f"{prefix}embeddings")
    if not multi_output:
        column = checks.check_class_labels(rows, labels, f"{prefix}labels")
        weights = checks.example_weights(rows, where, weights, prefix)
        return _Side(checks.leave_out(rows, weights), column[:, None], weights[:, None] > 0, weights)
    checks.check_rows(rows, **{f"{prefix}labels": labels})
    columns, known = known_labels(labels, where, f"{prefix}labels")
    weights = checks.example_weights(rows, jnp.any(known, axis=1), weights, prefix)
    return _Side(checks.leave_out(rows, weights), columns, known, weights)


def _check_pairs(pairs: jax.Array | None, shape: tuple[int, int]) -> None:
    if pairs is None:
        return
    if jnp.asarray(pairs).dtype != bool:
        raise TypeError(f"pairs has dtype {jnp.asarray(pairs).dtype}, expected bool: a mask {shape}, not indices")
    if np.shape(pairs) != shape:
        raise ValueError(f"pairs has shape {np.shape(pairs)}, expected {shape}: anchors and references")


@jax.jit
def _alike_and_not(
    batch: _Side, others: _Side, own: jax.Array, pairs: jax.Array | None, column_weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    allowed = (batch.weights[:, None] > 0) & (others.weights[None, :] > 0) & ~own
    if pairs is not None:
        allowed &= pairs
    if column_weights is None:
        same = batch.labels[:, 0, None] == others.labels[None, :, 0]
        return allowed & same, allowed & ~same
    agreed = known = jnp.zeros(allowed.shape, column_weights.dtype)
    for t, weight in enumerate(column_weights):
        both = batch.known[:, t, None] & others.known[None, :, t]
        known += jnp.where(both, weight, 0)
        agreed += jnp.where(both & (batch.labels[:, t, None] == others.labels[None, :, t]), weight, 0)
    allowed &= known > 0
    share = safe_divide(agreed, known)
    return jnp.where(allowed, share, 0), jnp.where(allowed, 1 - share, 0)


def _values(
    name: str,
    pairwise: Pairwise,
    matrix: jax.Array | None,
    batch: _Side,
    others: _Side,
    shape: tuple[int, int],
) -> jax.Array:
    if matrix is None:
        return pairwise_values(
            name, pairwise, batch.embeddings, others.embeddings, batch.weights > 0, others.weights > 0
        )
    if matrix.shape != shape:
        raise ValueError(f"{name} has shape {matrix.shape}, expected {shape}: anchors and references")
    return jnp.where((batch.weights[:, None] > 0) & (others.weights[None, :] > 0), matrix, 0)


def _function(name: str, pairwise: Pairwise) -> _Function:
    if not isinstance(pairwise, str):
        return cast(_Function, pairwise)
    functions = DISTANCES if name == "distance" else SIMILARITIES
    if pairwise not in functions:
        raise ValueError(f"{name} is {pairwise!r}, expected one of {', '.join(functions)}, a function or an array")
    return functions[pairwise]
