import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxmetric.distances import pairwise_cosine_similarity, pairwise_dot_product, pairwise_squared_euclidean

ALL = [pairwise_dot_product, pairwise_cosine_similarity, pairwise_squared_euclidean]
EXPECTED = {
    pairwise_dot_product: lambda x, y: x @ y.T,
    pairwise_cosine_similarity: lambda x, y: 1 - cdist(x, y, "cosine"),
    pairwise_squared_euclidean: lambda x, y: cdist(x, y, "sqeuclidean"),
}


@pytest.mark.parametrize("function", ALL)
def test_equals_scipy(function):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 7)), rng.normal(size=(4, 7))
    np.testing.assert_allclose(function(x, y), EXPECTED[function](x, y), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(function(x), EXPECTED[function](x, x), rtol=1e-5, atol=2e-6)


def test_integer_coordinates_have_exact_distances():
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (20, 16))
    squared = pairwise_squared_euclidean(x.astype(np.float32))
    np.testing.assert_array_equal(squared, np.square(x[:, None] - x[None]).sum(-1))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "float16"])
def test_other_dtypes_are_computed_in_float32(function, dtype):
    x = jnp.array([[1.0, 2.0, 3.0], [101.0, -7.0, 0.0]], dtype)
    result = function(x)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, function(x.astype(jnp.float32)))


def test_float64_stays_float64():
    x = np.random.default_rng(0).normal(size=(6, 5))
    with jax.enable_x64(True):
        np.testing.assert_allclose(pairwise_squared_euclidean(x), cdist(x, x, "sqeuclidean"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("function", ALL)
def test_asks_for_the_highest_matmul_precision(function):
    products = [
        equation
        for equation in jax.make_jaxpr(function)(jnp.ones((3, 2))).eqns
        if equation.primitive.name == "dot_general"
    ]
    assert len(products) == 1
    assert set(products[0].params["precision"]) == {jax.lax.Precision.HIGHEST}


def test_squared_distances_of_close_points_are_not_negative():
    x = 100 + 1e-4 * np.random.default_rng(0).normal(size=(50, 8))
    assert (pairwise_squared_euclidean(x) >= 0).all()


def test_cosine_of_a_zero_row_is_zero():
    np.testing.assert_array_equal(pairwise_cosine_similarity(np.array([[0.0, 0.0], [0.0, 2.0]])), [[0, 0], [0, 1]])


@pytest.mark.parametrize("function", ALL)
def test_equal_and_zero_rows_have_finite_gradients(function):
    x = jnp.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    assert np.isfinite(jax.grad(lambda x: function(x).sum())(x)).all()


@pytest.mark.parametrize("function", ALL)
def test_a_nan_stays_visible(function):
    assert np.isnan(function(jnp.array([[1.0, np.nan], [1.0, 2.0]]))[0, 1])


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (2, 4)), ((2, 2, 3), (2, 2, 3))])
def test_shapes_which_do_not_fit_are_named(function, shapes):
    x, y = (np.ones(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=r"x and y have shapes .* expected \[A, D\] and \[B, D\]"):
        function(x, y)
