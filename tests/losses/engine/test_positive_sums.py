import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses._engine.positive_sums import sum_over_positives


def triplet_term(pair, rows, scale):
    """Two sums over the negatives, of functions of all that a term may see."""
    negatives, bias = rows
    smooth = jnp.tanh(scale * pair.value - pair.anchor_row * pair.positive_row) + bias
    return jnp.sum(jnp.where(negatives, smooth, 0)), pair.anchor_row[pair.positive] ** 2


def brute_force(values, others, positives, negatives, bias, scale):
    first, second = np.zeros(len(values)), np.zeros(len(values))
    for a, p in zip(*np.nonzero(positives), strict=True):
        second[a] += values[a, p] ** 2
        for n in np.flatnonzero(negatives[a]):
            first[a] += np.tanh(scale * values[a, p] - values[a, n] * others[p, n]) + bias[a]
    return first, second


def brute_force_gradients(values, others, positives, negatives, scale, of_sums):
    """Of the inner product of the sums with `of_sums`, by the chain rule, term by term."""
    of_values, of_others = np.zeros_like(values), np.zeros_like(others)
    for a, p in zip(*np.nonzero(positives), strict=True):
        of_values[a, p] += of_sums[1][a] * 2 * values[a, p]
        for n in np.flatnonzero(negatives[a]):
            slope = of_sums[0][a] * (1 - np.tanh(scale * values[a, p] - values[a, n] * others[p, n]) ** 2)
            of_values[a, p] += slope * scale
            of_values[a, n] -= slope * others[p, n]
            of_others[p, n] -= slope * values[a, n]
    return of_values, of_others


@jax.jit
def sums_and_gradients(values, others, positives, negatives, bias, scale, of_sums):
    sums, pull_back = jax.vjp(
        lambda x, y: sum_over_positives(triplet_term, x, y, positives, (negatives, bias), scale), values, others
    )
    return sums, pull_back(of_sums)


@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_is_the_sum_of_the_terms_and_so_is_its_gradient(seed, share):
    rng = np.random.default_rng(seed)
    values, others = rng.normal(size=(4, 6)), rng.normal(size=(6, 6))
    positives, negatives = rng.random((4, 6)) < share, rng.random((4, 6)) < 0.5
    bias, scale, of_sums = rng.normal(size=4), 0.7, (rng.normal(size=4), rng.normal(size=4))
    single = jax.tree.map(jnp.float32, (values, others, bias, scale, of_sums))
    sums, gradients = sums_and_gradients(single[0], single[1], positives, negatives, *single[2:])
    expected = brute_force(values, others, positives, negatives, bias, scale)
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-5)
    expected = brute_force_gradients(values, others, positives, negatives, scale, of_sums)
    for actual, one in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(actual, one, rtol=1e-4, atol=1e-5)


def square_of_the_value(pair, rows, constants):
    return pair.value**2


def test_others_may_be_left_out():
    values = jnp.float32([[1, 2], [3, 4]])
    positives = jnp.array([[False, True], [True, True]])
    sums = sum_over_positives(square_of_the_value, values, None, positives)
    np.testing.assert_array_equal(sums, [4, 25])
    gradient = jax.grad(lambda x: jnp.sum(sum_over_positives(square_of_the_value, x, None, positives)))(values)
    np.testing.assert_array_equal(gradient, [[0, 4], [6, 8]])


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 3)])
def test_without_anchors_or_references_the_sums_are_0(shape):
    sums = sum_over_positives(square_of_the_value, jnp.zeros(shape), None, jnp.zeros(shape, bool))
    np.testing.assert_array_equal(sums, np.zeros(shape[0]))


def sum_of_the_row(pair, rows, constants):
    return jnp.sum(jnp.tanh(pair.anchor_row - pair.value))


def test_memory_is_quadratic_for_any_number_of_positives():
    shape = jax.ShapeDtypeStruct((256, 256), np.float32)
    positives = jax.ShapeDtypeStruct((256, 256), bool)

    def total(values, positives):
        return jnp.sum(sum_over_positives(sum_of_the_row, values, None, positives))

    compiled = jax.jit(jax.value_and_grad(total)).lower(shape, positives).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 4 * 256**2
