from itertools import product

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.distances import pairwise_snr
from jaxmetric.losses.triplets import chen_quadruplet_loss
from jaxmetric.references import References

B, R = 10, 8


@jax.jit
def within_batch(embeddings, labels, margins, weights):
    def loss(embeddings):
        return chen_quadruplet_loss(
            embeddings, labels, margin=margins[0], second_margin=margins[1], weights=weights, has_aux=True
        )

    return jax.value_and_grad(loss, has_aux=True)(embeddings)


def squared(x, y):
    return ((np.float64(x)[:, None] - np.float64(y)[None]) ** 2).sum(-1)


def tuples(labels, of_references, allowed):
    """Triplets ((a, p), (a, n)) and quadruplets ((a, p), (k, m)), by a loop over all pairs of pairs."""
    pairs = [(i, j) for i, j in product(range(len(labels)), range(len(of_references))) if allowed[i, j]]
    for (a, p), (k, m) in product(pairs, pairs):
        if labels[a] != of_references[p] or labels[k] == of_references[m]:
            continue
        if k == a:
            yield 0, (a, p), (k, m)
        if labels[a] not in (labels[k], of_references[m]):
            yield 1, (a, p), (k, m)


def brute_force(
    distances, labels, of_references, allowed, margins=(1.0, 0.5), weights=None, of_references_weights=None
):
    """Total, valid and active weight of triplets and quadruplets; the sum of both means; its gradient in distances."""
    weights = np.ones(len(labels)) if weights is None else weights
    of_references_weights = weights if of_references_weights is None else of_references_weights
    stats, gradients = np.zeros((3, 2)), np.zeros((2, *distances.shape))
    for kind, near, far in tuples(labels, of_references, allowed):
        loss = max(distances[near] - distances[far] + margins[kind], 0)
        members = weights[near[0]] * of_references_weights[near[1]] * of_references_weights[far[1]]
        weight = members * (weights[far[0]] if kind == 1 else 1)
        stats[:, kind] += weight * np.array([loss, 1, loss > 0])
        gradients[kind][near] += weight * (loss > 0)
        gradients[kind][far] -= weight * (loss > 0)
    counts = np.where(stats[1] > 0, stats[1], 1)
    return stats, (stats[0] / counts).sum(), (gradients / counts[:, None, None]).sum(0)


def of_embeddings(x, gradient):
    """The gradient in the embeddings, of one in their squared distances to each other."""
    both = gradient + gradient.T
    return 2 * (both.sum(1)[:, None] * x - both @ x)


def example(seed, classes):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, 3)).astype(np.float32), rng.integers(0, classes, B), rng.choice([0, 0.5, 1, 3], B)


@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.sampled_from([1, 2, 3, 5, 30]),
    margins=st.sampled_from([(1.0, 0.5), (0.0, 0.0), (-0.5, 4.0)]),
    weighed=st.booleans(),
)
def test_is_the_sum_of_both_means(seed, classes, margins, weighed):
    embeddings, labels, weights = example(seed, classes)
    weights = weights if weighed else np.ones(B)
    allowed = (weights[:, None] * weights[None] > 0) & ~np.eye(B, dtype=bool)
    expected = brute_force(squared(embeddings, embeddings), labels, labels, allowed, margins, weights)
    (loss, stats), gradient = within_batch(embeddings, labels, np.float32(margins), weights.astype(np.float32))
    np.testing.assert_allclose(stats, expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(loss, expected[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, of_embeddings(embeddings, expected[2]), rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), second_margin=st.sampled_from([0.0, 1.0]))
def test_ties_are_counted_exactly(seed, second_margin):
    rng = np.random.default_rng(seed)
    embeddings, labels = rng.integers(0, 3, (B, 2)).astype(np.float32), rng.integers(0, 4, B)
    margins = np.float32([1, second_margin])
    stats, *_ = brute_force(squared(embeddings, embeddings), labels, labels, ~np.eye(B, dtype=bool), margins)
    np.testing.assert_array_equal(within_batch(embeddings, labels, margins, np.ones(B, np.float32))[0][1], stats)


def test_two_classes_have_triplets_and_no_quadruplet():
    embeddings, _, _ = example(0, 2)
    weights = np.random.default_rng(0).random(B, np.float32)  # their sums are rounded
    (_, stats), gradient = within_batch(embeddings, np.arange(B) % 2, np.float32([-100, 100]), weights)
    assert stats.valid[0] > 0 == stats.valid[1] == stats.total[1] == stats.active[1]
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("distance", ["array", "snr"])
def test_queries_against_a_gallery_and_allowed_pairs(distance):
    rng = np.random.default_rng(3)
    queries, gallery = rng.normal(size=(B, 4)), rng.normal(size=(R, 4))
    labels, of_gallery, pairs = rng.integers(0, 4, B), rng.integers(0, 4, R), rng.random((B, R)) < 0.7
    weights, weights_of_gallery = rng.choice([0, 0.5, 1, 3], B), rng.choice([0, 0.5, 1, 3], R)
    own = np.arange(B) % 4 - 1  # some of them are in it
    differences = queries[:, None] - gallery[None]
    distances = differences.var(-1) / queries.var(-1)[:, None]
    allowed = pairs & (weights[:, None] > 0) & (weights_of_gallery > 0) & (own[:, None] != np.arange(R))
    expected = brute_force(distances, labels, of_gallery, allowed, (1.0, 0.5), weights, weights_of_gallery)

    def loss(matrix):
        x, y, pairwise = (queries, gallery, "snr") if distance == "snr" else (None, None, matrix)
        references = References(y, of_gallery, weights=weights_of_gallery, own=own)
        return chen_quadruplet_loss(
            x, labels, distance=pairwise, references=references, pairs=pairs, weights=weights, has_aux=True
        )

    with jax.enable_x64(True):
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(distances)
    np.testing.assert_allclose(stats, expected[0], rtol=1e-9)
    np.testing.assert_allclose(value, expected[1], rtol=1e-9)
    if distance == "array":
        np.testing.assert_allclose(gradient, expected[2], rtol=1e-9, atol=1e-12)


def test_distances_that_are_not_symmetric():
    embeddings, labels, _ = example(2, 4)
    given = chen_quadruplet_loss(None, labels, distance=pairwise_snr(embeddings))
    np.testing.assert_allclose(chen_quadruplet_loss(embeddings, labels, distance="snr"), given, rtol=1e-5)


def test_every_reduction_is_that_of_triplets_plus_that_of_quadruplets():
    embeddings, labels, _ = example(1, 4)
    _, stats = chen_quadruplet_loss(embeddings, labels, has_aux=True)
    np.testing.assert_allclose(
        [chen_quadruplet_loss(embeddings, labels, reduction=each) for each in ("mean", "mean_active", "sum")],
        [np.sum(stats.total / stats.valid), np.sum(stats.total / stats.active), np.sum(stats.total)],
        rtol=1e-6,
    )


@pytest.mark.parametrize("at", [0, 5])
def test_a_nan_stays_visible(at):
    embeddings, labels, _ = example(0, 4)
    labels[5] = 99
    embeddings[at, 0] = np.nan
    (loss, _), _ = within_batch(embeddings, labels, np.ones(2, np.float32), np.ones(B, np.float32))
    assert np.isnan(loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": np.nan}, "margin is nan, expected a finite number"),
        ({"second_margin": np.ones(2)}, r"second_margin has shape \(2,\), expected a scalar"),
        ({"reduction": "none"}, "reduction is 'none', expected one of mean, mean_active, sum"),
        ({"distance": "l1"}, "distance is 'l1', expected one of"),
    ],
)
def test_bad_input_is_one_clear_line(changes, message):
    embeddings, labels, _ = example(0, 4)
    with pytest.raises(ValueError, match=message):
        chen_quadruplet_loss(embeddings, labels, **changes)
