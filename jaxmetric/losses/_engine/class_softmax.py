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
What a chunk adds to the softmax is a `Partial`, and so is what a device adds that holds some of the classes, a
`ClassShard`: `partial_softmax` makes one, `merge` joins those of two chunks and `join` those of all devices,
`log_sum_exp` finishes. Chunks are `class_chunks`, checks of the arguments `class_columns`.

Scores are class-major, `[C, B]`: sums over classes and centres then run over whole rows of examples, and the centres of
a class are used as they lie in memory.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.class_chunks import Chunk, chunk_at, chunk_size, gradients, over_chunks, single_chunk
from jaxmetric.losses._engine.class_columns import Column, Options, check_columns
from jaxmetric.losses._engine.class_shard import ClassShard, ClassVectors, held, over_shards, with_rows
from jaxmetric.losses._engine.reduction import LossResult, LossStats, check_reduction, reduce_each, reduce_stats
from jaxmetric.numerics import equally_varying, excess, safe_divide, softplus

# (class vectors [c, ...], *operands) -> logits [c, B]. Static under jit, as all functions here: one of a module.
Score: TypeAlias = Callable[..., jax.Array]

# (embeddings [B, D], column, **hyper-parameters) -> one value for each example (or None), and the sums.
ColumnLoss: TypeAlias = Callable[..., tuple[jax.Array | None, LossStats]]


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
      vectors: the class vectors, an array or a shard, or a tuple of T of them.
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
    options = Options(class_weights, where, weights)
    columns = check_columns(embeddings, labels, vectors, options, name, num_axes)
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
    embeddings, columns, hyper = equally_varying((embeddings, columns, hyper))
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
    return softplus(others - right)


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
    sum_exp = jnp.sum(jnp.exp(excess(others, _finite(largest)[None, :])), axis=0)
    row = jnp.clip(labels - index[0], 0, index.size - 1)
    is_here = (index[row] == labels) & counted[row]
    return Partial(largest, sum_exp, jnp.where(is_here, logits[row, jnp.arange(labels.size)], 0))


def merge(first: Partial, second: Partial) -> Partial:
    """The Partial of the classes of both."""
    largest = jnp.maximum(first.largest, second.largest)
    sums = [_sum_relative_to(largest, part) for part in (first, second)]
    return Partial(largest, sums[0] + sums[1], first.right + second.right)


def join(classes: ClassVectors, here: Partial) -> Partial:
    """The Partial of all classes, from that of those which are on this device."""
    if not isinstance(classes, ClassShard):
        return here
    largest = jax.lax.pmax(here.largest, classes.axis_name)
    whole = Partial(largest, *over_shards(classes, (_sum_relative_to(largest, here), here.right)))
    # Each device has its own cotangent of it, which the rules below add up.
    return equally_varying((whole, here))[0]


def log_sum_exp(whole: Partial) -> jax.Array:
    """`[B]`: the log-sum-exp over the classes that are not the example's; -inf if there is none."""
    none = whole.sum_exp == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, whole.sum_exp)) + _finite(whole.largest))


def _sum_relative_to(largest: jax.Array, part: Partial) -> jax.Array:
    return part.sum_exp * jnp.exp(excess(part.largest, _finite(largest)))


def _finite(largest: jax.Array) -> jax.Array:
    return jnp.where(largest == -jnp.inf, 0, largest)


def _is_other(index: jax.Array, counted: jax.Array, labels: jax.Array) -> jax.Array:
    return counted[:, None] & (index[:, None] != labels[None, :])


def _logit_cotangents(
    logits: jax.Array,
    index: jax.Array,
    counted: jax.Array,
    labels: jax.Array,
    whole: Partial,
    of_right: jax.Array,
    of_others: jax.Array,
) -> jax.Array:
    """The cotangents of `[c, B]` logits, from those of the right class's logit and of the log-sum-exp of the others."""
    is_other = _is_other(index, counted, labels)
    # Not exp(logits - log_sum_exp), in which the rounding of large numbers makes any share of the largest.
    terms = jnp.exp(excess(jnp.where(is_other, logits, -jnp.inf), _finite(whole.largest)[None, :]))
    of_terms = safe_divide(of_others, whole.sum_exp)
    return jnp.where(is_other, terms * of_terms[None, :], jnp.where(counted[:, None], of_right[None, :], 0))


def right_and_others(
    score: Score, classes: ClassVectors, labels: jax.Array, *operands: Any
) -> tuple[jax.Array, jax.Array]:
    """The logit of each example's class, and the log-sum-exp of all other classes.

    Args:
      score: gives the logits of a chunk's classes; a function of a module.
      classes: `[C, D]` or `[C, K, D]`, or a shard of them.
      labels: `[B]` integers; one outside [0, C) is no class, so that all classes are others.
      *operands: what the score takes beside the class vectors: floating-point arrays.

    Returns:
      `[B]` logits (0 for a label outside [0, C)), and `[B]` log-sum-exps (-inf if there is one class only).
    """
    size = chunk_size(classes, labels.shape[0])
    if size == held(classes).shape[0]:
        logits = score(single_chunk(classes).vectors, *operands)
        return _of_logits(with_rows(classes, logits), labels)
    return _chunked_right_and_others(score, size, classes, labels, operands)


@jax.custom_vjp
def _of_logits(logits: ClassVectors, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _of_logits_fwd(logits, labels)[0]


def _of_logits_fwd(logits: ClassVectors, labels: jax.Array) -> Any:
    _, ids, counted = single_chunk(logits)
    whole = join(logits, partial_softmax(held(logits), ids, counted, labels))
    return (whole.right, log_sum_exp(whole)), (logits, labels, whole)


def _of_logits_bwd(saved: Any, cotangents: Any) -> Any:
    logits, labels, whole = saved
    _, ids, counted = single_chunk(logits)
    cotangents = over_shards(logits, cotangents)  # each device's own loss has a part in the logits of this one
    return with_rows(logits, _logit_cotangents(held(logits), ids, counted, labels, whole, *cotangents)), None


_of_logits.defvjp(_of_logits_fwd, _of_logits_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_right_and_others(
    score: Score, size: int, classes: ClassVectors, labels: jax.Array, operands: Any
) -> tuple[jax.Array, jax.Array]:
    return _right_and_others_fwd(score, size, classes, labels, operands)[0]


def _right_and_others_fwd(score: Score, size: int, classes: ClassVectors, labels: jax.Array, operands: Any) -> Any:
    def add(whole: Partial, chunk: Chunk) -> Partial:
        return merge(whole, partial_softmax(score(chunk.vectors, *operands), chunk.ids, chunk.counted, labels))

    dtype = jax.eval_shape(score, held(classes), *operands).dtype
    nothing = jnp.zeros_like(labels, dtype)
    whole = join(classes, over_chunks(add, Partial(nothing - jnp.inf, nothing, nothing), classes, size))
    return (whole.right, log_sum_exp(whole)), (classes, labels, operands, whole)


def _right_and_others_bwd(score: Score, size: int, saved: Any, cotangents: Any) -> Any:
    classes, labels, operands, whole = saved
    cotangents = over_shards(classes, cotangents)

    def logits(chunk: Chunk, operands: Any) -> jax.Array:
        return score(chunk.vectors, *operands)

    def of_logits(logits: jax.Array, chunk: Chunk) -> jax.Array:
        return _logit_cotangents(logits, chunk.ids, chunk.counted, labels, whole, *cotangents)

    nothing = jax.tree.map(jnp.zeros_like, classes)
    d_classes, d_operands = gradients(logits, of_logits, classes, operands, size, start=nothing)
    return d_classes, None, d_operands


_chunked_right_and_others.defvjp(_right_and_others_fwd, _right_and_others_bwd)


# --- sums over classes ------------------------------------------------------------------------------------------------


def sum_over_classes(
    terms: Callable[..., Any], classes: ClassVectors, operands: Any, fixed: Any, *, rows: int
) -> tuple[Any, ClassVectors]:
    """Sums what each class adds to a loss, and passes the class vectors on.

    What is computed of the vectors passed on has its gradient added to in place. That of two losses of the same vectors
    would take the memory of both.

    Args:
      terms: `(vectors [c, ...], index [c], operands, fixed)` to a pytree of `[c, ...]` arrays; a function of a module.
      classes: `[C, D]` or `[C, K, D]`, or a shard of them.
      operands: a pytree of floating-point arrays.
      fixed: a pytree of arrays into which no gradient flows.
      rows: how many numbers `terms` computes for each class vector, B for scores.

    Returns:
      The terms, summed over their first axis, and the class vectors.
    """
    size = chunk_size(classes, rows)
    if size == held(classes).shape[0]:
        return over_shards(classes, _counted_sum(terms, single_chunk(classes), operands, fixed)), classes
    sums, classes = _chunked_sum(terms, size, classes, operands, fixed)
    return over_shards(classes, sums), classes


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_sum(terms: Callable[..., Any], size: int, classes: ClassVectors, operands: Any, fixed: Any) -> Any:
    def add(total: Any, chunk: Chunk) -> Any:
        return jax.tree.map(jnp.add, total, _counted_sum(terms, chunk, operands, fixed))

    shapes = jax.eval_shape(partial(_counted_sum, terms), chunk_at(classes, 0, size), operands, fixed)
    nothing = jax.tree.map(jnp.zeros_like, shapes)
    return over_chunks(add, nothing, classes, size), classes


def _sum_fwd(terms: Callable[..., Any], size: int, classes: ClassVectors, operands: Any, fixed: Any) -> Any:
    return _chunked_sum(terms, size, classes, operands, fixed), (classes, operands, fixed)


def _sum_bwd(terms: Callable[..., Any], size: int, saved: Any, cotangents: Any) -> Any:
    classes, operands, fixed = saved
    of_sums, of_classes = cotangents

    def of_chunk(chunk: Chunk, operands: Any) -> Any:
        return _counted_sum(terms, chunk, operands, fixed)

    return (*gradients(of_chunk, lambda *_: of_sums, classes, operands, size, start=of_classes), None)


_chunked_sum.defvjp(_sum_fwd, _sum_bwd)


def _counted_sum(terms: Callable[..., Any], chunk: Chunk, operands: Any, fixed: Any) -> Any:
    def total(term: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(chunk.counted.reshape(-1, *[1] * (term.ndim - 1)), term, 0), axis=0)

    return jax.tree.map(total, terms(chunk.vectors, chunk.ids, operands, fixed))
