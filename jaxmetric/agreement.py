"""Counts the labels on which two examples agree, and bounds their disagreement if labels are missing.

`label_agreement` returns the count. The losses use its complement: `disagreement_levels` numbers the distinct values of
the disagreement phi of a pair (0 = agrees on everything), and returns the lowest and the highest level that each pair
can have. The two differ only if a label is missing.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmetric import _checks as checks

MAX_LEVELS = 4096
_FEW_EDGES = 64


class PairLevels(NamedTuple):
    """The level of disagreement of each pair, known up to the interval `[lower, upper]` of levels."""

    lower: jax.Array
    upper: jax.Array
    num_levels: int


def label_agreement(
    labels: ArrayLike,
    other: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    other_where: ArrayLike | None = None,
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | bool | None] | None = None,
) -> jax.Array:
    """Counts on how many of the T labels each pair of examples agrees.

    A column t adds `w_t` if the two labels are equal and 0 if they differ; an ordinal column adds `w_t (1 - |a - b|)`.
    A column adds nothing if one of the two labels is missing.

    Args:
      labels: `[A]` or `[A, T]` integers.
      other: `[B]` or `[B, T]` integers; `labels` itself if not given.
      where: `[A]` or `[A, T]` booleans, False where an example or a single label is missing.
      other_where: the same for `other`.
      label_weights: T weights `w_t` > 0; 1 if not given.
      ordinal: T entries: `None`, `0` or `False` for a categorical column; for an ordinal one `True`, or the
        largest possible |a - b| (which losses need), at which larger differences are clipped.

    Returns:
      `[A, B]`: int32 counts, or float32 sums of weights if `label_weights` is given. An ordinal column whose labels
      are more than 1 apart adds a negative number.

    Raises:
      ValueError: if shapes do not fit each other, or T is 0.
      TypeError: if the labels are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> people = jnp.array([[7, 0, 2], [7, 0, 3], [4, 1, 3]])  # identity, gender, age
      >>> label_agreement(people).tolist()
      [[3, 2, 0], [2, 3, 1], [0, 1, 3]]
      >>> label_agreement(people, where=people != 3).tolist()
      [[3, 2, 0], [2, 2, 0], [0, 0, 2]]

    References:
      H. Proença, E. Yaghoubi, P. Alirezazadeh, A Quadruplet Loss for Enforcing Semantically Coherent Embeddings in
      Multi-output Classification Problems, 2020.
    """
    labels, known = known_labels(labels, where)
    if other is None and other_where is not None:
        raise ValueError("other_where marks the valid labels of `other`, which was not given")
    rows, rows_known = (labels, known)
    if other is not None:
        rows, rows_known = filled_where(*check_label_columns("other", other, "other_where", other_where))
    if rows.shape[1] != labels.shape[1]:
        raise ValueError(f"other has {rows.shape[1]} label columns, labels has {labels.shape[1]}")
    scale = column_scale(labels.shape[1], label_weights, ordinal)
    dtype = jnp.int32 if label_weights is None else jnp.float32
    agreement = jnp.zeros((labels.shape[0], rows.shape[0]), dtype)
    for t, (weight, largest) in enumerate(scale):
        difference = _column_disagreement(labels[:, t, None], rows[None, :, t], largest)
        both = known[:, t, None] & rows_known[None, :, t]
        agreement += jnp.where(both, 1 - difference, 0).astype(dtype) * jnp.asarray(weight, dtype)
    return agreement


class Disagreement(NamedTuple):
    """The static options of `disagreement_levels`, which define how labels are compared."""

    agreement: str = "count"
    label_weights: tuple[float, ...] | None = None
    ordinal: tuple[int | None, ...] | None = None


def check_disagreement(
    num_columns: int,
    agreement: str,
    label_weights: Sequence[float] | None,
    ordinal: Sequence[int | None] | None,
) -> Disagreement:
    """Checks the options of a loss for comparing labels of T columns."""
    checks.check_choice("agreement", agreement, ("count", "any"))
    if label_weights is not None or ordinal is not None:
        column_scale(num_columns, label_weights, ordinal)  # raises if they are invalid
    return Disagreement(
        agreement, None if label_weights is None else tuple(label_weights), None if ordinal is None else tuple(ordinal)
    )


def disagreement_levels(
    first: jax.Array,
    second: jax.Array,
    *,
    first_known: jax.Array,
    second_known: jax.Array,
    agreement: str = "count",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | bool | None] | None = None,
) -> PairLevels:
    """Returns the level of disagreement of pairs of label rows, as an interval if labels are missing.

    With `agreement="count"` the levels number the distinct values of phi, the (weighted) sum of the columns'
    disagreements; with `"any"` level 0 is "agrees on everything" and level 1 "does not".

    Args:
      first: `[..., T]` integer labels of the pairs' first members.
      second: `[..., T]` integer labels of their second members.
      first_known: `[..., T]` booleans, False where a label is missing.
      second_known: the same for `second`.
      agreement: `"count"` or `"any"`.
      label_weights: T static weights, see `label_agreement`.
      ordinal: T static entries, see `label_agreement`; an ordinal column needs its largest |a - b|.

    Returns:
      `lower` and `upper` levels, int32 of shape `[...]`, and the static number of levels.
    """
    if agreement not in ("count", "any"):
        raise ValueError(f"agreement is {agreement!r}, expected 'count' or 'any'")
    scale = column_scale(first.shape[-1], label_weights, ordinal)
    dtype = _sum_dtype(scale)
    least = most = jnp.zeros(jnp.broadcast_shapes(first.shape, second.shape)[:-1], dtype)
    for t, (weight, largest) in enumerate(scale):
        if largest is True:
            raise ValueError(
                f"ordinal[{t}] is True, expected the largest |a - b| of the column as an integer: "
                "the levels of disagreement must be known before tracing"
            )
        both = first_known[..., t] & second_known[..., t]
        difference = _column_disagreement(first[..., t], second[..., t], largest)
        known = jnp.where(both, difference, 0).astype(dtype) * jnp.asarray(weight, dtype)
        least += known
        most += jnp.where(both, known, jnp.asarray((largest or 1) * weight, dtype))
    if agreement == "any":
        return PairLevels((least > 0).astype(jnp.int32), (most > 0).astype(jnp.int32), 2)
    values = _distinct_sums(scale)
    if np.array_equal(values, np.arange(len(values))):
        return PairLevels(least.astype(jnp.int32), most.astype(jnp.int32), len(values))
    between = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    lower, upper = (_number_below(between, phi.astype(jnp.float32)) for phi in (least, most))
    return PairLevels(lower, upper, len(values))


def _number_below(edges: np.ndarray, x: jax.Array) -> jax.Array:
    if len(edges) > _FEW_EDGES:
        return jnp.searchsorted(edges, x).astype(jnp.int32)
    # XLA merges these comparisons, which is faster than a search, and much faster where lookups are slow.
    return sum(((x > edge).astype(jnp.int32) for edge in edges), jnp.zeros(x.shape, jnp.int32))


def known_labels(labels: ArrayLike, where: ArrayLike | None, name: str = "labels") -> tuple[jax.Array, jax.Array]:
    """Returns labels as `[B, T]`, and which of them are valid as booleans of that shape.

    Args:
      labels: `[B]` or `[B, T]` integers.
      where: `None`, `[B]` or `[B, T]` booleans.
      name: the name of the labels in error messages.
    """
    return filled_where(*check_label_columns(name, labels, "where", where))


def check_label_columns(
    name: str, labels: Any, where_name: str, where: Any, embeddings: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Returns labels, one row per embedding, as `[B, T]`, and `where` as `[B, 1]` or `[B, T]`, or None."""
    labels = checks.check_integers(name, labels, checks.NUMBER_CLASSES)
    if embeddings is not None:
        checks.check_rows(embeddings, **{name: labels})
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] == 0):
        raise ValueError(f"{name} has shape {labels.shape}, expected [B] or [B, T] with T >= 1")
    if labels.ndim == 1:
        labels = labels[:, None]
    if where is None:
        return labels, None
    where = checks.check_booleans(where_name, where)
    if where.shape not in (labels.shape[:1], labels.shape):
        raise ValueError(
            f"{where_name} has shape {where.shape}, expected {labels.shape[:1]} or {labels.shape} as {name}"
        )
    return labels, where.reshape(labels.shape[0], -1)


def filled_where(labels: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns `[B, T]` labels, and which of them are valid, in that shape."""
    return labels, jnp.ones(labels.shape, bool) if where is None else jnp.broadcast_to(where, labels.shape)


def column_scale(
    num_columns: int,
    label_weights: Sequence[float] | None,
    ordinal: Sequence[int | bool | None] | None,
) -> list[tuple[float, int | bool]]:
    """Returns the weight of each column and its entry of `ordinal` (0 for a categorical column)."""
    weights = [1] * num_columns if label_weights is None else _static_numbers("label_weights", label_weights)
    largest = [0] * num_columns if ordinal is None else _static_numbers("ordinal", ordinal)
    for name, given in (("label_weights", weights), ("ordinal", largest)):
        if len(given) != num_columns:
            raise ValueError(f"{name} has {len(given)} entries, expected one for each of {num_columns} columns")
    with np.errstate(over="ignore"):
        rounded = np.asarray([min(weight, sys.float_info.max) for weight in weights], np.float32)
        if not np.all(np.isfinite(rounded) & (rounded > 0)):
            raise ValueError(f"label_weights is {tuple(weights)}, expected finite numbers above 0 in float32")
    weights = [int(weight) if isinstance(weight, (int, np.integer)) else float(weight) for weight in weights]
    if not all(
        entry is True or (entry >= 0 and (isinstance(entry, int) or float(entry).is_integer())) for entry in largest
    ):
        raise ValueError(f"ordinal is {tuple(largest)}, expected the largest |a - b| of a column, or 0")
    return list(zip(weights, largest, strict=True))


def _static_numbers(name: str, given: Any) -> list[Any]:
    """Returns the entries of `label_weights` or `ordinal`, with 0 for None."""
    entries = [
        0 if entry is None and name == "ordinal" else entry
        for entry in checks.check_static_sequence(name, given, "a sequence of static numbers")
    ]
    if not all(isinstance(entry, (bool, int, float, np.integer, np.floating)) for entry in entries):
        raise TypeError(f"{name} is {checks.shown(entries)}, expected static numbers (a tuple, not a traced array)")
    return entries


def _sum_dtype(scale: list[tuple[float, int | bool]]) -> np.dtype:
    """Returns int32 if it holds every weighted sum of disagreements exactly, else float32."""
    whole = all(isinstance(weight, int) for weight, _ in scale)
    largest_sum = sum(weight * (largest or 1) for weight, largest in scale)
    return np.dtype(np.int32 if whole and largest_sum <= np.iinfo(np.int32).max else np.float32)


def _column_disagreement(a: jax.Array, b: jax.Array, largest: int | bool) -> jax.Array:
    if not largest:
        return (a != b).astype(jnp.int32)
    difference = jnp.maximum(a, b) - jnp.minimum(a, b)
    # The difference of two integers always fits the unsigned type of their size.
    distance = difference.astype(f"uint{8 * difference.dtype.itemsize}")
    limit = np.iinfo(np.int32).max
    most = limit if largest is True else min(int(largest), limit)
    return jnp.minimum(distance, most).astype(jnp.int32)


def _distinct_sums(scale: list[tuple[float, int | bool]]) -> np.ndarray:
    """Returns all possible values of the weighted sum of the columns' disagreements, ascending."""
    sums = np.zeros(1)
    for weight, largest in scale:
        if largest >= MAX_LEVELS:
            raise ValueError(f"ordinal has the entry {largest}, expected a largest |a - b| below {MAX_LEVELS}")
        steps = np.arange((largest or 1) + 1) * weight
        sums = np.sort((sums[:, None] + steps[None, :]).ravel())
        tolerance = 1e-6 * sums[-1]
        sums = sums[np.concatenate([[True], np.diff(sums) > tolerance])]
        if len(sums) > MAX_LEVELS:
            raise ValueError(
                f"label_weights and ordinal make more than {MAX_LEVELS} levels of disagreement; "
                "expected weights with few distinct sums, such as small integers"
            )
    return sums
