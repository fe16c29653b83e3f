r"""What losses against learned class vectors share: arguments, the softmax over classes, working through many of them.

A loss of the softmax family is how it scores (`Score`: the logits of each class for each example) and what its margin
makes of the right class's logit. Both kinds of number come out of `right_and_others`: for each example the logit of its
class and the log-sum-exp of all others, from which

:math:`-\log \frac{\exp z_y'}{\exp z_y' + \sum_{c \ne y} \exp z_c} = \mathrm{softplus}(\mathrm{others} - z_y')`

is one line for any margin :math:`z_y \to z_y'`, exact for small losses too. Losses that are sums over classes go
through `sum_over_classes`. `class_vector_loss` is the public edge of all of them: checks, columns of labels, weights,
reduction.

Both engines take the classes in chunks where `[C, K, B]` scores are large, and compute a chunk's scores again for its
gradient: beside the class vectors and their gradient only a chunk's arrays exist, those of the normalisation included.
What a chunk adds to the softmax is a `Partial`, and so is what a device adds that holds some of the classes:
`partial_softmax` makes one, `merge` joins two (or `pmax` and `psum` join all), `log_sum_exp` finishes.

Scores are class-major, `[C, B]`: sums over classes and centres then run over whole rows of examples, and the centres of
a class are used as they lie in memory.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric import checks
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, reduce_each, reduce_stats

# All classes are scored at once up to this many scores, C K B; beyond, as many at a time as have CHUNK scores, which a
# processor's cache can hold.
WHOLE = 2**21
CHUNK = 2**19

# (class vectors [c, ...], *operands) -> logits [c, B]. Static under jit, as all functions here: one of a module.
Score: TypeAlias = Callable[..., jax.Array]

# (embeddings [B, D], column, **hyper-parameters) -> one value for each example (or None), and the sums.
ColumnLoss: TypeAlias = Callable[..., tuple[jax.Array | None, LossStats]]


class Column(NamedTuple):
    """One column of labels with the vectors of its classes.

    Attributes:
      labels: `[B]` integers; 0 for examples that are left out.
      vectors: `[C, D]` or `[C, K, D]`.
      weights: `[B]` weights of the examples, 0 for those left out.
      class_weights: `[C]`, or None for 1.
    """

    labels: jax.Array
    vectors: jax.Array
    weights: jax.Array
    class_weights: jax.Array | None

    def is_class(self) -> jax.Array:
        """`[B]`: whether each label is one of the classes."""
        return (self.labels >= 0) & (self.labels < self.vectors.shape[0])

    def of_labels(self, per_class: jax.Array) -> jax.Array:
        """`[B, ...]`: of `[C, ...]` what belongs to the class of each example; anything where that is no class."""
        return per_class[jnp.clip(self.labels, 0, per_class.shape[0] - 1)]


def class_vector_loss(
    of_column: ColumnLoss,
    hyper: dict[str, Any],
    embeddings: Any,
    labels: Any,
    vectors: Any,
    *,
    name: str,
    num_axes: int,
    class_weights: Any,
    where: Any,
    weights: Any,
    reduction: str,
    has_aux: bool,
    per_example: bool = True,
) -> LossResult:
    """The public edge of a class-vector loss: checks, and the sum of the reduced losses of all columns of labels.

    Args:
      of_column: the loss of one column.
      hyper: its hyper-parameters; numbers are traced, and get the embeddings' precision.
      embeddings: `[B, D]`.
      labels: `[B]` or `[B, 1]`; `[B, T]` with a tuple of class vectors.
      vectors: the class vectors, or a tuple of T arrays.
      name: what the loss calls the class vectors.
      num_axes: 2 for `[C, D]`, 3 for `[C, K, D]`.
      class_weights: `[C]`, a tuple of T arrays, or None.
      where: `[B]` or `[B, T]` booleans, or None.
      weights: `[B]`, or None.
      reduction: see the loss.
      has_aux: see the loss.
      per_example: whether the loss has a value for each example, which the weight of its class multiplies.

    Returns:
      The loss, or with has_aux a pair of it and LossStats, of `[T]` arrays for a tuple of class vectors.
    """
    check_reduction(reduction, *(["none"] if per_example else []))
    embeddings = checks.check_embeddings(embeddings)
    options = _Options(class_weights, where, weights)
    columns = _check_columns(embeddings, labels, vectors, options, name, num_axes)
    loss, stats = _reduced(
        embeddings, columns, hyper, of_column=of_column, per_example=per_example, reduction=reduction
    )
    if not isinstance(vectors, (tuple, list)):
        stats = LossStats(*(each[0] for each in stats))
    return (loss, stats) if has_aux else loss


@partial(jax.jit, static_argnames=("of_column", "per_example", "reduction"))
def _reduced(
    embeddings: jax.Array,
    columns: list[Column],
    hyper: dict[str, Any],
    *,
    of_column: ColumnLoss,
    per_example: bool,
    reduction: str,
) -> tuple[jax.Array, LossStats]:
    hyper = {name: value if value is None else jnp.asarray(value, embeddings.dtype) for name, value in hyper.items()}
    losses: list[Any] = []
    stats = []
    for column in columns:
        weights = column.weights
        if per_example and column.class_weights is not None:
            weights = weights * jnp.where(column.is_class(), column.of_labels(column.class_weights), 1)
        column = column._replace(weights=weights, labels=jnp.where(weights > 0, column.labels, 0))
        values, sums = of_column(checks.leave_out(embeddings, weights), column, **hyper)
        losses.append(values if reduction == "none" else reduce_stats(sums, reduction))
        stats.append(sums)
    return sum(losses[1:], start=losses[0]), jax.tree.map(lambda *each: jnp.stack(each), *stats)


def of_examples(values: jax.Array, column: Column) -> tuple[jax.Array, LossStats]:
    """The result of a column whose loss is one value for each example, `[B]`; NaN where its label is no class."""
    return reduce_each(jnp.where(column.is_class(), values, jnp.nan), column.weights, "none")


def softmax_loss(right: jax.Array, others: jax.Array) -> jax.Array:
    """-log of the softmax probability of the right class, from its logit and the log-sum-exp of all others: `[B]`."""
    return jax.nn.softplus(others - right)


# --- scores ---------------------------------------------------------------------------------------------------------


def dot_product(vectors: jax.Array, embeddings: jax.Array) -> jax.Array:
    """`[c, B]` inner products of class vectors `[c, D]` and embeddings `[B, D]`."""
    return jnp.matmul(vectors, embeddings.T, precision=jax.lax.Precision.HIGHEST)


def normalized_dot_product(vectors: jax.Array, embeddings: jax.Array) -> jax.Array:
    """`[c, B]` (or `[c, K, B]`) inner products of class vectors `[c, D]` (`[c, K, D]`) scaled to length 1."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    # Scaling the products, which happens where they are used next, saves the passes that write scaled vectors.
    products = dot_product(rows, embeddings) * _inverse_lengths(rows)
    return products.reshape(*vectors.shape[:-1], -1)


def _inverse_lengths(vectors: jax.Array) -> jax.Array:
    """`[c, 1]`: 1 over the Euclidean lengths of `[c, D]` vectors; 0, with gradient 0, for a vector of zeros."""
    # As in `safe_normalize`, squares neither overflow nor vanish.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=1, keepdims=True))
    empty = largest < jnp.finfo(vectors.dtype).tiny
    unit = jnp.where(empty, 1, largest)
    squared = jnp.sum(jnp.square(vectors / unit), axis=1, keepdims=True)
    return jnp.where(empty, 0, jax.lax.rsqrt(jnp.where(empty, 1, squared)) / unit)


def nearest_center(centers: jax.Array, embeddings: jax.Array) -> jax.Array:
    """`[c, B]`: of the inner products with the K normalised centres of each class the largest."""
    return _nearest(normalized_dot_product(centers, embeddings))


@jax.custom_vjp
def _nearest(similarity: jax.Array) -> jax.Array:
    # Centre by centre, which makes one loop over the similarities [c, K, B].
    return reduce(jnp.maximum, [similarity[:, k] for k in range(similarity.shape[1])])


def _nearest_fwd(similarity: jax.Array) -> Any:
    nearest = _nearest(similarity)
    return nearest, (similarity, nearest)


def _nearest_bwd(saved: Any, cotangent: jax.Array) -> Any:
    similarity, nearest = saved
    # Centres that are equally near share it.
    counts = sum((similarity[:, k] == nearest).astype(nearest.dtype) for k in range(similarity.shape[1]))
    return (jnp.where(similarity == nearest[:, None], (cotangent / counts)[:, None], 0),)


_nearest.defvjp(_nearest_fwd, _nearest_bwd)


# --- the softmax over classes -----------------------------------------------------------------------------------------


class Partial(NamedTuple):
    """What some of the classes add to the softmax of each example.

    Attributes:
      largest: `[B]`: the largest logit of a class that is not the example's; -inf if there is none.
      sum_exp: `[B]`: the sum of exp(logit - largest) over these classes.
      right: `[B]`: the logit of the example's class, 0 if it is not among the classes.
    """

    largest: jax.Array
    sum_exp: jax.Array
    right: jax.Array


def partial_softmax(logits: jax.Array, index: jax.Array, counted: jax.Array, labels: jax.Array) -> Partial:
    """What consecutive classes `index` `[c]` with `[c, B]` logits add; those not `counted` `[c]` are left out."""
    others = jnp.where(_is_other(index, counted, labels), logits, -jnp.inf)
    largest = jnp.max(others, axis=0)
    sum_exp = jnp.sum(jnp.exp(others - _finite(largest)[None, :]), axis=0)
    row = jnp.clip(labels - index[0], 0, index.size - 1)
    is_here = (index[row] == labels) & counted[row]
    return Partial(largest, sum_exp, jnp.where(is_here, logits[row, jnp.arange(labels.size)], 0))


def merge(first: Partial, second: Partial) -> Partial:
    """The Partial of the classes of both."""
    largest = jnp.maximum(first.largest, second.largest)
    sums = [part.sum_exp * jnp.exp(part.largest - _finite(largest)) for part in (first, second)]
    return Partial(largest, sums[0] + sums[1], first.right + second.right)


def log_sum_exp(whole: Partial) -> jax.Array:
    """`[B]`: the log-sum-exp over the classes that are not the example's; -inf if there is none."""
    none = whole.sum_exp == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, whole.sum_exp)) + _finite(whole.largest))


def _finite(largest: jax.Array) -> jax.Array:
    return jnp.where(largest == -jnp.inf, 0, largest)


def _is_other(index: jax.Array, counted: jax.Array, labels: jax.Array) -> jax.Array:
    return counted[:, None] & (index[:, None] != labels[None, :])


def _logit_cotangents(
    logits: jax.Array,
    index: jax.Array,
    counted: jax.Array,
    labels: jax.Array,
    others: jax.Array,
    of_right: jax.Array,
    of_others: jax.Array,
) -> jax.Array:
    """The cotangents of `[c, B]` logits, from those of the right class's logit and of the log-sum-exp of the others."""
    is_other = _is_other(index, counted, labels)
    share = jnp.exp(jnp.where(is_other, logits, -jnp.inf) - _finite(others)[None, :])
    return jnp.where(is_other, share * of_others[None, :], jnp.where(counted[:, None], of_right[None, :], 0))


def right_and_others(
    score: Score, vectors: jax.Array, labels: jax.Array, *operands: Any
) -> tuple[jax.Array, jax.Array]:
    """The logit of each example's class, and the log-sum-exp of all other classes.

    Args:
      score: gives the logits of a chunk's classes; a function of a module.
      vectors: `[C, D]` or `[C, K, D]`.
      labels: `[B]` integers; one outside [0, C) is no class, so that all classes are others.
      *operands: what the score takes beside the class vectors: floating-point arrays.

    Returns:
      `[B]` logits (0 for a label outside [0, C)), and `[B]` log-sum-exps (-inf if there is one class only).
    """
    size = _chunk_size(vectors, labels.shape[0])
    if size == vectors.shape[0]:
        return _of_logits(score(vectors, *operands), labels)
    return _chunked_right_and_others(score, size, vectors, labels, operands)


@jax.custom_vjp
def _of_logits(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    whole = partial_softmax(logits, *_all_classes(logits), labels)
    return whole.right, log_sum_exp(whole)


def _of_logits_fwd(logits: jax.Array, labels: jax.Array) -> Any:
    right, others = _of_logits(logits, labels)
    return (right, others), (logits, labels, others)


def _of_logits_bwd(saved: Any, cotangents: Any) -> Any:
    logits, labels, others = saved
    return _logit_cotangents(logits, *_all_classes(logits), labels, others, *cotangents), None


_of_logits.defvjp(_of_logits_fwd, _of_logits_bwd)


def _all_classes(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.arange(logits.shape[0]), jnp.ones(logits.shape[0], bool)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_right_and_others(
    score: Score, size: int, vectors: jax.Array, labels: jax.Array, operands: Any
) -> tuple[jax.Array, jax.Array]:
    def add(whole: Partial, vectors: jax.Array, index: jax.Array, counted: jax.Array) -> Partial:
        return merge(whole, partial_softmax(score(vectors, *operands), index, counted, labels))

    dtype = jax.eval_shape(score, vectors, *operands).dtype
    nothing = jnp.zeros(labels.shape, dtype)
    whole = _over_chunks(add, Partial(nothing - jnp.inf, nothing, nothing), vectors, size)
    return whole.right, log_sum_exp(whole)


def _right_and_others_fwd(score: Score, size: int, vectors: jax.Array, labels: jax.Array, operands: Any) -> Any:
    right, others = _chunked_right_and_others(score, size, vectors, labels, operands)
    return (right, others), (vectors, labels, operands, others)


def _right_and_others_bwd(score: Score, size: int, saved: Any, cotangents: Any) -> Any:
    vectors, labels, operands, others = saved

    def logits(vectors: jax.Array, index: jax.Array, counted: jax.Array, operands: Any) -> jax.Array:
        return score(vectors, *operands)

    def of_logits(logits: jax.Array, index: jax.Array, counted: jax.Array) -> jax.Array:
        return _logit_cotangents(logits, index, counted, labels, others, *cotangents)

    nothing = jnp.zeros_like(vectors)
    d_vectors, d_operands = _gradients(logits, of_logits, vectors, operands, size, start=nothing)
    return d_vectors, None, d_operands


_chunked_right_and_others.defvjp(_right_and_others_fwd, _right_and_others_bwd)


# --- sums over classes ------------------------------------------------------------------------------------------------


def sum_over_classes(
    terms: Callable[..., Any], vectors: jax.Array, operands: Any, fixed: Any, *, rows: int
) -> tuple[Any, jax.Array]:
    """Sums what each class adds to a loss, and passes the class vectors on.

    What is computed of the vectors passed on has its gradient added to in place. That of two losses of the same vectors
    would take the memory of both.

    Args:
      terms: `(vectors [c, ...], index [c], operands, fixed)` to a pytree of `[c, ...]` arrays; a function of a module.
      vectors: `[C, D]` or `[C, K, D]`.
      operands: a pytree of floating-point arrays.
      fixed: a pytree of arrays into which no gradient flows.
      rows: how many numbers `terms` computes for each class vector, B for scores.

    Returns:
      The terms, summed over their first axis, and the class vectors.
    """
    size = _chunk_size(vectors, rows)
    if size == vectors.shape[0]:
        sums = jax.tree.map(lambda term: jnp.sum(term, axis=0), terms(vectors, jnp.arange(size), operands, fixed))
        return sums, vectors
    return _chunked_sum(terms, size, vectors, operands, fixed)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_sum(terms: Callable[..., Any], size: int, vectors: jax.Array, operands: Any, fixed: Any) -> Any:
    def add(total: Any, vectors: jax.Array, index: jax.Array, counted: jax.Array) -> Any:
        return jax.tree.map(jnp.add, total, _counted_sum(terms, vectors, index, counted, operands, fixed))

    shapes = jax.eval_shape(partial(_counted_sum, terms), *_chunk(vectors, 0, size), operands, fixed)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return _over_chunks(add, nothing, vectors, size), vectors


def _sum_fwd(terms: Callable[..., Any], size: int, vectors: jax.Array, operands: Any, fixed: Any) -> Any:
    return _chunked_sum(terms, size, vectors, operands, fixed), (vectors, operands, fixed)


def _sum_bwd(terms: Callable[..., Any], size: int, saved: Any, cotangents: Any) -> Any:
    vectors, operands, fixed = saved
    of_sums, of_vectors = cotangents

    def of_chunk(vectors: jax.Array, index: jax.Array, counted: jax.Array, operands: Any) -> Any:
        return _counted_sum(terms, vectors, index, counted, operands, fixed)

    return (*_gradients(of_chunk, lambda *_: of_sums, vectors, operands, size, start=of_vectors), None)


_chunked_sum.defvjp(_sum_fwd, _sum_bwd)


def _counted_sum(
    terms: Callable[..., Any], vectors: jax.Array, index: jax.Array, counted: jax.Array, operands: Any, fixed: Any
) -> Any:
    def total(term: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counted.reshape(-1, *[1] * (term.ndim - 1)), term, 0), axis=0)

    return jax.tree.map(total, terms(vectors, index, operands, fixed))


# --- chunks -----------------------------------------------------------------------------------------------------------


def _chunk_size(vectors: jax.Array, rows: int) -> int:
    """How many classes to take at a time: all of them, or as many as have CHUNK scores, and one at least."""
    scores_per_class = max(math.prod(vectors.shape[1:-1]) * rows, 1)
    if scores_per_class * vectors.shape[0] <= WHOLE:
        return vectors.shape[0]
    return min(max(CHUNK // scores_per_class, 1), vectors.shape[0])


def _chunk(vectors: jax.Array, number: Any, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Vectors and index of one chunk's classes, and which of them no earlier chunk had: the last one reaches back."""
    first = jnp.minimum(number * size, vectors.shape[0] - size)
    index = first + jnp.arange(size)
    return jax.lax.dynamic_slice_in_dim(vectors, first, size), index, index >= number * size


def _num_chunks(vectors: jax.Array, size: int) -> int:
    return -(-vectors.shape[0] // size)


def _over_chunks(add: Callable[..., Any], start: Any, vectors: jax.Array, size: int) -> Any:
    return jax.lax.fori_loop(
        0, _num_chunks(vectors, size), lambda number, total: add(total, *_chunk(vectors, number, size)), start
    )


def _gradients(
    function: Callable[..., Any],
    cotangents: Callable[..., Any],
    vectors: jax.Array,
    operands: Any,
    size: int,
    *,
    start: jax.Array,
) -> tuple[jax.Array, Any]:
    """Adds up the gradients of `function(vectors, index, counted, operands)` over chunks.

    Args:
      function: of a chunk.
      cotangents: `(result, index, counted)` to what the gradients of its result are multiplied with.
      vectors: `[C, ...]`.
      operands: a pytree.
      size: of a chunk.
      start: `[C, ...]`, to which the gradients in the vectors are added.

    Returns:
      The gradients in the vectors and in the operands.
    """

    def add(number: Any, total: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        d_vectors, d_operands = total
        chunk, index, counted = _chunk(vectors, number, size)
        result, pull_back = jax.vjp(lambda chunk, operands: function(chunk, index, counted, operands), chunk, operands)
        d_chunk, more = pull_back(cotangents(result, index, counted))
        first = index[0]
        d_chunk = jax.lax.dynamic_slice_in_dim(d_vectors, first, size) + d_chunk
        d_vectors = jax.lax.dynamic_update_slice_in_dim(d_vectors, d_chunk, first, 0)
        return d_vectors, jax.tree.map(jnp.add, d_operands, more)

    nothing = jax.tree.map(jnp.zeros_like, operands)
    return jax.lax.fori_loop(0, _num_chunks(vectors, size), add, (start, nothing))


# --- arguments --------------------------------------------------------------------------------------------------------


class _Options(NamedTuple):
    class_weights: Any
    where: Any
    weights: Any


def _check_columns(
    embeddings: jax.Array, labels: Any, vectors: Any, options: _Options, name: str, num_axes: int
) -> list[Column]:
    if not isinstance(vectors, (tuple, list)):
        return [_check_column(embeddings, labels, vectors, options, name, num_axes)]
    shape, class_weights = (embeddings.shape[0], len(vectors)), options.class_weights
    if not vectors or np.shape(labels) != shape:
        raise ValueError(f"labels has shape {np.shape(labels)}, expected {shape}: a column for each of the {name}")
    if class_weights is None:
        class_weights = [None] * len(vectors)
    if not isinstance(class_weights, (tuple, list)) or len(class_weights) != len(vectors):
        raise ValueError(f"class_weights is {_describe(class_weights)}, expected a tuple of {len(vectors)}, as {name}")
    per_label = np.ndim(options.where) == 2
    if per_label and np.shape(options.where) != shape:
        raise ValueError(f"where has shape {np.shape(options.where)}, expected {shape} as labels")
    columns = []
    for t, (of_class, weight) in enumerate(zip(vectors, class_weights, strict=True)):
        known = options.where[:, t] if per_label else options.where
        of_column = options._replace(class_weights=weight, where=known)
        columns.append(_check_column(embeddings, labels[:, t], of_class, of_column, f"{name}[{t}]", num_axes))
    return columns


def _check_column(
    embeddings: jax.Array, labels: Any, vectors: Any, options: _Options, name: str, num_axes: int
) -> Column:
    shape = np.shape(labels)
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(f"labels has shape {shape}, expected one column, or {name} as a tuple of {shape[1]} arrays")
    column = checks.check_class_labels(embeddings, labels)
    weights = checks.example_weights(embeddings, options.where, options.weights)
    vectors, class_weights = checks.check_class_parameters(name, vectors, num_axes), options.class_weights
    if vectors.shape[-1] != embeddings.shape[1]:
        raise ValueError(f"{name} has shape {vectors.shape}, expected last axis {embeddings.shape[1]} as embeddings")
    _check_range(labels, options, vectors.shape[0], name)
    if class_weights is not None:
        if np.shape(class_weights) != vectors.shape[:1]:
            raise ValueError(f"class_weights is {_describe(class_weights)}, expected {vectors.shape[:1]}, as {name}")
        class_weights = checks.check_weights("class_weights", jnp.asarray(class_weights, embeddings.dtype))
    return Column(column, vectors, weights, class_weights)


def _check_range(labels: Any, options: _Options, num_classes: int, name: str) -> None:
    """Raises for concrete labels that are no classes, unless their examples are left out."""
    if any(isinstance(array, jax.core.Tracer) for array in (labels, options.where, options.weights)):
        return
    labels = np.asarray(labels).reshape(-1)
    counted = np.ones(labels.shape, bool) if options.where is None else np.array(options.where).reshape(-1)
    if options.weights is not None:
        counted &= np.asarray(options.weights).reshape(-1) > 0
    checks.check_class_range(labels, counted, num_classes, name)


def _describe(class_weights: Any) -> str:
    tuple_of = isinstance(class_weights, (tuple, list))
    return f"a tuple of {len(class_weights)}" if tuple_of else f"of shape {np.shape(class_weights)}"
