from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses.rankings import histogram_loss
from jaxmetric.references import References

B, BINS = 10, 8
seeds = st.integers(0, 2**32 - 1)


@jax.jit
def evaluate(embeddings, labels, weights, pairs):
    """`((anchors' sums, stats), gradient of the mean)`, in one program for all tests."""

    def loss(embeddings, reduction):
        options = {"weights": weights, "where": weights >= 0, "pairs": pairs, "reduction": reduction}
        return histogram_loss(embeddings, labels, num_bins=BINS, **options, has_aux=True)

    return loss(embeddings, "none"), jax.value_and_grad(lambda x: loss(x, "mean")[0])(embeddings)


def loss_sums_stats_gradient(embeddings, labels, weights=None, pairs=None):
    weights = np.ones(len(labels)) if weights is None else weights
    pairs = np.ones((len(labels),) * 2, bool) if pairs is None else pairs
    (sums, stats), (loss, gradient) = evaluate(embeddings, labels, weights.astype(np.float32), pairs)
    return loss, sums, stats, gradient


def brute_force(similarities, labels, weights=None, pairs=None):
    """The sum over r of h-_r times the sum over q <= r of h+_q, by loops over pairs and nodes."""
    weights = np.ones(len(labels)) if weights is None else np.maximum(weights, 0)
    nodes = np.linspace(-1, 1, BINS + 1)
    positive, negative = np.zeros(BINS + 1), np.zeros(BINS + 1)
    for i in range(len(labels)):
        for j in range(len(labels)):
            if i == j or (pairs is not None and not pairs[i, j]):
                continue
            histogram = positive if labels[i] == labels[j] else negative
            nearness = np.maximum(1 - abs(np.clip(similarities[i, j], -1, 1) - nodes) / (nodes[1] - nodes[0]), 0)
            histogram += weights[i] * weights[j] * nearness
    if not positive.any() or not negative.any():
        return 0.0
    return sum(
        negative[r] / negative.sum() * positive[q] / positive.sum() for r in range(BINS + 1) for q in range(r + 1)
    )


def example(seed=0, classes=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, 3)).astype(np.float32), rng.integers(0, classes, B)


def cosines(embeddings):
    x = np.asarray(embeddings, np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@given(seed=seeds, classes=st.sampled_from([1, 2, 4, 30]))
def test_is_the_loss_of_the_paper(seed, classes):
    embeddings, labels = example(seed, classes)
    loss, sums, stats, _ = loss_sums_stats_gradient(embeddings, labels)
    np.testing.assert_allclose(loss, brute_force(cosines(embeddings), labels), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sums.sum(), stats.total, rtol=1e-5)
    same = labels[:, None] == labels[None]
    assert stats.valid == (~same).sum() * (same.sum() > B)


@given(seed=seeds)
def test_the_weight_of_a_pair_is_the_product_of_its_members_weights(seed):
    embeddings, labels = example(seed)
    rng = np.random.default_rng(seed)
    weights, pairs = rng.choice([-1, 0, 0.5, 1, 3], B), rng.random((B, B)) < 0.8  # -1: masked by `where`
    expected = brute_force(cosines(embeddings), labels, weights, pairs)
    embeddings[weights <= 0] = np.nan
    loss, _, _, gradient = loss_sums_stats_gradient(embeddings, labels, weights, pairs)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[weights <= 0], 0)


def test_it_is_the_probability_of_a_wrong_order():
    """With bins much narrower than the gaps, the share of (positive, negative) pairs of pairs in the wrong order."""
    labels = np.repeat([0, 1, 2], 4)
    similarity = np.random.default_rng(0).permutation(np.linspace(-0.99, 0.99, 144)).reshape(12, 12)
    loss = histogram_loss(None, labels, similarity=similarity.astype(np.float32), num_bins=2000)
    same = labels[:, None] == labels[None]
    positive, negative = similarity[same & ~np.eye(12, dtype=bool)], similarity[~same]
    np.testing.assert_allclose(loss, (negative[:, None] > positive[None]).mean(), atol=1e-3)


def test_gradient_is_the_finite_difference():
    embeddings, labels = example()
    direction = np.random.default_rng(2).normal(size=embeddings.shape)
    gradient = loss_sums_stats_gradient(embeddings, labels)[-1]
    above, below = (brute_force(cosines(embeddings + sign * 1e-6 * direction), labels) for sign in (1, -1))
    np.testing.assert_allclose((gradient * direction).sum(), (above - below) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("labels", [np.zeros(B, int), np.arange(B)], ids=["one class", "all distinct"])
def test_nothing_to_compare_is_0_without_gradient(labels):
    loss, _, stats, gradient = loss_sums_stats_gradient(example()[0], labels)
    assert loss == stats.valid == 0
    np.testing.assert_array_equal(gradient, 0)


def test_similarities_outside_the_range_count_at_its_ends():
    similarity = np.array([[9, -5.0, 3.0], [-5.0, 9, 0.1], [3.0, 0.1, 9]], np.float32)
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda s: histogram_loss(None, np.array([0, 0, 1]), similarity=s, num_bins=BINS))
    )
    value, gradient = value_and_grad(similarity)
    np.testing.assert_allclose(value, value_and_grad(np.clip(similarity, -1, 1))[0], rtol=1e-6)
    np.testing.assert_array_equal(gradient[np.abs(similarity) > 1], 0)


def test_references():
    embeddings, labels = example()
    order = np.random.default_rng(1).permutation(B)
    own = References(embeddings[order], labels[order], own=np.argsort(order))
    loss = jax.jit(partial(histogram_loss, num_bins=BINS))
    np.testing.assert_allclose(loss(embeddings, labels, references=own), loss(embeddings, labels), rtol=1e-5)
    half = References(embeddings[5:], labels[5:])
    across = np.zeros((B, B), bool)
    across[:5, 5:] = True
    expected = brute_force(cosines(embeddings), labels, pairs=across)
    np.testing.assert_allclose(loss(embeddings[:5], labels[:5], references=half), expected, rtol=1e-5)


def test_a_nan_stays_visible():
    embeddings, labels = example()
    for alone in (False, True):
        labels[5] = 99 if alone else labels[4]
        embeddings[5, 0] = np.nan
        assert np.isnan(loss_sums_stats_gradient(embeddings, labels)[0])


def test_memory_does_not_grow_with_the_bins():
    shapes = jax.ShapeDtypeStruct((256, 8), np.float32), jax.ShapeDtypeStruct((256,), np.int32)
    compiled = jax.jit(jax.value_and_grad(histogram_loss)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 4 * 256**2  # there are 101 nodes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_bins": 0}, ValueError, "num_bins is 0, expected a static integer of at least 1"),
        ({"num_bins": np.float32(4)}, TypeError, "num_bins is .*4.0.*, expected a static integer"),
        ({"similarity": "euclidean"}, ValueError, "similarity is 'euclidean', expected one of cosine, dot"),
        ({"reduction": "median"}, ValueError, "reduction is 'median', expected one of"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    embeddings, labels = example()
    with pytest.raises(error, match=message):
        histogram_loss(embeddings, labels, **changes)
