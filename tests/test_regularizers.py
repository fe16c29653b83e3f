import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric.regularizers import (
    center_invariant_regularizer,
    lp_regularizer,
    regular_face_regularizer,
    zero_mean_regularizer,
)


def nearest_cosines(proxies):
    unit = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    return [max(float(unit[c] @ unit[k]) for k in range(len(unit)) if k != c) for c in range(len(unit))]


DEFINITIONS = {
    "L2": (lp_regularizer, lambda x: np.mean(np.linalg.norm(x, axis=1))),
    "square of L2": (partial(lp_regularizer, power=2), lambda x: np.mean(np.sum(x**2, axis=1))),
    "L1": (partial(lp_regularizer, p=1), lambda x: np.mean(np.sum(np.abs(x), axis=1))),
    "L infinity": (partial(lp_regularizer, p=math.inf), lambda x: np.mean(np.max(np.abs(x), axis=1))),
    "zero mean": (zero_mean_regularizer, lambda x: np.mean(np.abs(np.sum(x, axis=1)))),
    "center invariance": (
        center_invariant_regularizer,
        lambda x: np.mean((np.sum(x**2, 1) - np.mean(np.sum(x**2, 1))) ** 2) / 4,
    ),
    "RegularFace": (regular_face_regularizer, lambda x: np.mean(nearest_cosines(x))),
}
OF_EMBEDDINGS = ["L2", "square of L2", "L1", "L infinity", "zero mean"]
value_and_grad = cache(lambda function: jax.jit(jax.value_and_grad(function)))


def over(*names):
    return pytest.mark.parametrize(
        ("function", "expected"), [pytest.param(*DEFINITIONS[name], id=name) for name in names]
    )


over_all = over(*DEFINITIONS)


@over_all
def test_value_and_gradient_are_those_of_the_definition(function, expected):
    x = np.random.default_rng(0).normal(size=(7, 4))
    value, gradient = value_and_grad(function)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, expected(x), rtol=1e-5)
    step = 1e-6
    for index in np.ndindex(x.shape):
        plus, minus = x.copy(), x.copy()
        plus[index] += step
        minus[index] -= step
        np.testing.assert_allclose(
            gradient[index], (expected(plus) - expected(minus)) / (2 * step), atol=2e-5, rtol=1e-3
        )


@over_all
@pytest.mark.parametrize("size", [1.0, 1e8, 1e-30])
def test_zero_and_coinciding_rows_have_finite_gradients(function, expected, size):
    x = size * np.float32(
        [[1, 2, 4, 0], [1, 2, 4, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [-1, 1, 0, 0]]
    )
    value, gradient = value_and_grad(function)(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[3:5] * (expected is not DEFINITIONS["RegularFace"][1]), 0)


@over(*OF_EMBEDDINGS)
def test_masked_and_weightless_examples_equal_deleted_ones(function, expected):
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    where = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    poisoned = np.where(where[:, None], x, np.nan)
    for arguments in ({"where": where}, {"weights": 3 * where.astype(np.float32)}):
        value, gradient = jax.value_and_grad(partial(function, **arguments))(poisoned)
        np.testing.assert_allclose(value, expected(x[where].astype(float)), rtol=1e-5)
        np.testing.assert_array_equal(gradient[~where], 0)
    value, gradient = jax.value_and_grad(partial(function, where=np.zeros(7, bool)))(poisoned)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_weights_are_counts():
    x = np.float32([[1, 0], [0, 2], [3, 0]])
    assert lp_regularizer(x, weights=np.float32([2, 1, 1])) == (1 + 1 + 2 + 3) / 4
    assert zero_mean_regularizer(x, weights=np.float32([2, 1, 1])) == (1 + 1 + 2 + 3) / 4


def test_a_single_class_has_no_neighbor():
    value, gradient = jax.value_and_grad(regular_face_regularizer)(jnp.ones((1, 3)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_regular_face_of_more_classes_than_a_block_in_memory_of_the_proxies():
    x = np.random.default_rng(0).normal(size=(1001, 16)).astype(np.float32)
    compiled = value_and_grad(regular_face_regularizer).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1001**2  # a quarter of [C, C] floats
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    np.testing.assert_allclose(compiled(x)[0], np.mean(np.max(unit @ unit.T - 3 * np.eye(1001), axis=1)), rtol=1e-5)


@over_all
def test_half_precision_is_computed_in_float32_without_implicit_promotion(function, expected):
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert value_and_grad(function)(x)[0].dtype == jnp.float32
    assert function(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


@over_all
def test_a_nan_stays_visible(function, expected):
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    x[2, 1] = np.nan
    assert np.isnan(value_and_grad(function)(x)[0])


@over_all
def test_bad_input_is_named(function, expected):
    with pytest.raises(ValueError, match=r"(embeddings|proxies) has shape \(3,\), expected \[[BC], D\]"):
        function(np.ones(3, np.float32))
    with pytest.raises(TypeError, match=r"(embeddings|proxies) has dtype int\d\d, expected a floating-point dtype"):
        function(np.ones((3, 2), int))
