import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxmetric import distances
from jaxmetric.distances import (
    pairwise_cosine_distance,
    pairwise_cosine_similarity,
    pairwise_dot_product,
    pairwise_euclidean,
    pairwise_lp,
    pairwise_snr,
    pairwise_squared_euclidean,
)

jitted = cache(jax.jit)


@cache
def gradients_of(function):
    """The gradients, for both arguments, of the sum of the distances, each times a cotangent."""
    return jax.jit(jax.grad(lambda x, y, cotangent: jnp.sum(function(x, y) * cotangent), argnums=(0, 1)))


def snr(x, y):
    """The definition, pair by pair."""
    return np.array([[np.var(a - b) / np.var(a) for b in y] for a in x])


DEFINITIONS = {
    "dot": (pairwise_dot_product, lambda x, y: x @ y.T),
    "cosine similarity": (pairwise_cosine_similarity, lambda x, y: 1 - cdist(x, y, "cosine")),
    "squared Euclidean": (pairwise_squared_euclidean, lambda x, y: cdist(x, y, "sqeuclidean")),
    "Euclidean": (pairwise_euclidean, cdist),
    "cosine distance": (pairwise_cosine_distance, lambda x, y: cdist(x, y, "cosine")),
    "SNR": (pairwise_snr, snr),
    "L1": (partial(pairwise_lp, p=1), lambda x, y: cdist(x, y, "cityblock")),
    "root of L1.5": (partial(pairwise_lp, p=1.5, power=0.5), lambda x, y: cdist(x, y, "minkowski", p=1.5) ** 0.5),
    "L2 to 1.5": (partial(pairwise_lp, p=2, power=1.5), lambda x, y: cdist(x, y) ** 1.5),
    "cube of L3": (partial(pairwise_lp, p=3, power=3), lambda x, y: cdist(x, y, "minkowski", p=3) ** 3),
    "L infinity": (partial(pairwise_lp, p=math.inf), lambda x, y: cdist(x, y, "chebyshev")),
}
EXPECTED = dict(DEFINITIONS.values())


def over(*names):
    functions = [pytest.param(DEFINITIONS[name][0], id=name) for name in names]
    return pytest.mark.parametrize("function", functions)


over_all = over(*DEFINITIONS)
BY_ANCHORS = ("L1", "root of L1.5", "cube of L3", "L infinity")


@over_all
def test_equals_scipy(function):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 7)), rng.normal(size=(4, 7))
    np.testing.assert_allclose(jitted(function)(x, y), EXPECTED[function](x, y), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jitted(function)(x), EXPECTED[function](x, x), rtol=1e-5, atol=3e-6)


@over_all
def test_gradients_are_those_of_the_definition(function):
    rng = np.random.default_rng(1)
    x, y, cotangent = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(3, 4))
    step = 1e-6
    for argument, gradient in enumerate(gradients_of(function)(x, y, cotangent)):
        for index in np.ndindex(gradient.shape):
            moved = [[x.copy(), y.copy()] for _ in range(2)]
            moved[0][argument][index] += step
            moved[1][argument][index] -= step
            plus, minus = (np.sum(EXPECTED[function](*each) * cotangent) for each in moved)
            np.testing.assert_allclose(gradient[index], (plus - minus) / (2 * step), rtol=1e-3, atol=1e-4)


@over("squared Euclidean", "L1", "cube of L3", "L infinity")
def test_integer_coordinates_have_exact_distances(function):
    x = np.random.default_rng(0).integers(-9, 10, (20, 16))
    np.testing.assert_allclose(jitted(function)(x.astype(np.float32)), EXPECTED[function](x, x), rtol=5e-7)


@over_all
def test_other_dtypes_are_computed_in_float32(function):
    x = np.float32([[1, 2, 3], [101, -7, 0]])
    expected = jitted(function)(x)
    for dtype in ("bfloat16",) if function is not pairwise_squared_euclidean else ("bfloat16", "float16", "int32"):
        result = jitted(function)(jnp.asarray(x, dtype))
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@over("squared Euclidean", "Euclidean", "SNR", "root of L1.5")
def test_float64_stays_float64(function):
    x, y = np.random.default_rng(0).normal(size=(2, 6, 5))
    with jax.enable_x64(True):
        np.testing.assert_allclose(jitted(function)(x, y), EXPECTED[function](x, y), rtol=1e-11)


@over("dot", "cosine similarity", "squared Euclidean", "Euclidean", "cosine distance", "SNR")
def test_requests_the_highest_matmul_precision(function):
    traced = str(jax.make_jaxpr(function)(jnp.ones((3, 2))))
    products = re.findall(r"dot_general\[.*?precision=(\(.*?\)|\w+)", traced, re.DOTALL)
    assert products == ["(Precision.HIGHEST, Precision.HIGHEST)"]


def test_squared_distances_of_close_points_are_not_negative():
    x = 100 + 1e-4 * np.random.default_rng(0).normal(size=(50, 8))
    assert (pairwise_squared_euclidean(x) >= 0).all()


def test_cosine_of_a_zero_row_is_zero():
    np.testing.assert_array_equal(pairwise_cosine_similarity(np.array([[0.0, 0.0], [0.0, 2.0]])), [[0, 0], [0, 1]])


def test_cosine_distances_lie_between_0_and_2():
    x = np.random.default_rng(0).normal(size=(50, 7))
    found = pairwise_cosine_distance(np.concatenate([x, -x, 0 * x]))
    assert (found >= 0).all()
    assert (found <= 2 + 1e-6).all()
    np.testing.assert_array_equal(found[-1], 1)


@over_all
@pytest.mark.parametrize("size", [1, 1e8, 1e-18, 1e-30])
def test_equal_and_zero_rows_have_finite_distances_and_gradients(function, size):
    x = size * np.float32([[1, 2, 4], [1, 2, 4], [3, 3, 3], [0, 0, 0], [0, 0, 0]])
    assert np.isfinite(jitted(function)(x, x)).all()
    for gradient in gradients_of(function)(x, x, np.ones((5, 5), np.float32)):
        assert np.isfinite(gradient).all()


@over("Euclidean", "L2 to 1.5", *BY_ANCHORS)
def test_coincident_points_have_distance_and_gradient_zero(function):
    points = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32)
    np.testing.assert_array_equal(np.diag(jitted(function)(points, points)), 0)
    for gradient in gradients_of(function)(points, points, np.eye(20, dtype=np.float32)):
        np.testing.assert_array_equal(gradient, 0)


@over_all
def test_a_nan_stays_visible_and_in_its_pairs(function):
    found = jitted(function)(np.float32([[1, np.nan], [1, 2], [5, 3]]), np.float32([[4, 2], [np.nan, 3]]))
    np.testing.assert_array_equal(np.isnan(found), [[True, True], [False, True], [False, True]])


@over_all
@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (2, 4)), ((2, 2, 3), (2, 2, 3))])
def test_shapes_which_do_not_fit_are_named(function, shapes):
    x, y = (np.ones(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=r"x and y have shapes .* expected \[A, D\] and \[B, D\]"):
        function(x, y)


@over_all
def test_nothing_is_promoted_implicitly(function):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(function, jnp.ones((2, 3)), jnp.ones((4, 3))).shape == (2, 4)


def test_all_public_functions_are_covered():
    public = {name for name in vars(distances) if name.startswith("pairwise_")}
    assert public == {getattr(function, "func", function).__name__ for function, _ in DEFINITIONS.values()}


@over_all
def test_gradients_promote_nothing_implicitly(function):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(gradients_of(function), *(jnp.ones(shape) for shape in ((2, 3), (4, 3), (2, 4))))


MESHES = {"one axis": ((8,), ("data",)), "two axes": ((4, 2), ("data", "model"))}


@over_all
@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        ("one axis", jax.P("data")),
        pytest.param("one axis", jax.P(None, "data"), marks=pytest.mark.slow),
        ("two axes", jax.P("data", "model")),
    ],
)
def test_rows_on_a_mesh_of_explicit_axes_are_those_of_one_device(function, axes, spec):
    rng = np.random.default_rng(2)
    rows = [rng.normal(size=shape).astype(np.float32) for shape in ((8, 16), (16, 16))]
    cotangent = rng.normal(size=(8, 16)).astype(np.float32)
    mesh = jax.make_mesh(*MESHES[axes])
    placed = [jax.device_put(each, jax.NamedSharding(mesh, spec)) for each in rows]
    expected = jitted(function)(*rows)
    np.testing.assert_allclose(jitted(function)(*placed), expected, rtol=1e-5, atol=1e-5)
    if spec == jax.P("data"):
        np.testing.assert_allclose(function(*placed), expected, rtol=1e-5, atol=1e-5)
    with jax.set_mesh(mesh):
        assert jax.eval_shape(function, *placed).shape == (8, 16)
    everywhere = jax.device_put(cotangent, jax.NamedSharding(mesh, jax.P()))
    for found, wanted, each in zip(
        gradients_of(function)(*placed, everywhere), gradients_of(function)(*rows, cotangent), placed, strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        assert found.sharding.is_equivalent_to(each.sharding, 2)


@over_all
def test_shards_of_anchors_against_all_others_are_rows_of_the_whole(function):
    rng = np.random.default_rng(3)
    x, y, cotangent = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 5), (16, 5), (8, 16)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")

    @partial(jax.shard_map, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    def sharded(x, y):
        return function(x, jax.lax.all_gather(y, "data", tiled=True))

    np.testing.assert_allclose(jax.jit(sharded)(x, y), jitted(function)(x, y), rtol=1e-5, atol=1e-5)
    gradients = jax.jit(jax.grad(lambda x, y: jnp.sum(sharded(x, y) * cotangent), argnums=(0, 1)))(x, y)
    for found, wanted in zip(gradients, gradients_of(function)(x, y, cotangent), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@over(*BY_ANCHORS)
def test_lp_distances_hold_no_array_of_coordinate_differences(function):
    count, dim = 256, 128
    compiled = jax.jit(jax.grad(lambda x: function(x).sum())).lower(jnp.ones((count, dim))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * count * (count + dim)  # they would take 33.5 MB


def test_lp_norms_of_large_powers_do_not_overflow():
    points = jnp.array([[0.0, 0.0], [3e8, 3e8]])
    np.testing.assert_allclose(pairwise_lp(points, p=50)[0, 1], 3e8 * 2 ** (1 / 50), rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"p": 0.5}, {"p": math.nan}, {"p": 2, "power": 0}, {"p": 1, "power": math.inf}])
def test_invalid_norms_are_named(arguments):
    with pytest.raises(ValueError, match=r"^p(ower)? is \S+, expected a (finite )?number"):
        pairwise_lp(jnp.ones((2, 2)), **arguments)


def test_the_anchor_of_the_snr_distance_is_the_first_argument():
    loud, quiet = jnp.array([[2.0, -2.0]]), jnp.array([[1.0, -1.0]])
    assert jitted(pairwise_snr)(loud, quiet) == 0.25
    assert jitted(pairwise_snr)(quiet, loud) == 1


def test_the_snr_distance_ignores_a_common_scale_and_a_constant_added_to_a_row():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 6)).astype(np.float32)
    function = jitted(pairwise_snr)
    expected = function(x, y)
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(function(scale * x, scale * y), expected, rtol=1e-5)
    np.testing.assert_allclose(function(x + 1, y - np.float32([[0], [1], [2], [3]])), expected, rtol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8])
def test_an_anchor_without_signal_has_snr_distances_of_zero(constant):
    anchors, others = np.float32([[constant] * 3]), np.float32([[1, 2, 3]])
    assert jitted(pairwise_snr)(anchors, others) == 0
    for gradient in gradients_of(pairwise_snr)(anchors, others, np.ones((1, 1), np.float32)):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("size", [1e-8, 1e-15, 1e-30])
def test_anchors_of_very_different_variance_have_finite_snr_distances_and_gradients(size):
    x = np.float32([[size, -size, 0], [1, 0, 1]])
    assert np.isfinite(jitted(pairwise_snr)(x, x)).all()
    for gradient in gradients_of(pairwise_snr)(x, x, np.ones((2, 2), np.float32)):
        assert np.isfinite(gradient).all()
