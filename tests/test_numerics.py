import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric.numerics import as_float, safe_divide, safe_normalize, safe_sqrt


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "float16", "float32"])
def test_as_float_computes_in_float32(dtype):
    assert as_float(jnp.ones(3, dtype)).dtype == jnp.float32


def test_as_float_keeps_float64():
    with jax.enable_x64(True):
        assert as_float(jnp.ones(3, jnp.float64)).dtype == jnp.float64


def test_safe_sqrt_is_sqrt_where_that_is_smooth_and_flat_elsewhere():
    x = jnp.array([-4.0, -0.0, 0.0, 0.25, 4.0, jnp.inf])
    values, gradients = jax.vmap(jax.value_and_grad(safe_sqrt))(x)
    np.testing.assert_array_equal(values, [0, 0, 0, 0.5, 2, np.inf])
    np.testing.assert_array_equal(gradients, [0, 0, 0, 1, 0.25, 0])


def test_safe_normalize_has_unit_length_and_the_tangential_gradient():
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 5, 3))
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / length
    normalized, pullback = jax.vjp(safe_normalize, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(normalized, unit, rtol=1e-6)
    # d(x / |x|) = (I - u u^T) / |x|
    expected = (cotangent - unit * np.sum(unit * cotangent, axis=1, keepdims=True)) / length
    np.testing.assert_allclose(pullback(jnp.asarray(cotangent, jnp.float32))[0], expected, rtol=1e-4, atol=1e-6)


def test_safe_normalize_along_another_axis():
    np.testing.assert_allclose(safe_normalize(jnp.array([[3.0, 0.0], [4.0, 0.0]]), axis=0), [[0.6, 0], [0.8, 0]])


def test_safe_normalize_leaves_zero_at_zero_with_gradient_zero():
    value, pullback = jax.vjp(safe_normalize, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(value, np.zeros((2, 3)))
    np.testing.assert_array_equal(pullback(jnp.ones((2, 3)))[0], np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", 1e-30), ("float32", 1e30), ("float16", 1e-4), ("float16", 1e4)]
)
def test_safe_normalize_of_lengths_whose_squares_leave_the_range(dtype, scale):
    x = jnp.array([3 * scale, 4 * scale], dtype)
    np.testing.assert_allclose(safe_normalize(x).astype(float), [0.6, 0.8], rtol=2e-2 if dtype == "float16" else 1e-6)
    assert np.isfinite(jax.grad(lambda x: safe_normalize(x)[0])(x)).all()


def test_safe_divide_is_zero_and_flat_over_nothing():
    value, gradients = jax.value_and_grad(safe_divide, argnums=(0, 1))(5.0, 0.0)
    assert (value, *gradients) == (0, 0, 0)
    value, gradients = jax.value_and_grad(safe_divide, argnums=(0, 1))(6.0, 2.0)
    assert (value, *gradients) == (3, 0.5, -1.5)


@pytest.mark.parametrize(
    "function",
    [safe_sqrt, lambda x: safe_normalize(x)[0], lambda x: safe_divide(x[0], 2.0), lambda x: safe_divide(x[0], 0.0)],
)
def test_a_nan_goes_through(function):
    assert np.isnan(function(jnp.array([np.nan, 1.0]))).any()
