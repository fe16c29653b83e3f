"""The first and last steps of every loss with class vectors: checking columns of labels, and reducing losses.

`check_classes` checks the arguments that these losses share and returns a `ClassBatch`. `class_loss` is one compiled
program: it clears masked entries, applies the formula of a loss to each column of labels, and adds up the reduced
losses.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.class_shard import ClassVectors, check_class_vectors, count_classes, gather_class_rows
from jaxmetric.losses._engine.reduction import LossResult, LossStats, each_anchor, reduce_stats
from jaxmetric.numerics import equally_varying

P = ParamSpec("P")
# One value per example (None if the loss has none), and the sums.
ColumnResult: TypeAlias = tuple[jax.Array | None, LossStats]


class CheckedColumn(NamedTuple):
    """One column of labels with the vectors of its classes, checked.

    Attributes:
      labels: `[B]` integers.
      vectors: `[C, D]` or `[C, K, D]`, or a shard of them.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0; 1 if None.
      class_weights: `[C]`; 1 if None.
    """

    labels: jax.Array
    vectors: ClassVectors
    where: jax.Array | None
    weights: jax.Array | None
    class_weights: jax.Array | None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["embeddings", "columns"],
    meta_fields=["several", "per_example", "reduction", "has_aux"],
)
@dataclasses.dataclass(frozen=True)
class ClassBatch:
    """The checked arguments that all losses with class vectors share.

    Attributes:
      embeddings: `[B, D]`.
      columns: the T columns of labels.
      several: whether class vectors were given as a tuple of T.
      per_example: whether the loss has one value per example, which is multiplied by the weight of its class.
      reduction: how to reduce.
      has_aux: whether to also return the stats.
    """

    embeddings: jax.Array
    columns: tuple[CheckedColumn, ...]
    several: bool
    per_example: bool
    reduction: str
    has_aux: bool


class Column(NamedTuple):
    """One column of labels with the vectors of its classes; masked entries are cleared.

    Attributes:
      labels: `[B]` integers; 0 for masked examples.
      vectors: `[C, D]` or `[C, K, D]`, or a shard of them.
      weights: `[B]` weights of the examples, 0 for masked ones.
      class_weights: `[C]`, or None for 1.
    """

    labels: jax.Array
    vectors: ClassVectors
    weights: jax.Array
    class_weights: jax.Array | None

    def is_class(self) -> jax.Array:
        """Returns `[B]`: whether each label is one of the classes."""
        return (self.labels >= 0) & (self.labels < count_classes(self.vectors))


def class_loss(
    formula: Callable[Concatenate[jax.Array, Column, P], ColumnResult],
    batch: ClassBatch,
    *hyper: P.args,
    **options: P.kwargs,
) -> LossResult:
    """Returns a loss with class vectors, computed by one compiled program.

    Args:
      formula: a module-level function that maps embeddings `[B, D]` and a column to a `ColumnResult`.
      batch: the checked arguments.
      *hyper: hyper-parameters of the formula; they may be traced, and are converted to the precision of the embeddings.
      **options: static hyper-parameters.
    """
    return _reduced(batch, hyper, formula=formula, options=tuple(options.items()))


@partial(jax.jit, static_argnames=("formula", "options"))
def _reduced(
    batch: ClassBatch,
    hyper: tuple[Any, ...],
    *,
    formula: Callable[..., ColumnResult],
    options: tuple[tuple[str, Any], ...],
) -> LossResult:
    dtype = batch.embeddings.dtype
    hyper = tuple(None if value is None else jnp.asarray(value, dtype) for value in hyper)
    embeddings, columns, hyper = equally_varying((batch.embeddings, batch.columns, hyper))
    losses: list[Any] = []
    stats = []
    for checked in columns:
        column = _masked_column(embeddings, checked, batch.per_example)
        values, sums = formula(checks.leave_out(embeddings, column.weights), column, *hyper, **dict(options))
        losses.append(values if batch.reduction == "none" else reduce_stats(sums, batch.reduction))
        stats.append(sums)
    loss = sum(losses[1:], start=losses[0])
    sums = jax.tree.map(lambda *each: jnp.stack(each), *stats) if batch.several else stats[0]
    return (loss, sums) if batch.has_aux else loss


def _masked_column(embeddings: jax.Array, column: CheckedColumn, per_example: bool) -> Column:
    labels, vectors, where, weights, class_weights = column
    weights = checks.masked_weights(embeddings, where, weights)
    masked = Column(labels, vectors, weights, class_weights)
    if per_example and class_weights is not None:
        weights = weights * jnp.where(masked.is_class(), gather_class_rows(class_weights, labels), 1)
    return masked._replace(weights=weights, labels=jnp.where(weights > 0, labels, 0))


def per_example_loss(values: jax.Array, column: Column) -> ColumnResult:
    """Returns the result of a column with one loss per example, `[B]`; NaN where a label is not a class."""
    per_example = each_anchor(jnp.where(column.is_class(), values, jnp.nan), column.weights)
    return per_example.total, LossStats(*(jnp.sum(each) for each in per_example))


# --- checks -----------------------------------------------------------------------------------------------------------


class _Options(NamedTuple):
    """The optional arguments with one entry per class or example."""

    class_weights: Any
    where: Any
    weights: Any


def check_classes(
    name: str,
    vectors: Any,
    embeddings: ArrayLike,
    labels: ArrayLike,
    class_weights: Any,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: str,
    has_aux: bool,
    *,
    centers_per_class: bool = False,
    per_example: bool = True,
) -> ClassBatch:
    """Checks the arguments that losses with class vectors share.

    Args:
      name: the loss's name for the class vectors.
      vectors: the class vectors, an array or a shard, or a tuple of T of them.
      embeddings: `[B, D]`.
      labels: `[B]` or `[B, 1]`; `[B, T]` with a tuple of class vectors.
      class_weights: `[C]`, a tuple of T arrays, or None.
      where: `[B]` or `[B, T]` booleans, or None.
      weights: `[B]`, or None.
      reduction: the name of a reduction.
      has_aux: whether to also return stats.
      centers_per_class: whether the class vectors are `[C, K, D]` instead of `[C, D]`.
      per_example: whether the loss has one value per example, and thus `reduction="none"`.

    Raises:
      ValueError: if a shape does not fit or a name is unknown.
      TypeError: if a dtype does not fit.
    """
    checks.check_result(reduction, has_aux, unreduced=per_example)
    embeddings = checks.check_embeddings(embeddings)
    options, num_axes = _Options(class_weights, where, weights), 3 if centers_per_class else 2
    several = isinstance(vectors, (tuple, list))
    if several:
        columns = _check_columns(embeddings, labels, vectors, options, name, num_axes)
    else:
        columns = (_check_column(embeddings, labels, vectors, options, name, num_axes),)
    return ClassBatch(embeddings, columns, several, per_example, reduction, has_aux)


def _check_columns(
    embeddings: jax.Array, labels: Any, vectors: Any, options: _Options, name: str, num_axes: int
) -> tuple[CheckedColumn, ...]:
    """Returns the columns of `labels`, one per entry of a tuple of class vectors."""
    shape, class_weights = (embeddings.shape[0], len(vectors)), options.class_weights
    labels = _concrete(labels, checks.check_integers("labels", labels, checks.NUMBER_CLASSES))
    if not vectors or labels.shape != shape:
        raise ValueError(f"labels has shape {labels.shape}, expected {shape}: a column for each of the {name}")
    if class_weights is None:
        class_weights = [None] * len(vectors)
    if not isinstance(class_weights, (tuple, list)) or len(class_weights) != len(vectors):
        raise ValueError(f"class_weights is {_describe(class_weights)}, expected a tuple of {len(vectors)}, as {name}")
    where = options.where
    where = None if where is None else _concrete(where, checks.check_booleans("where", where))
    if where is not None and where.ndim == 2 and where.shape != shape:
        raise ValueError(f"where has shape {where.shape}, expected {shape} as labels")
    columns = []
    for t, (class_vectors, weight) in enumerate(zip(vectors, class_weights, strict=True)):
        known = where if where is None or where.ndim < 2 else where[:, t]
        column_options = options._replace(class_weights=weight, where=known)
        columns.append(_check_column(embeddings, labels[:, t], class_vectors, column_options, f"{name}[{t}]", num_axes))
    return tuple(columns)


def _concrete(given: Any, checked: jax.Array) -> Any:
    """Keeps NumPy arrays: inside `jit`, JAX arrays made from them are traced, so their range cannot be checked."""
    return given if isinstance(given, np.ndarray) else checked


def _check_column(
    embeddings: jax.Array, labels: Any, vectors: Any, options: _Options, name: str, num_axes: int
) -> CheckedColumn:
    column = checks.check_integers("labels", labels, checks.NUMBER_CLASSES)
    shape, size = column.shape, embeddings.shape[0]
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(f"labels has shape {shape}, expected one column, or {name} as a tuple of {shape[1]} arrays")
    if shape not in ((size,), (size, 1)):
        raise ValueError(f"labels has shape {shape}, expected one column of {size} as embeddings {embeddings.shape}")
    where, weights, class_weights = options.where, options.weights, options.class_weights
    if where is not None or weights is not None:
        where, weights = checks.check_mask_and_weights(embeddings, where, weights)
    vectors = check_class_vectors(name, vectors, num_axes, embeddings.shape[1])
    num_classes = count_classes(vectors)
    if not any(isinstance(array, jax.core.Tracer) for array in (labels, options.where, options.weights)):
        counted = None if options.where is None else np.array(options.where).reshape(-1)
        if options.weights is not None:
            positive = np.asarray(options.weights).reshape(-1) > 0
            counted = positive if counted is None else counted & positive
        checks.check_class_range(np.asarray(labels).reshape(-1), counted, num_classes, name)
    if class_weights is not None:
        if _shape_if_any(class_weights) not in (None, (num_classes,)):
            raise ValueError(f"class_weights is {_describe(class_weights)}, expected {(num_classes,)}, as {name}")
        class_weights = checks.check_numbers("class_weights", class_weights, embeddings.dtype)
        class_weights = checks.check_weights("class_weights", class_weights)
    return CheckedColumn(column.reshape(-1), vectors, where, weights, class_weights)


def _shape_if_any(array: Any) -> tuple[int, ...] | None:
    """Returns the shape of an array or a sequence; None for unequal rows, which `check_numbers` names."""
    try:
        return np.shape(array)
    except ValueError:
        return None


def _describe(class_weights: Any) -> str:
    tuple_of = isinstance(class_weights, (tuple, list))
    return f"a tuple of {len(class_weights)}" if tuple_of else f"of shape {np.shape(class_weights)}"
