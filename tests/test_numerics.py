import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy.special import logsumexp as scipy_logsumexp

from jaxmetric.numerics import (
    as_float,
    equally_varying,
    excess,
    masked_logsumexp,
    replicated,
    safe_abs,
    safe_divide,
    safe_normalize,
    safe_sqrt,
    sharded_like,
    softplus,
)


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "float16", "float32"])
def test_as_float_computes_in_float32(dtype):
    assert as_float(jnp.ones(3, dtype)).dtype == jnp.float32


def test_as_float_keeps_float64():
    with jax.enable_x64(True):
        assert as_float(jnp.ones(3, jnp.float64)).dtype == jnp.float64


def test_safe_abs_is_abs_and_flat_at_zero():
    values, gradients = jax.vmap(jax.value_and_grad(safe_abs))(jnp.array([-4.0, -0.0, 0.0, 0.25, jnp.inf]))
    np.testing.assert_array_equal(values, [4, 0, 0, 0.25, np.inf])
    np.testing.assert_array_equal(gradients, [-1, 0, 0, 1, 1])


def test_safe_sqrt_is_sqrt_for_positive_arguments_and_flat_elsewhere():
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


def test_safe_divide_by_zero_is_zero_and_flat():
    value, gradients = jax.value_and_grad(safe_divide, argnums=(0, 1))(5.0, 0.0)
    assert (value, *gradients) == (0, 0, 0)
    value, gradients = jax.value_and_grad(safe_divide, argnums=(0, 1))(6.0, 2.0)
    assert (value, *gradients) == (3, 0.5, -1.5)


@pytest.mark.parametrize(
    "function",
    [
        safe_abs,
        safe_sqrt,
        lambda x: safe_normalize(x)[0],
        lambda x: safe_divide(x[0], 2.0),
        lambda x: safe_divide(x[0], 0.0),
    ],
)
def test_a_nan_stays_visible(function):
    assert np.isnan(function(jnp.array([np.nan, 1.0]))).any()


def logsumexp(x, axis, weights):
    with np.errstate(divide="ignore"):
        return scipy_logsumexp(x, axis=axis, b=weights)


def test_masked_logsumexp_is_the_weighted_logsumexp_of_the_selected_entries():
    rng = np.random.default_rng(0)
    x, where, weights = 50 * rng.normal(size=(6, 9)), rng.random((6, 9)) < 0.5, rng.random((6, 9))
    where[:, 0] = True
    for axis in (0, 1):
        value = masked_logsumexp(x, where, axis=axis, weights=weights)
        np.testing.assert_allclose(value, logsumexp(x, axis, np.where(where, weights, 0)), rtol=1e-5)
        np.testing.assert_allclose(
            masked_logsumexp(x, where, axis=axis), logsumexp(x, axis, where.astype(float)), rtol=1e-5
        )


def test_the_gradient_of_masked_logsumexp_is_the_softmax_of_the_selected_entries():
    x, where, weights = np.float32([1, 2, 3, 90]), np.array([True, True, True, False]), np.float32([1, 2, 0, 1])
    expected = np.array([np.exp(1), 2 * np.exp(2), 0, 0]) / (np.exp(1) + 2 * np.exp(2))
    np.testing.assert_allclose(jax.grad(lambda x: masked_logsumexp(x, where, weights=weights))(x), expected, rtol=1e-5)


@pytest.mark.parametrize("left_out", [1.0, 1e38, np.inf, -np.inf, np.nan])
def test_masked_logsumexp_ignores_unselected_entries(left_out):
    x = jnp.array([[left_out, 5.0, 5.0], [left_out] * 3])
    selected = jnp.array([[False, True, True], [False] * 3])

    @jax.jit
    def both(x):
        by_mask = masked_logsumexp(x, selected)
        return jnp.stack([by_mask, masked_logsumexp(x, True, weights=selected)])

    np.testing.assert_allclose(both(x), [[5 + np.log(2), -np.inf]] * 2, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jax.nn.softplus(both(x)).sum()))(x)
    np.testing.assert_allclose(gradient, [[0, 1 / (1 + np.exp(-5) / 2), 1 / (1 + np.exp(-5) / 2)], [0] * 3], rtol=1e-5)


def test_softplus_of_an_empty_masked_logsumexp_is_zero_and_flat():
    value, gradient = jax.value_and_grad(lambda x: jax.nn.softplus(masked_logsumexp(x, x > 10)))(jnp.arange(3.0))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert masked_logsumexp(jnp.zeros((2, 0)), True).tolist() == [-np.inf] * 2


def test_masked_logsumexp_neither_overflows_nor_underflows():
    assert masked_logsumexp(jnp.array([1e8, 1e8]), True) == 1e8
    np.testing.assert_allclose(masked_logsumexp(jnp.array([-1e8, -2e8]), True), -1e8)
    tiny = masked_logsumexp(jnp.array([0.0, 100.0]), True, weights=jnp.array([1.0, 1e-37]))
    np.testing.assert_allclose(tiny, np.log(1 + np.exp(100 + np.log(1e-37))), rtol=1e-5)


def test_masked_logsumexp_shows_infinities_and_nan_of_the_selected():
    assert masked_logsumexp(jnp.array([1.0, -np.inf]), True) == 1
    assert masked_logsumexp(jnp.array([-np.inf, -np.inf]), True) == -np.inf
    assert masked_logsumexp(jnp.array([1.0, np.inf]), True) == np.inf
    assert np.isnan(masked_logsumexp(jnp.array([1.0, np.nan]), True))
    assert np.isnan(masked_logsumexp(jnp.array([1.0, 2.0]), True, weights=jnp.array([1.0, np.nan])))


def test_masked_logsumexp_computes_in_float32_and_promotes_nothing_implicitly():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        value = masked_logsumexp(jnp.ones((2, 3)), jnp.ones((2, 1), bool), weights=jnp.ones((1, 3)))
    assert value.shape == (2,)
    assert masked_logsumexp(jnp.ones(3, jnp.bfloat16), True).dtype == jnp.float32


def test_softplus_is_log_1_plus_exp_with_a_sigmoid_for_its_gradient():
    x = np.array([-np.inf, -1e10, -3.0, 0.0, 2.0, 1e10, np.inf], np.float32)
    values, gradients = jax.vmap(jax.value_and_grad(softplus))(x)
    np.testing.assert_allclose(values, np.logaddexp(x, 0), rtol=1e-6)
    np.testing.assert_allclose(gradients, [0, 0, 1 / (1 + np.exp(3)), 0.5, 1 / (1 + np.exp(-2)), 1, 1], rtol=1e-6)
    assert np.isnan(softplus(np.float32(np.nan)))
    np.testing.assert_allclose(jax.grad(jax.grad(softplus))(0.0), 0.25, rtol=1e-6)


def test_excess_is_the_difference_to_the_largest_and_never_above_zero():
    x = jnp.array([-jnp.inf, -2.0, 1.0, jnp.nan])
    np.testing.assert_array_equal(excess(x, jnp.float32(1)), [-np.inf, -3, 0, np.nan])
    np.testing.assert_array_equal(excess(jnp.float32(jnp.inf), jnp.float32(jnp.inf)), 0)
    np.testing.assert_array_equal(excess(jnp.float32(1.5), jnp.float32(1)), 0)
    for value in (-2.0, 1.0):
        assert jax.grad(excess, argnums=(0, 1))(value, 1.0) == (1, -1)


def test_masked_logsumexp_of_products_is_right_where_they_are_large():
    rng = np.random.default_rng(0)
    x, factors = rng.normal(size=(2, 64, 32)).astype(np.float32)
    for scale in np.float32([1e6, 1e12, 1e30]):

        def total(x, scale=scale):
            return jnp.sum(masked_logsumexp(x * factors * scale, True))

        products = np.float64(x) * factors * scale
        value, gradient = jax.jit(jax.value_and_grad(total))(x)
        np.testing.assert_allclose(value, scipy_logsumexp(products, axis=1).sum(), rtol=1e-5)
        shares = np.exp(products - scipy_logsumexp(products, axis=1, keepdims=True))
        np.testing.assert_allclose(gradient / (factors * scale), shares, atol=1e-5)


def test_masked_logsumexp_has_second_derivatives():
    x = jnp.array([0.5, -1.0, 2.0])
    shares = np.exp(x) / np.exp(x).sum()
    hessian = jax.hessian(lambda x: masked_logsumexp(x, True))(x)
    np.testing.assert_allclose(hessian, np.diag(shares) - np.outer(shares, shares), atol=1e-6)


def test_infinite_terms_of_masked_logsumexp_stay_visible():
    assert masked_logsumexp(jnp.array([1.0, jnp.inf]), True) == np.inf
    assert masked_logsumexp(jnp.array([1.0, jnp.inf]), jnp.array([True, False])) == 1


def test_equally_varying_arrays_vary_over_the_axes_of_all():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec

    def axes_of(*arrays):
        return [jax.typeof(x).manual_axis_type.varying for x in arrays]

    def on_device(x, y, z):
        seen.extend(axes_of(*jax.tree.leaves(equally_varying({"x": x, "y": (y, None), "z": z, "one": 1.0}))))
        return x

    seen = []
    in_specs = (spec("data"), spec("model"), spec())
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=spec("data"))
    jax.eval_shape(mapped, *np.ones((3, 4)))
    assert seen == [{"data", "model"}] * 4
    tree = {"x": np.ones(2), "one": 1.0}
    assert equally_varying(tree) == tree


@pytest.mark.parametrize("axes", [(AxisType.Explicit,) * 2, (AxisType.Auto,) * 2], ids=["explicit", "auto"])
@pytest.mark.parametrize(
    "spec",
    [(), ("data",), ("model",), (("data", "model"),), (None, "data"), ("data", "model"), ("model", "data")],
    ids=str,
)
def test_a_replicated_array_has_no_explicit_sharding_and_its_gradient_that_of_the_input(axes, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=axes)
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
    whole = replicated(placed)
    np.testing.assert_array_equal(whole, x)
    assert all(axis is None for axis in jax.typeof(whole).sharding.spec)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(replicated(x) @ replicated(x).T)))(placed)
    np.testing.assert_allclose(gradient, np.tile(2 * x.sum(axis=0), (8, 1)))
    if axes[0] == AxisType.Explicit:  # else it is chosen by the compiler
        assert gradient.sharding.is_equivalent_to(placed.sharding, 2)
    assert jax.typeof(sharded_like(placed, whole)).sharding == jax.typeof(placed).sharding
