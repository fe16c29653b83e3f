"""The first and last steps of every loss over pairs: comparing anchors with references, and reducing losses.

`check_pairs` checks the arguments that these losses share and returns a `PairBatch`. `pair_loss` is one compiled
program: it computes a `Comparison` of the batch, applies the formula of a loss to its values and masks, and divides the
sums. `jaxmetric.losses._engine.given_triplets` handles triplets that the caller lists.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxmetric import _checks as checks
from jaxmetric.agreement import check_label_columns, column_scale, filled_where
from jaxmetric.distances import (
    pairwise_cosine_distance,
    pairwise_cosine_similarity,
    pairwise_dot_product,
    pairwise_euclidean,
    pairwise_snr,
    pairwise_squared_euclidean,
)
from jaxmetric.losses._engine.reduction import LossResult, LossStats, reduce_anchors
from jaxmetric.losses._engine.types import Distance, PairwiseFunction, Similarity
from jaxmetric.numerics import as_float, safe_divide
from jaxmetric.references import PairMasks, References, check_own_rows, check_references, own_pairs

P = ParamSpec("P")

FUNCTIONS: dict[str, dict[str, PairwiseFunction]] = {
    "distance": {
        "squared_euclidean": pairwise_squared_euclidean,
        "euclidean": pairwise_euclidean,
        "cosine": pairwise_cosine_distance,
        "snr": pairwise_snr,
    },
    "similarity": {"cosine": pairwise_cosine_similarity, "dot": pairwise_dot_product},
}
SYMMETRIC_DISTANCES = FUNCTIONS["distance"].keys() - {"snr"}


class Examples(NamedTuple):
    """Checked examples, N of them.

    Attributes:
      embeddings: `[N, D]`; D is 0 if the values of all pairs were given instead.
      labels: `[N, T]`; zeros if masks were given instead of labels.
      where: `[N, 1]` or `[N, T]` booleans: which labels are valid; all if None.
      weights: `[N]` weights >= 0; 1 if None.
    """

    embeddings: jax.Array
    labels: jax.Array
    where: jax.Array | None
    weights: jax.Array | None

    @property
    def size(self) -> int:
        """The number of examples, N."""
        return self.embeddings.shape[0]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["examples", "references", "own", "pairs", "contradictory", "values", "between"],
    meta_fields=["function", "compares_references", "label_weights", "multi_output", "reduction", "has_aux"],
)
@dataclasses.dataclass(frozen=True)
class PairBatch:
    """The checked arguments that all losses over pairs share.

    Attributes:
      examples: the batch, whose A examples are the anchors.
      references: the R examples that the anchors are compared with; the batch itself if None.
      own: `[A]`: the row of each anchor among the references, -1 if it is not among them; None if no anchor is.
      pairs: `[A, R]` booleans: which pairs may be used; or two masks, positives and negatives, instead of labels; or
        None.
      contradictory: `[A, R]`: the pairs on which the two masks in `pairs` contradict each other; None without such
        masks.
      values: `[A, R]` distances or similarities that were given, or that a given function returned; None otherwise.
      between: `[R, R]`: the same among the references, if a loss needs them; None otherwise.
      function: the distance or similarity to compute; None if the values were given.
      compares_references: whether a loss needs the values between references.
      label_weights: T weights of the labels.
      multi_output: whether pairs are positive with the share of the labels that agree.
      reduction: how to reduce.
      has_aux: whether to also return the stats.
    """

    examples: Examples
    references: Examples | None
    own: jax.Array | None
    pairs: jax.Array | tuple[jax.Array, jax.Array] | None
    contradictory: jax.Array | None
    values: jax.Array | None
    between: jax.Array | None
    function: tuple[str, str] | None
    compares_references: bool
    label_weights: tuple[float, ...] | None
    multi_output: bool
    reduction: str
    has_aux: bool


class Comparison(NamedTuple):
    """The A anchors of a batch compared with R references.

    Masked examples are cleared: their embeddings, weights and pairs are zero.

    Attributes:
      anchors: `[A, D]`; D is 0 if the values were given.
      references: `[R, D]`; the same.
      values: `[A, R]` distances or similarities, finite if the embeddings are, and 0 for a pair that is neither
        positive nor negative; all 0 for a loss that needs neither.
      all_values: `[A, R]`: the same for all pairs of valid examples.
      between: `[R, R]`: the same among the references; None unless the loss needs it.
      positives: `[A, R]`: which references are positives; booleans, or the share of the labels that agree, in [0, 1].
      negatives: `[A, R]`: which are negatives; booleans, or the share of the labels that differ. The anchor itself,
        masked examples and pairs excluded by `pairs` are neither positive nor negative.
      own: `[A, R]`: which reference is the anchor itself, if it is valid and `pairs` does not exclude it.
      anchor_weights: `[A]`, 0 for a masked example.
      reference_weights: `[R]`, 0 for a masked example.
      anchor_labels: `[A]` (or `[A, T]`); zeros if masks were given instead of labels.
      reference_labels: `[R]` (or `[R, T]`); the same.
    """

    anchors: jax.Array
    references: jax.Array
    values: jax.Array
    all_values: jax.Array
    between: jax.Array | None
    positives: jax.Array
    negatives: jax.Array
    own: jax.Array
    anchor_weights: jax.Array
    reference_weights: jax.Array
    anchor_labels: jax.Array
    reference_labels: jax.Array


def pair_loss(
    formula: Callable[Concatenate[Comparison, P], LossStats], batch: PairBatch, *hyper: P.args, **options: P.kwargs
) -> LossResult:
    """Returns a loss over pairs, computed by one compiled program.

    Args:
      formula: a module-level function that sums the losses of each anchor, `[A]`.
      batch: the checked arguments.
      *hyper: hyper-parameters of the formula, which may be traced.
      **options: static hyper-parameters.
    """
    return _reduced(batch, hyper, formula=formula, options=tuple(options.items()))


@partial(jax.jit, static_argnames=("formula", "options"))
def _reduced(
    batch: PairBatch, hyper: tuple[Any, ...], *, formula: Callable[..., LossStats], options: tuple[tuple[str, Any], ...]
) -> LossResult:
    loss, stats = reduce_anchors(formula(compare(batch), *hyper, **dict(options)), batch.reduction)
    return (loss, stats) if batch.has_aux else loss


# --- checks -----------------------------------------------------------------------------------------------------------


def check_pairs(
    embeddings: ArrayLike | None,
    labels: ArrayLike | None,
    references: References | None,
    pairs: PairMasks | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: str,
    has_aux: bool,
    *,
    distance: Distance | None = None,
    similarity: Similarity | None = None,
    label_weights: Sequence[float] | None = None,
    multi_output: bool = False,
    needs_values: bool = True,
    needs_labels: bool = False,
    between: bool = False,
    unreduced: bool = True,
) -> PairBatch:
    """Checks the arguments that losses over pairs share.

    Args:
      embeddings: `[B, D]` floats; None if `distance` or `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; with `multi_output` also `[B, T]`; None if `pairs` is two masks.
      references: the examples to compare with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; or, if labels is None, the positives and the negatives. With
        `multi_output` these two may also be floats: the shares in [0, 1] to which a pair is positive and negative.
      where: `[B]` booleans, with `multi_output` also `[B, T]`: which examples or labels are valid.
      weights: `[B]` weights >= 0.
      reduction: the name of a reduction.
      has_aux: whether to also return stats.
      distance: a name, a function or an array; at most one of `distance` and `similarity` is given.
      similarity: the same.
      label_weights: T static weights of the labels in the shares of `multi_output`.
      multi_output: whether positives and negatives are shares of the labels instead of booleans.
      needs_values: whether `distance` or `similarity` must be given.
      needs_labels: whether the loss requires labels and does not accept masks instead.
      between: whether the loss also needs the values between references.
      unreduced: whether the loss has `reduction="none"`.

    Raises:
      ValueError: if a shape does not fit or a name is unknown.
      TypeError: if a dtype does not fit.
    """
    checks.check_result(reduction, has_aux, unreduced=unreduced)
    name, pairwise = ("similarity", similarity) if distance is None else ("distance", distance)
    if pairwise is None and needs_values:
        raise TypeError("distance or similarity is None, expected a name, a function or an array")
    named = isinstance(pairwise, str)
    matrix = None if pairwise is None or named or callable(pairwise) else check_matrix(name, pairwise)
    if named:
        named_function(name, cast(str, pairwise))
    if labels is None or references is not None or isinstance(pairs, tuple):
        _check_labels_or_masks(labels, references, pairs, needs_labels)
    examples = check_examples(
        embeddings, labels, where, weights, multi_output=multi_output, matrix=matrix, unlabeled=True
    )
    others = own = contradictory = None
    masks: jax.Array | tuple[jax.Array, jax.Array] | None = None
    if references is not None:
        others = check_reference_examples(references, examples, matrix, multi_output=multi_output)
        own = check_own_rows(references, examples.size)
    shape = examples.size, (others or examples).size
    if isinstance(pairs, tuple):
        if label_weights is not None:
            raise ValueError("label_weights weighs columns of labels, and labels is None")
        positives, negatives, contradictory = _check_masks(
            pairs, shape, examples.embeddings.dtype if multi_output else bool
        )
        masks = positives, negatives
    elif pairs is not None:
        masks = _check_pair_mask("pairs", pairs, shape)
    if multi_output and label_weights is not None:
        column_scale(examples.labels.shape[1], label_weights, None)  # raises if they are invalid
    if matrix is not None and matrix.shape != shape:
        raise ValueError(f"{name} has shape {matrix.shape}, expected {shape}: anchors and references")
    batch = PairBatch(
        examples,
        others,
        own,
        masks,
        contradictory,
        matrix,
        None,
        (name, cast(str, pairwise)) if named else None,
        between,
        None if label_weights is None else tuple(label_weights),
        multi_output,
        reduction,
        has_aux,
    )
    if between and matrix is not None and references is not None:
        raise ValueError(f"{name} is an array, expected a name or a function: references are compared with each other")
    return _evaluate_function(batch, name, pairwise) if callable(pairwise) else batch


def check_graded_pairs(
    embeddings: ArrayLike | None,
    labels: ArrayLike | None,
    references: References | None,
    pairs: PairMasks | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: str,
    has_aux: bool,
    label_weights: Sequence[float] | None,
    *,
    distance: Distance | None = None,
    similarity: Similarity | None = None,
) -> PairBatch:
    """Checks the arguments of a loss whose pairs are positive with the share of the `[B, T]` labels that agree."""
    return check_pairs(
        embeddings,
        labels,
        references,
        pairs,
        where,
        weights,
        reduction,
        has_aux,
        distance=distance,
        similarity=similarity,
        label_weights=label_weights,
        multi_output=True,
    )


def named_function(name: str, pairwise: str) -> PairwiseFunction:
    """Returns the distance or similarity of a name; raises an error that lists the names if there is none."""
    if pairwise not in FUNCTIONS[name]:
        raise ValueError(
            f"{name} is {pairwise!r}, expected one of {', '.join(FUNCTIONS[name])}, a function or an array"
        )
    return FUNCTIONS[name][pairwise]


def check_matrix(name: str, matrix: Any) -> jax.Array:
    """Checks a matrix of distances or similarities that was given instead of a name, and returns it."""
    matrix = checks.check_array(name, matrix, "a name, a function or an array of floats", jnp.floating)
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {matrix.shape}, expected [B, R]")
    return as_float(matrix)


def check_examples(
    embeddings: Any,
    labels: Any,
    where: Any,
    weights: Any,
    *,
    multi_output: bool,
    matrix: jax.Array | None = None,
    axis: int = 0,
    prefix: str = "",
    unlabeled: bool = False,
) -> Examples:
    """Checks the arrays of the batch, or of the references.

    If a `matrix` of pairs is given instead of embeddings, its `axis` enumerates the examples. If `unlabeled` is
    allowed, labels of None become zeros.
    """
    if embeddings is None and matrix is not None:
        rows = jnp.zeros((matrix.shape[axis], 0), matrix.dtype)
    else:
        rows = checks.check_embeddings(embeddings, f"{prefix}embeddings")
    if labels is None and unlabeled:
        labels = jnp.zeros(rows.shape[0], jnp.int32)
    if not multi_output:
        labels = checks.check_class_labels(rows, labels, f"{prefix}labels")[:, None]
        where, weights = checks.check_mask_and_weights(rows, where, weights, prefix)
        return Examples(rows, labels, None if where is None else where[:, None], weights)
    labels, where = check_label_columns(f"{prefix}labels", labels, "where", where, rows)
    if weights is not None:
        has_label = None if where is None else jnp.any(where, axis=1)
        _, weights = checks.check_mask_and_weights(rows, has_label, weights, prefix)
    return Examples(rows, labels, where, weights)


def _check_labels_or_masks(labels: Any, references: References | None, pairs: Any, needs_labels: bool) -> None:
    """Raises unless positives are defined exactly once: by labels on every side, or by two masks."""
    check_references(references)
    sides = {"labels": labels} if references is None else {"labels": labels, "references.labels": references.labels}
    for name, side in sides.items():
        if side is None and needs_labels:
            raise TypeError(f"{name} is None, expected integers: this loss, as called, compares classes")
        if side is None and not isinstance(pairs, tuple):
            raise TypeError(f"{name} is None, expected integers, or pairs=(positives, negatives) in place of labels")
        if side is not None and isinstance(pairs, tuple):
            raise ValueError(f"{name} and pairs=(positives, negatives) are both given, expected one of them")


def check_reference_examples(
    references: References, examples: Examples, matrix: jax.Array | None, *, multi_output: bool
) -> Examples:
    """Checks the references, whose rows must have the form of the batch's rows."""
    others = check_examples(
        *references[:4], multi_output=multi_output, matrix=matrix, axis=1, prefix="references.", unlabeled=True
    )
    for part in ("labels",) if matrix is not None else ("embeddings", "labels"):
        ours, theirs = getattr(examples, part).shape[1:], getattr(others, part).shape[1:]
        if ours != theirs:
            raise ValueError(f"references.{part} has rows of shape {theirs}, expected {ours} as {part}")
    return others


def _check_pair_mask(name: str, mask: Any, shape: tuple[int, int]) -> jax.Array:
    mask = checks.check_booleans(name, mask, f": a mask {shape}, not indices")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {mask.shape}, expected {shape}: anchors and references")
    return mask


def _check_masks(
    masks: tuple[Any, ...], shape: tuple[int, int], dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the positives and the negatives, as booleans or shares, and the pairs on which the two contradict.

    Concrete masks that contradict each other are an error.
    """
    if len(masks) != 2:
        raise ValueError(f"pairs is a tuple of {len(masks)}, expected one mask, or two: (positives, negatives)")
    check = _check_pair_mask if dtype is bool else _check_shares
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
        return _check_pair_mask(name, array, shape)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        dtype = checks.given_dtype(shares, array)
        raise TypeError(f"{name} has dtype {dtype}, expected bool, or shares in [0, 1] as floats")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}: anchors and references")
    if not isinstance(array, jax.core.Tracer) and not np.all((np.asarray(array) >= 0) & (np.asarray(array) <= 1)):
        raise ValueError(f"{name} goes beyond [0, 1], expected the shares by which pairs are alike and different")
    return jax.lax.stop_gradient(array)


# --- the comparison ---------------------------------------------------------------------------------------------------


def compare(batch: PairBatch) -> Comparison:
    """Compares the batch with the references, or with itself."""
    anchors = masked_examples(batch.examples)
    references = anchors if batch.references is None else masked_examples(batch.references)
    size, num_references = anchors.weights.size, references.weights.size
    valid = (anchors.weights > 0)[:, None] & (references.weights > 0)[None, :]
    if batch.references is None:
        own = jnp.eye(size, dtype=bool)
    else:
        own = own_pairs(batch.own, size, num_references)
    allowed, own = valid & ~own, valid & own
    if isinstance(batch.pairs, tuple):
        positives, negatives = (jnp.where(allowed, mask, jnp.zeros_like(mask)) for mask in batch.pairs)
        compared = (positives > 0) | (negatives > 0)
    else:
        if batch.pairs is not None:
            allowed, own = allowed & batch.pairs, own & batch.pairs
        positives, negatives, compared = _positives_and_negatives(batch, anchors, references, allowed)
    all_values = _values(batch, anchors, references, valid)
    if batch.contradictory is not None:
        all_values = jnp.where(batch.contradictory & allowed, jnp.nan, all_values)
    between = batch.between
    if batch.compares_references and between is None:
        between = all_values if batch.references is None else _named_values(batch.function, references, references)
    return Comparison(
        anchors.embeddings,
        references.embeddings,
        jnp.where(compared, all_values, 0),
        all_values,
        between,
        positives,
        negatives,
        own,
        anchors.weights,
        references.weights,
        anchors.labels if batch.multi_output else anchors.labels[:, 0],
        references.labels if batch.multi_output else references.labels[:, 0],
    )


class MaskedExamples(NamedTuple):
    """N examples with masked entries set to zero."""

    embeddings: jax.Array  # [N, D]
    labels: jax.Array  # [N, T]
    known: jax.Array  # [N, T] booleans
    weights: jax.Array  # [N], 0 for an example without any known label

    @property
    def size(self) -> int:
        """The number of examples, N."""
        return self.embeddings.shape[0]


def masked_examples(examples: Examples) -> MaskedExamples:
    """Sets masked entries to zero."""
    labels, known = filled_where(examples.labels, examples.where)
    has_label = None if examples.where is None else jnp.any(known, axis=1)
    weights = checks.masked_weights(examples.embeddings, has_label, examples.weights)
    return MaskedExamples(checks.leave_out(examples.embeddings, weights), labels, known, weights)


def pair_weights(comparison: Comparison, pairs: jax.Array) -> jax.Array:
    """Returns `[A, R]`: the product of the weights of both members, times `pairs` (positives or negatives)."""
    product = comparison.anchor_weights[:, None] * comparison.reference_weights[None, :]
    return product * pairs.astype(product.dtype)


def complete_anchor_weights(comparison: Comparison) -> jax.Array:
    """Returns `[A]`: the anchors' weights, 0 for an anchor without a positive or without a negative."""
    exists = jnp.any(comparison.positives, axis=1) & jnp.any(comparison.negatives, axis=1)
    return jnp.where(exists, comparison.anchor_weights, 0)


def negatives_between_references(comparison: Comparison) -> jax.Array:
    """Returns `[R, R]` booleans: which valid references have another class than each reference."""
    labels = comparison.reference_labels
    return (labels[:, None] != labels[None, :]) & (comparison.reference_weights > 0)[None, :]


def function_values(
    name: str, function: PairwiseFunction, x: jax.Array, y: jax.Array, x_valid: jax.Array, y_valid: jax.Array
) -> jax.Array:
    """Returns the `[A, R]` values of a function of the rows of `x` and `y`, 0 for invalid rows.

    Invalid rows are replaced by ones in `x` and minus ones in `y`, because many functions have no gradient at zeros or
    at equal rows.
    """
    x, y = jnp.where(x_valid[:, None], x, 1), jnp.where(y_valid[:, None], y, -1)
    values = as_float(function(x, y))
    if values.shape != (x.shape[0], y.shape[0]):
        raise ValueError(f"{name} gives shape {values.shape}, expected {(x.shape[0], y.shape[0])}")
    return jnp.where(x_valid[:, None] & y_valid[None, :], values, 0)


def zero_sums(comparison: Comparison) -> LossStats:
    """Returns the sums `[A]` for a comparison without anchors or without references."""
    return LossStats(*(jnp.zeros_like(comparison.anchor_weights),) * 3)


def _evaluate_function(batch: PairBatch, name: str, function: PairwiseFunction) -> PairBatch:
    """Calls a given function outside of the compiled program, which would be recompiled for every new function."""
    anchors = masked_examples(batch.examples)
    references = anchors if batch.references is None else masked_examples(batch.references)
    values = partial(function_values, name, function)
    batch = dataclasses.replace(
        batch,
        values=values(anchors.embeddings, references.embeddings, anchors.weights > 0, references.weights > 0),
    )
    if not batch.compares_references or batch.references is None:
        return batch
    rows, valid = references.embeddings, references.weights > 0
    return dataclasses.replace(batch, between=values(rows, rows, valid, valid))


def _values(batch: PairBatch, anchors: MaskedExamples, references: MaskedExamples, valid: jax.Array) -> jax.Array:
    """Returns the `[A, R]` values of all pairs of valid examples; zeros for a loss that needs none."""
    if batch.values is not None:
        return jnp.where(valid, batch.values, 0)
    if batch.function is None:
        return jnp.zeros(valid.shape, anchors.weights.dtype)
    return _named_values(batch.function, anchors, references)


def _named_values(function: Any, x: MaskedExamples, y: MaskedExamples) -> jax.Array:
    kind, name = function
    return function_values(kind, FUNCTIONS[kind][name], x.embeddings, y.embeddings, x.weights > 0, y.weights > 0)


def _positives_and_negatives(
    batch: PairBatch, anchors: MaskedExamples, references: MaskedExamples, allowed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `[A, R]`: the positives, the negatives, and which pairs are either."""
    if not batch.multi_output:
        same = anchors.labels[:, 0, None] == references.labels[None, :, 0]
        return allowed & same, allowed & ~same, allowed
    scale = column_scale(anchors.labels.shape[1], batch.label_weights, None)
    agreed = known = jnp.zeros(allowed.shape, anchors.weights.dtype)
    for t, (weight, _) in enumerate(scale):
        both = anchors.known[:, t, None] & references.known[None, :, t]
        known += jnp.where(both, jnp.asarray(weight, known.dtype), 0)
        same = both & (anchors.labels[:, t, None] == references.labels[None, :, t])
        agreed += jnp.where(same, jnp.asarray(weight, known.dtype), 0)
    allowed &= known > 0
    share = safe_divide(agreed, known)
    return jnp.where(allowed, share, 0), jnp.where(allowed, 1 - share, 0), allowed
