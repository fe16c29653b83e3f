from functools import partial

import jax
import numpy as np
import pytest

from jaxmetric import (
    binomial_deviance_loss,
    intra_pair_variance_loss,
    ranked_list_loss,
    threshold_consistent_margin_loss,
)

B, D, C = 10, 4, 3


def example(seed=0):
    """Embeddings `[B, D]`, labels `[B]` and weights `[B]` with a 0 among them."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, D)), rng.integers(0, C, B), rng.choice([0.5, 1, 2], B) * (np.arange(B) != 3)


def relu(x):
    return np.maximum(x, 0)


def cosines(embeddings):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit @ unit.T


def euclidean(embeddings):
    return np.sqrt(((embeddings[:, None] - embeddings[None]) ** 2).sum(-1))


def pairs_of(labels, weights):
    """The positions of the positives and of the negatives among all pairs, and the weights of all pairs."""
    same = labels[:, None] == labels[None]
    weight = weights[:, None] * weights[None] * ~np.eye(len(labels), dtype=bool)
    return np.nonzero(same * weight), np.nonzero(~same * weight), weight


def assert_number_of_the_batch(loss, expected, embeddings, labels, **options):
    @jax.jit
    def evaluate(x):
        each, stats = loss(x, labels, **options, reduction="none", has_aux=True)
        return each, stats, [loss(x, labels, **options, reduction=each) for each in ("mean", "mean_active", "sum")]

    each, stats, reduced = evaluate(np.float32(embeddings))
    np.testing.assert_allclose(reduced, expected, rtol=1e-5)
    np.testing.assert_allclose(each.sum(), expected, rtol=1e-5)
    np.testing.assert_allclose(stats, (expected, 1, 1), rtol=1e-5)
    assert each[3] == 0  # the masked one


def test_binomial_deviance_is_its_formula():
    embeddings, labels, weights = example()
    similarity = cosines(embeddings)
    near, far, weight = pairs_of(labels, weights)
    alike = np.log1p(np.exp(-1.5 * (similarity[near] - 0.3)))
    unlike = np.log1p(np.exp(1.5 * (similarity[far] - 0.3) * 4))
    expected = np.average(alike, weights=weight[near]) + np.average(unlike, weights=weight[far])
    options = {"alpha": 1.5, "beta": 0.3, "neg_cost": 4.0, "weights": weights}
    assert_number_of_the_batch(binomial_deviance_loss, expected, embeddings, labels, **options)


def test_intra_pair_variance_is_its_formula():
    embeddings, labels, weights = example()
    similarity = cosines(embeddings)
    near, far, weight = pairs_of(labels, weights)
    average = partial(np.average, weights=weight[near]), partial(np.average, weights=weight[far])
    below = relu(0.9 * average[0](similarity[near]) - similarity[near]) ** 2
    above = relu(similarity[far] - 1.2 * average[1](similarity[far])) ** 2
    expected = average[0](below) + average[1](above)
    options = {"pos_eps": 0.1, "neg_eps": 0.2, "weights": weights}
    assert_number_of_the_batch(intra_pair_variance_loss, expected, embeddings, labels, **options)


def test_equal_pairs_with_a_negative_average_have_a_loss_from_the_tolerance_only():
    similarity = np.float32([[0, -0.8, 0.3], [-0.8, 0, 0.3], [0.3, 0.3, 0]])
    loss = jax.jit(partial(intra_pair_variance_loss, None, np.array([1, 1, 2])))
    # (1 - .01) times -.8 is above -.8.
    np.testing.assert_allclose(loss(similarity=similarity), 0.008**2, rtol=1e-4)
    np.testing.assert_array_equal(loss(similarity=np.abs(similarity)), 0)


def test_threshold_consistent_margin_is_its_formula():
    embeddings, labels, weights = example()
    similarity = cosines(embeddings)
    near, far, weight = pairs_of(labels, weights)

    def mean_excess(excess, weight):
        return np.average(excess[excess >= 0], weights=weight[excess >= 0])

    expected = 2 * mean_excess(0.3 - similarity[near], weight[near])
    expected += 0.5 * mean_excess(similarity[far] - 0.1, weight[far])
    options = {"pos_margin": 0.3, "neg_margin": 0.1, "pos_weight": 2.0, "neg_weight": 0.5, "weights": weights}
    assert_number_of_the_batch(threshold_consistent_margin_loss, expected, embeddings, labels, **options)


def test_threshold_consistent_margin_averages_over_hard_pairs_only():
    similarity = np.float32([[0, 0.95, 0.1], [0.95, 0, 0.1], [0.1, 0.1, 0]])

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(similarity):
        return threshold_consistent_margin_loss(None, np.array([1, 1, 2]), similarity=similarity, has_aux=True)

    (value, stats), gradient = loss(similarity)
    assert value == stats.active == 0
    np.testing.assert_array_equal(gradient, 0)
    similarity[0, 1] = 0.7  # one hard pair of six
    (value, stats), gradient = loss(similarity)
    np.testing.assert_allclose(value, 0.2, rtol=1e-6)
    np.testing.assert_array_equal(gradient, -1 * (similarity == np.float32(0.7)))


def ranked_lists(embeddings, labels, weights, frozen=None, *, margin, alpha, t_pos, t_neg, share):
    """The loss of each anchor, by the formula; with `frozen` embeddings giving the weights of the pairs."""
    distances = euclidean(embeddings)
    of_weights = distances if frozen is None else euclidean(frozen)
    losses = np.zeros(len(labels))
    for a in np.flatnonzero(weights):
        others = (np.arange(len(labels)) != a) & (weights > 0)
        near, far = others & (labels == labels[a]), others & (labels != labels[a])
        near &= of_weights[a] > alpha - margin
        far &= of_weights[a] < alpha
        if near.any():
            w = weights[near] * np.exp(t_pos * (of_weights[a, near] - (alpha - margin)))
            losses[a] += (1 - share) * np.average(distances[a, near] - (alpha - margin), weights=w)
        if far.any():
            w = weights[far] * np.exp(t_neg * (alpha - of_weights[a, far]))
            losses[a] += share * np.average(alpha - distances[a, far], weights=w)
    return losses


@pytest.mark.parametrize(("t_pos", "t_neg"), [(0.0, 10.0), (3.0, 2.0)])
def test_ranked_list_is_its_formula_and_its_weights_are_constants_to_the_gradient(t_pos, t_neg):
    embeddings, labels, weights = example()
    numbers = {"margin": 0.8, "alpha": 2.5, "t_pos": t_pos, "t_neg": t_neg, "share": 0.3}

    def mean(x):
        return (weights * ranked_lists(x, labels, weights, embeddings, **numbers)).sum() / weights.sum()

    def loss(x):
        options = {"margin": 0.8, "alpha": 2.5, "pos_temperature": t_pos, "neg_temperature": t_neg, "neg_weight": 0.3}
        each, stats = ranked_list_loss(x, labels, **options, weights=weights, reduction="none", has_aux=True)
        return stats.total / stats.valid, (each, stats)

    (value, (each, stats)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(np.float32(embeddings))
    losses = ranked_lists(embeddings, labels, weights, **numbers)
    np.testing.assert_allclose(each, weights * losses, rtol=1e-5)
    np.testing.assert_allclose(stats[1:], (weights.sum(), weights[losses > 0].sum()), rtol=1e-6)
    np.testing.assert_allclose(value, mean(embeddings), rtol=1e-5)
    step = 1e-6
    for i, d in np.ndindex(B, D):
        shift = np.zeros((B, D))
        shift[i, d] = step
        slope = (mean(embeddings + shift) - mean(embeddings - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[i, d], slope, rtol=1e-4, atol=1e-6)


def test_ranked_list_at_a_high_temperature_uses_only_the_worst_pair():
    distances = np.float32([[0, 1e4, 3e4, 0.3, 1.0]] * 5)
    labels, anchor = np.array([1, 1, 1, 2, 2]), np.arange(5) == 0
    loss = jax.jit(partial(ranked_list_loss, None, labels, distance=distances, pairs=np.tile(anchor[:, None], 5)))
    value = loss(pos_temperature=1e4, neg_temperature=1e4)
    np.testing.assert_allclose(value, 0.5 * (3e4 - 0.8) + 0.5 * (1.2 - 0.3), rtol=1e-6)
    alike = 0.5 * (2e4 - 0.8) + 0.5 * (0.9 + 0.2) / 2  # at temperature 0 pairs of a kind count alike
    np.testing.assert_allclose(loss(pos_temperature=0.0, neg_temperature=0.0), alike, rtol=1e-6)


def test_the_boundaries_of_the_ranked_list_lie_around_1_by_default():
    embeddings, labels, _ = example()
    loss = jax.jit(partial(ranked_list_loss, embeddings, labels, margin=0.6))
    np.testing.assert_allclose(loss(), loss(alpha=1.3), rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("neg_weight", 1.5, r"neg_weight is 1.5, expected a finite number of at least 0 and of at most 1"),
        ("margin", -0.1, "margin is -0.1, expected a finite number of at least 0"),
        ("alpha", np.nan, "alpha is nan, expected a finite number"),
    ],
)
def test_numbers_of_the_ranked_list_out_of_range_are_named(option, value, message):
    embeddings, labels, _ = example()
    with pytest.raises(ValueError, match=message):
        ranked_list_loss(embeddings, labels, **{option: value})
