"""Sums a function of whole rows over the positives of each anchor, such as a sum over all triplets (a, p, n).

A loss over ranks, or over triplets that sorting cannot handle, needs A R values per positive of an anchor. Storing all
of them takes O(A R^2) memory. `sum_over_positives` instead handles the j-th positive of every anchor in turn j. Memory
stays O(A R) in the forward and the backward pass, and time is proportional to the number of positives.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric.numerics import equally_varying


class PositivePair(NamedTuple):
    """The data of one anchor a and one of its positives p, as the argument of a term.

    Attributes:
      value: the value of (a, p).
      anchor_row: `[R]`, the values of a to all references.
      positive_row: `[R]`, the values of p to all references; None if `others` was not given.
      positive: the index of p.
    """

    value: jax.Array
    anchor_row: jax.Array
    positive_row: jax.Array | None
    positive: jax.Array


# (pair, the anchor's rows of constants, constants) -> a tree of arrays, mostly scalars
Term: TypeAlias = Callable[[PositivePair, Any, Any], Any]


def sum_over_positives(
    term: Term,
    values: jax.Array,
    others: jax.Array | None,
    positives: jax.Array,
    rows: Any = (),
    constants: Any = (),
) -> Any:
    """Sums `term` over the positives of each anchor.

    Differentiable once, in reverse, in `values`, `others` and `constants`; rows are not differentiated.

    Args:
      term: a module-level function (it is static) that returns a tree of arrays, mostly scalars, finite with a finite
        gradient for any finite values.
      values: `[A, R]` distances or similarities of anchors to references.
      others: `[R, R]`, the same between references, for terms that compare a positive with negatives; or None.
      positives: `[A, R]` booleans.
      rows: a tree of arrays `[A, ...]`, such as the mask of the negatives; a term gets the row of its anchor.
      constants: a tree of arrays of floats that all terms get, such as a margin.

    Returns:
      The tree of `term`, with sums `[A, ...]`; 0 for an anchor without positives.
    """
    return _sums(term, *equally_varying((values, others, positives, rows, constants)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(
    term: Term, values: jax.Array, others: jax.Array | None, positives: jax.Array, rows: Any, constants: Any
) -> Any:
    def turn(exists: jax.Array, chosen: jax.Array, sums: Any) -> Any:
        terms = _terms(term, values, others, exists, chosen, rows, constants)
        return jax.tree.map(jnp.add, sums, _zero_unless(exists, terms))

    nobody = jnp.zeros(values.shape[0], bool), jnp.zeros(values.shape[0], jnp.int32)
    shapes = jax.eval_shape(lambda: _terms(term, values, others, *nobody, rows, constants))
    return _fold_turns(turn, positives, jax.tree.map(jnp.zeros_like, shapes))


def _sums_forward(
    term: Term, values: jax.Array, others: jax.Array | None, positives: jax.Array, rows: Any, constants: Any
) -> tuple[Any, Any]:
    sums = _sums(term, values, others, positives, rows, constants)
    return sums, (values, others, positives, rows, constants)


def _sums_backward(term: Term, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    values, others, positives, rows, constants = residuals

    def turn(exists: jax.Array, chosen: jax.Array, gradients: Any) -> Any:
        _, pull_back = jax.vjp(lambda x, y, z: _terms(term, x, y, exists, chosen, rows, z), values, others, constants)
        return jax.tree.map(jnp.add, gradients, pull_back(_zero_unless(exists, cotangents)))

    zeros = jax.tree.map(jnp.zeros_like, (values, others, constants))
    value_gradients, other_gradients, constant_gradients = _fold_turns(turn, positives, zeros)
    return value_gradients, other_gradients, None, None, constant_gradients


_sums.defvjp(_sums_forward, _sums_backward)


def _fold_turns(turn: Callable[[jax.Array, jax.Array, Any], Any], positives: jax.Array, initial: Any) -> Any:
    """Calls `turn(exists, chosen, result)` until no anchor has a positive left.

    `exists` `[A]` is whether an anchor has a positive in this turn, and `chosen` `[A]` is its index.
    """

    def step(_: jax.Array, state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        remaining, result = state
        exists, chosen = jnp.any(remaining, axis=1), jnp.argmax(remaining, axis=1)
        taken = chosen[:, None] == jnp.arange(positives.shape[1])[None, :]
        return remaining & ~taken, turn(exists, chosen, result)

    if not positives.size:
        return initial
    num_turns = jnp.max(jnp.sum(positives, axis=1))
    return jax.lax.fori_loop(0, num_turns, step, (positives, initial))[1]


def _zero_unless(exists: jax.Array, tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(exists.reshape(-1, *[1] * (x.ndim - 1)), x, 0), tree)


def _terms(
    term: Term,
    values: jax.Array,
    others: jax.Array | None,
    exists: jax.Array,
    chosen: jax.Array,
    rows: Any,
    constants: Any,
) -> Any:
    def anchor_terms(row: jax.Array, exists: jax.Array, positive: jax.Array, anchor_rows: Any) -> Any:
        # Without a positive left, `positive` is any reference, whose values may be NaN.
        row = jnp.where(exists, row, 0)
        # A masked sum instead of an index: its transpose is a product, and that of an index is a scatter.
        value = jnp.sum(jnp.where(jnp.arange(row.size) == positive, row, 0))
        positive_row = None if others is None else jnp.where(exists, others[positive], 0)
        return term(PositivePair(value, row, positive_row, positive), anchor_rows, constants)

    return jax.vmap(anchor_terms)(values, exists, chosen, rows)
