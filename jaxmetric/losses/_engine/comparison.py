"""What every loss over pairs begins with: anchors compared with references, and which of those are alike.

`compare` checks the arguments that these losses share and returns a `Comparison`; a loss is then a formula of its
values and masks, whose sums `jaxmetric.losses._engine.reduction` divides. `between_references` and
`negatives_between_references` are for losses that compare the references with each other, too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric import _checks as checks
from jaxmetric.agreement import column_scale, known_labels
from jaxmetric.distances import (
    pairwise_cosine_distance,
    pairwise_cosine_similarity,
    pairwise_dot_product,
    pairwise_euclidean,
    pairwise_snr,
    pairwise_squared_euclidean,
)
from jaxmetric.losses._engine.reduction import LossStats
from jaxmetric.numerics import as_float, safe_divide
from jaxmetric.references import PairMasks, References, check_references, own_pairs

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
      own: `[A, R]`: which reference is the anchor itself, where it is valid and `pairs` does not leave it out.
      anchor_weights: `[A]`, 0 for a masked example.
      reference_weights: `[R]`, 0 for a masked example.
      anchor_labels: `[A]` (or `[A, T]`); zeros where masks were given in place of labels.
      reference_labels: `[R]` (or `[R, T]`); likewise.
    """

    anchors: jax.Array
    references: jax.Array
    values: jax.Array
    all_values: jax.Array
    positives: jax.Array
    negatives: jax.Array
    own: jax.Array
    anchor_weights: jax.Array
    reference_weights: jax.Array
    anchor_labels: jax.Array
    reference_labels: jax.Array


def compare(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    distance: Pairwise | None = None,
    similarity: Pairwise | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    multi_output: bool = False,
    label_weights: Sequence[float] | None = None,
    needs_values: bool = True,
    needs_labels: bool = False,
) -> Comparison:
    """Checks the arguments of a loss over pairs and compares the batch with the references, or with itself.

    Args:
      embeddings: `[B, D]` floats; None if `distance` or `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; with `multi_output` also `[B, T]`; None if `pairs` is two masks.
      distance: a name of `DISTANCES`, a function or an array; at most one of `distance` and `similarity` is given.
      similarity: the same of `SIMILARITIES`.
      references: what to compare with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; or, with labels None, the positives and the negatives. With
        `multi_output` these two may also be floats, the shares in [0, 1] by which a pair is alike and different.
      where: `[B]` booleans, with `multi_output` also `[B, T]`: what is valid.
      weights: `[B]` weights >= 0.
      multi_output: whether positives and negatives are shares of the labels instead of booleans.
      label_weights: T static weights of the labels in those shares.
      needs_values: whether `distance` or `similarity` must be given.
      needs_labels: whether the loss cannot do with masks in place of labels.

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
    _check_labels_or_masks(labels, references, pairs, needs_labels)
    batch = _check_side(embeddings, labels, where, weights, matrix, 0, multi_output=multi_output, prefix="")
    others = batch if references is None else _check_references(references, batch, matrix, multi_output)
    shape = (batch.labels.shape[0], others.labels.shape[0])
    allowed, own = _allowed_and_own(batch, others, own_pairs(references, *shape))
    contradictory = None
    if isinstance(pairs, tuple):
        if label_weights is not None:
            raise ValueError("label_weights weighs columns of labels, and labels is None")
        *masks, contradictory = _check_masks(pairs, shape, batch.weights.dtype if multi_output else bool)
        positives, negatives = (jnp.where(allowed, mask, jnp.zeros_like(mask)) for mask in masks)
    else:
        if pairs is not None:
            usable = _check_pairs("pairs", pairs, shape)
            allowed, own = allowed & usable, own & usable
        scale = column_scale(batch.labels.shape[1], label_weights, None) if multi_output else None
        column_weights = None if scale is None else jnp.asarray([weight for weight, _ in scale], batch.weights.dtype)
        positives, negatives = _alike_and_not(batch, others, allowed, column_weights)
    all_values: Any = None if pairwise is None else _values(name, pairwise, matrix, batch, others, shape)
    if all_values is not None and contradictory is not None:
        all_values = jnp.where(contradictory & allowed, jnp.nan, all_values)
    compared = (positives + negatives) > 0 if multi_output else positives | negatives
    values: Any = None if pairwise is None else jnp.where(compared, all_values, 0)
    return Comparison(
        batch.embeddings,
        others.embeddings,
        values,
        all_values,
        positives,
        negatives,
        own,
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


class TripletDistances(NamedTuple):
    """The distances within N given triplets of an anchor, a positive and a negative.

    Attributes:
      near: `[N]`, of anchors and positives.
      far: `[N]`, of anchors and negatives.
      between: `[N]`, of positives and negatives; None if they were not asked for.
      weights: `[N]`: the product of the members' weights, 0 where there is no triplet.
    """

    near: jax.Array
    far: jax.Array
    between: jax.Array | None
    weights: jax.Array


def compare_triplets(
    embeddings: jax.Array | None,
    triplets: jax.Array,
    *,
    distance: Pairwise,
    references: References | None,
    where: jax.Array | None,
    weights: jax.Array | None,
    between: bool,
) -> TripletDistances:
    """Checks the arguments of a loss over given triplets `[N, 3]` and returns their distances.

    Rows with a negative index are left out. A concrete index beyond the rows, or an example that occurs twice in a
    triplet, is an error; traced, the first gives NaN and the second is left out.
    """
    matrix = _given_matrix("distance", distance)
    check_references(references)
    if references is not None and references.labels is not None:
        raise ValueError("references.labels and triplets are both given, expected one of them")
    batch = _check_side(embeddings, None, where, weights, matrix, 0, multi_output=False, prefix="")
    others = batch if references is None else _check_references(references, batch, matrix, False)
    if between and matrix is not None and references is not None:
        raise ValueError("distance is an array, expected a name or a function: references are compared with each other")
    sizes = (batch.weights.size, others.weights.size, others.weights.size)
    index, exists, inside = _check_triplets(triplets, sizes, within_batch=references is None)
    members = [side.embeddings[rows] for side, rows in zip((batch, others, others), index, strict=True)]
    (of_anchor, of_positive, of_negative) = (
        side.weights[rows] for side, rows in zip((batch, others, others), index, strict=True)
    )
    weight = jnp.where(exists, of_anchor * of_positive * of_negative, 0)

    def of_pair(x: jax.Array, y: jax.Array, valid: jax.Array) -> jax.Array:
        return pairwise_values("distance", distance, x[None], y[None], valid[None], valid[None])[0, 0]

    def distances(first: int, second: int) -> jax.Array:
        if matrix is None:
            values = jax.vmap(of_pair)(members[first], members[second], weight > 0)
        else:
            values = matrix[index[first], index[second]]
        return jnp.where(weight > 0, jnp.where(inside, values, jnp.nan), 0)

    return TripletDistances(distances(0, 1), distances(0, 2), distances(1, 2) if between else None, weight)


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
    matrix = checks.check_array(name, pairwise, "a name, a function or an array of floats")
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {matrix.dtype}, expected a name, a function or an array of floats")
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {matrix.shape}, expected [B, R]")
    return as_float(matrix)


def _check_labels_or_masks(
    labels: jax.Array | None, references: References | None, pairs: PairMasks | None, needs_labels: bool
) -> None:
    """Raises unless what is alike is said once: by labels on every side, or by two masks."""
    check_references(references)
    sides = {"labels": labels} if references is None else {"labels": labels, "references.labels": references.labels}
    for name, side in sides.items():
        if side is None and needs_labels:
            raise TypeError(f"{name} is None, expected integers: this loss, as called, compares classes")
        if side is None and not isinstance(pairs, tuple):
            raise TypeError(f"{name} is None, expected integers, or pairs=(positives, negatives) in place of labels")
        if side is not None and isinstance(pairs, tuple):
            raise ValueError(f"{name} and pairs=(positives, negatives) are both given, expected one of them")


def _check_references(references: References, batch: _Side, matrix: jax.Array | None, multi_output: bool) -> _Side:
    others = _check_side(*references[:4], matrix, 1, multi_output=multi_output, prefix="references.")
    for part in ("labels",) if matrix is not None else ("embeddings", "labels"):
        ours, theirs = getattr(batch, part).shape[1:], getattr(others, part).shape[1:]
        if ours != theirs:
            raise ValueError(f"references.{part} has rows of shape {theirs}, expected {ours} as {part}")
    return others


def _check_side(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
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
    if labels is None:
        labels = jnp.zeros(rows.shape[0], jnp.int32)
    if not multi_output:
        column = checks.check_class_labels(rows, labels, f"{prefix}labels")
        weights = checks.example_weights(rows, where, weights, prefix)
        return _Side(checks.leave_out(rows, weights), column[:, None], weights[:, None] > 0, weights)
    labels = checks.check_labels(f"{prefix}labels", labels)
    checks.check_rows(rows, **{f"{prefix}labels": labels})
    columns, known = known_labels(labels, where, f"{prefix}labels")
    weights = checks.example_weights(rows, jnp.any(known, axis=1), weights, prefix)
    return _Side(checks.leave_out(rows, weights), columns, known, weights)


def _check_pairs(name: str, mask: Any, shape: tuple[int, int]) -> jax.Array:
    mask = checks.check_booleans(name, mask, f": a mask {shape}, not indices")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {mask.shape}, expected {shape}: anchors and references")
    return mask


def _check_triplets(
    triplets: jax.Array, sizes: tuple[int, int, int], *, within_batch: bool
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The rows `[N]` of anchors, positives and negatives, which triplets exist, and which point at rows there are."""
    if isinstance(triplets, tuple):
        triplets = jnp.stack([checks.check_integers(f"triplets[{i}]", rows) for i, rows in enumerate(triplets)], axis=1)
    array = checks.check_integers("triplets", triplets)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"triplets has shape {array.shape}, expected [N, 3]: anchors, positives and negatives")
    anchors, positives, negatives = array.T
    repeated = (positives == negatives) | (within_batch & ((anchors == positives) | (anchors == negatives)))
    exists = jnp.all(array >= 0, axis=1)
    if not isinstance(array, jax.core.Tracer):
        for size, column in zip(sizes, np.asarray(array).T, strict=True):
            if column.size and column.max() >= size:
                raise ValueError(f"triplets has the row {column.max()}, expected rows below {size}, or -1 for none")
        if wrong := np.asarray(array)[np.asarray(exists & repeated)].tolist():
            raise ValueError(f"triplets has {wrong[0]}, expected three different examples, or -1 for none")
    exists &= ~repeated
    inside = jnp.all(array < jnp.asarray(sizes, array.dtype)[None, :], axis=1)
    rows = [jnp.clip(column, 0, max(size - 1, 0)) for size, column in zip(sizes, array.T, strict=True)]
    return rows, exists, inside


def _check_masks(
    masks: tuple[jax.Array, jax.Array], shape: tuple[int, int], dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The positives and the negatives, as booleans or as shares, and which pairs cannot be what both say.

    Where these are concrete, there are none: they are an error.
    """
    if len(masks) != 2:
        raise ValueError(f"pairs is a tuple of {len(masks)}, expected one mask, or two: (positives, negatives)")
    check = _check_pairs if dtype is bool else _check_shares
    positives, negatives = (check(f"pairs[{i}]", mask, shape).astype(dtype) for i, mask in enumerate(masks))
    if dtype is bool:
        contradictory = positives & negatives
    else:
        contradictory = ~((positives >= 0) & (negatives >= 0) & (positives + negatives <= 1 + 1e-5))
        positives, negatives = (jnp.where(contradictory, 1, shares) for shares in (positives, negatives))
    if not isinstance(contradictory, jax.core.Tracer) and np.any(contradictory):
        raise ValueError(f"pairs has {np.sum(contradictory)} pairs that are positives and negatives, expected either")
    return positives, negatives, contradictory


def _check_shares(name: str, shares: Any, shape: tuple[int, int]) -> jax.Array:
    array = checks.check_array(name, shares, "bool, or shares in [0, 1] as floats")
    if array.dtype == bool:
        return _check_pairs(name, array, shape)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        dtype = checks.given_dtype(shares, array)
        raise TypeError(f"{name} has dtype {dtype}, expected bool, or shares in [0, 1] as floats")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}: anchors and references")
    if not isinstance(array, jax.core.Tracer) and not np.all((np.asarray(array) >= 0) & (np.asarray(array) <= 1)):
        raise ValueError(f"{name} goes beyond [0, 1], expected the shares by which pairs are alike and different")
    return jax.lax.stop_gradient(array)


@jax.jit
def _allowed_and_own(batch: _Side, others: _Side, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`[A, R]`: which pairs of valid examples there are, and which are of an example with itself."""
    valid = (batch.weights[:, None] > 0) & (others.weights[None, :] > 0)
    return valid & ~own, valid & own


@jax.jit
def _alike_and_not(
    batch: _Side, others: _Side, allowed: jax.Array, column_weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
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
