from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses.views import vicreg_loss

B, D = 9, 4
HYPER = {"invariance": 3.0, "variance": 5.0, "covariance": 2.0, "eps": 1e-3}
seeds = st.integers(0, 2**32 - 1)


@jax.jit
def evaluate(z, other, weights):
    """`((loss, stats), gradients)`, in one program for all tests."""

    def loss(z, other):
        return vicreg_loss(z, other, **HYPER, weights=weights, where=weights >= 0, has_aux=True)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(z, other)


def loss_stats_gradients(z, other, weights=None):
    (loss, stats), gradients = evaluate(z, other, np.ones(B, np.float32) if weights is None else np.float32(weights))
    return loss, stats, gradients


def brute_force(z, other):
    """The authors' three terms, coordinate by coordinate."""
    invariance = np.mean([(z[b, d] - other[b, d]) ** 2 for b in range(len(z)) for d in range(D)])
    variance = covariance = 0.0
    for view in (z, other) if len(z) > 1 else ():
        for d in range(D):
            variance += max(0, 1 - np.sqrt(np.var(view[:, d], ddof=1) + HYPER["eps"])) / D / 2
            for e in range(D):
                covariance += (np.cov(view[:, d], view[:, e], ddof=1)[0, 1] ** 2 / D) * (d != e)
    return HYPER["invariance"] * invariance + HYPER["variance"] * variance + HYPER["covariance"] * covariance


def example(seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(B, D)) * [0.1, 0.5, 1, 2] @ rng.normal(size=(D, D)) / 2
    return z.astype(np.float32), (z + 0.3 * rng.normal(size=(B, D))).astype(np.float32)


@given(seed=seeds)
def test_is_the_loss_of_the_authors(seed):
    z, other = example(seed)
    loss, stats, _ = loss_stats_gradients(z, other)
    np.testing.assert_allclose(loss, brute_force(np.float64(z), np.float64(other)), rtol=1e-4)
    np.testing.assert_allclose(stats, (loss * B, B, B), rtol=1e-6)


@given(seed=seeds)
def test_masking_equals_deleting(seed):
    z, other = example(seed)
    where = np.random.default_rng(seed).random(B) < 0.6
    where[0] = True
    expected = brute_force(np.float64(z[where]), np.float64(other[where]))
    z[~where], other[~where] = np.nan, np.inf
    loss, _, gradients = loss_stats_gradients(z, other, np.where(where, 1, -1))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[~where], 0)
        assert np.isfinite(gradient).all()


def test_a_single_example_has_no_variance():
    z, other = example()
    where = np.arange(B) == 4
    expected = HYPER["invariance"] * np.mean((z[4] - other[4]) ** 2)
    np.testing.assert_allclose(loss_stats_gradients(z, other, where)[0], expected, rtol=1e-5)


def test_only_the_ratio_of_weights_matters():
    z, other = example()
    weights = np.linspace(0, 2, B)
    loss, stats, _ = loss_stats_gradients(z, other, weights)
    np.testing.assert_allclose(loss_stats_gradients(z, other, 8 * weights)[0], loss, rtol=1e-5)
    np.testing.assert_allclose(loss, stats.total / stats.valid, rtol=1e-6)


def test_the_weighted_covariance_is_unbiased():
    """As numpy's with `aweights`."""
    z, other = example()
    weights = np.linspace(0.5, 2, B)
    only = {"invariance": 0, "variance": 0, "covariance": 1}
    loss = jax.jit(partial(vicreg_loss, **only))(z, other, weights=weights)
    expected = 0.0
    for view in (z, other):
        matrix = np.cov(np.float64(view).T, aweights=weights)
        expected += ((matrix - np.diag(np.diag(matrix))) ** 2).sum() / D
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@given(seed=seeds)
def test_gradient_is_the_finite_difference(seed):
    z, other = example(seed)
    directions = np.random.default_rng([seed, 1]).normal(size=(2, B, D))
    gradients = loss_stats_gradients(z, other)[-1]
    above, below = (
        brute_force(*(np.float64(x) + sign * 1e-6 * d for x, d in zip((z, other), directions, strict=True)))
        for sign in (1, -1)
    )
    slope = sum((gradient * d).sum() for gradient, d in zip(gradients, directions, strict=True))
    scale = sum(np.abs(gradient * d).sum() for gradient, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, atol=1e-4 * scale)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_collapsed_views_have_finite_gradients(eps):
    same = np.tile(np.float32([0.3, -1.7, 0.9, 0.0]), (B, 1))
    loss, gradient = jax.jit(jax.value_and_grad(partial(vicreg_loss, eps=eps)))(same, same)
    np.testing.assert_allclose(loss, 25 * (1 - np.sqrt(eps)), rtol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_everything_masked_is_0_without_gradient():
    loss, stats, gradients = loss_stats_gradients(*example(), np.zeros(B))
    assert loss == stats.valid == 0
    np.testing.assert_array_equal(gradients, 0)


def test_a_nan_stays_visible():
    z, other = example()
    other[3, 1] = np.nan
    assert np.isnan(loss_stats_gradients(z, other)[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"other": np.ones((B, 3), np.float32)},
            ValueError,
            r"other has shape \(9, 3\), expected \(9, 4\) as embeddings",
        ),
        ({"other": np.ones((B, D), int)}, TypeError, "other has dtype int.*, expected a floating-point dtype"),
        ({"variance": -1}, ValueError, "variance is -1, expected a finite number of at least 0"),
        ({"reduction": "none"}, ValueError, "reduction is 'none', expected one of mean, mean_active, sum"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    z, other = example()
    with pytest.raises(error, match=message):
        vicreg_loss(**{"embeddings": z, "other": other} | changes)
