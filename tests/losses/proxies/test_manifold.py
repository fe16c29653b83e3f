from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses.proxies import manifold_loss

B, C, D = 8, 3, 4
HYPER = {"context_weight": 0.7, "alpha": 0.6, "margin": 0.02}
seeds = st.integers(0, 2**32 - 1)


@jax.jit
def evaluate(embeddings, labels, proxies, weights):
    """`((losses, stats), gradients of the mean)`, in one program for all tests."""

    def loss(embeddings, proxies, reduction):
        options = {"weights": weights, "where": weights >= 0, "reduction": reduction}
        return manifold_loss(embeddings, labels, proxies, **HYPER, **options, has_aux=True)

    gradients = jax.grad(lambda *x: loss(*x, "mean")[0], argnums=(0, 1))(embeddings, proxies)
    return loss(embeddings, proxies, "none"), gradients


def losses_stats_gradients(embeddings, labels, proxies, weights=None):
    weights = np.ones(B) if weights is None else weights
    (losses, stats), gradients = evaluate(embeddings, labels, proxies, weights.astype(np.float32))
    return losses, stats, gradients


def random_walks(points):
    """Where walks end up: (1 - alpha) times the sum over their lengths n of alpha^n S^n."""
    x = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-300)
    affinity = np.exp(np.maximum(x @ x.T, 0) / 0.5)
    np.fill_diagonal(affinity, 0)
    root = np.sqrt(affinity.sum(1))
    step = affinity / root[:, None] / root[None]
    total, term = np.zeros_like(step), np.eye(len(step))
    for _ in range(200):
        total, term = total + term, HYPER["alpha"] * step @ term
    return (1 - HYPER["alpha"]) * total


def brute_force(embeddings, labels, proxies):
    walks = random_walks(np.concatenate([embeddings, proxies]).astype(np.float64))
    count = len(embeddings)
    losses = []
    for i, y in enumerate(labels):
        walk, context = walks[i], []
        for c in range(len(proxies)):
            of_proxy = walks[count + c]
            context.append(walk @ of_proxy / np.linalg.norm(walk) / np.linalg.norm(of_proxy))
        loss = 0.0
        for similarity, weight in ((walk[count:], 1), (context, HYPER["context_weight"])):
            excess = [similarity[c] - similarity[y] + HYPER["margin"] for c in range(len(proxies)) if c != y]
            loss += weight * np.log(1 + sum(np.exp(e) for e in excess if e >= 0))
        losses.append(loss)
    return np.array(losses)


def example(seed=0):
    rng = np.random.default_rng(seed)
    embeddings, proxies = rng.normal(size=(B, D)), rng.normal(size=(C, D))
    return embeddings.astype(np.float32), rng.integers(0, C, B), proxies.astype(np.float32)


@given(seed=seeds)
def test_is_the_n_pair_loss_of_the_random_walks(seed):
    embeddings, labels, proxies = example(seed)
    expected = brute_force(embeddings, labels, proxies)
    losses, stats, _ = losses_stats_gradients(embeddings, labels, proxies)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(stats, (expected.sum(), B, (expected > 0).sum()), rtol=1e-4)


@given(seed=seeds)
def test_masking_equals_deleting_and_weights_weigh_the_losses(seed):
    embeddings, labels, proxies = example(seed)
    weights = np.random.default_rng(seed).choice([-1, 0, 0.5, 2], B)  # -1: masked by `where`
    kept = weights > 0
    expected = weights[kept] * brute_force(embeddings[kept], labels[kept], proxies)
    embeddings[~kept], labels[~kept] = np.nan, -7
    losses, stats, gradients = losses_stats_gradients(embeddings, labels, proxies, weights)
    np.testing.assert_allclose(losses[kept], expected, rtol=1e-4)
    np.testing.assert_allclose(stats.valid, weights[kept].sum(), rtol=1e-6)
    np.testing.assert_array_equal(losses[~kept], 0)
    np.testing.assert_array_equal(gradients[0][~kept], 0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@given(seed=seeds)
def test_gradient_is_the_finite_difference(seed):
    embeddings, labels, proxies = example(seed)
    rng = np.random.default_rng([seed, 1])
    directions = rng.normal(size=(B, D)), rng.normal(size=(C, D))
    above, below = (
        brute_force(
            np.float64(embeddings) + sign * 1e-6 * directions[0],
            labels,
            np.float64(proxies) + sign * 1e-6 * directions[1],
        ).mean()
        for sign in (1, -1)
    )
    gradients = losses_stats_gradients(embeddings, labels, proxies)[-1]
    slope = sum((gradient * d).sum() for gradient, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("case", ["duplicates", "zeros", "huge", "tiny"])
def test_degenerate_points_have_finite_gradients(case):
    embeddings, labels, proxies = example()
    if case == "duplicates":
        embeddings[:], proxies[:] = embeddings[0], embeddings[0]
    else:
        factor = {"zeros": 0, "huge": 1e8, "tiny": 1e-30}[case]
        embeddings, proxies = (np.float32(factor) * x for x in (embeddings, proxies))
    result = losses_stats_gradients(embeddings, labels, proxies)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


def test_everything_masked_is_0_without_gradient():
    losses, stats, gradients = losses_stats_gradients(*example(), np.zeros(B))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), (losses, stats, gradients))


def test_a_single_class_has_no_loss():
    embeddings, _, proxies = example()
    loss = jax.jit(jax.value_and_grad(manifold_loss))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), loss(embeddings, np.zeros(B, int), proxies[:1]))


def test_a_nan_stays_visible():
    embeddings, labels, proxies = example()
    embeddings[3, 1] = np.nan
    assert np.isnan(losses_stats_gradients(embeddings, labels, proxies)[1].total)


def test_columns_of_labels_are_added():
    embeddings, labels, proxies = example()
    columns, more = np.stack([labels, 1 - labels % 2], axis=1), example(3)[2][:2]
    loss = jax.jit(partial(manifold_loss, **HYPER))
    expected = brute_force(embeddings, labels, proxies).mean() + brute_force(embeddings, columns[:, 1], more).mean()
    np.testing.assert_allclose(loss(embeddings, columns, (proxies, more)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"alpha": 1.0}, ValueError, "alpha is 1, expected a finite number above 0 and below 1"),
        ({"alpha": 0}, ValueError, "alpha is 0, expected a finite number above 0"),
        ({"context_weight": np.inf}, ValueError, "context_weight is inf, expected a finite number of at least 0"),
        ({"labels": np.full(B, C)}, ValueError, r"labels span \[3, 3\], expected classes in \[0, 3\) as proxies"),
        ({"proxies": np.ones((C, 2), np.float32)}, ValueError, r"proxies has shape \(3, 2\), expected last axis 4"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    embeddings, labels, proxies = example()
    with pytest.raises(error, match=message):
        manifold_loss(**{"embeddings": embeddings, "labels": labels, "proxies": proxies} | changes)
