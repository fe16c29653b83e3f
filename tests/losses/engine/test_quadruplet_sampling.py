import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxmetric.losses._engine.quadruplet_sampling import all_pairs, pair_values, sample_ordered


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 5, 8, 101])
def test_all_pairs_takes_every_unordered_pair_once(batch):
    first, second = all_pairs(batch)
    pairs = sorted((min(pair), max(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True))
    assert pairs == list(itertools.combinations(range(batch), 2))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 5, 8, 101])
def test_pair_values_equals_indexing_with_all_pairs(batch):
    matrix = np.arange(batch * batch).reshape(batch, batch)
    first, second = (np.asarray(index) for index in all_pairs(batch))
    np.testing.assert_array_equal(pair_values(jnp.asarray(matrix)), matrix[first, second])


def frequencies(near, far, size):
    counts = np.zeros((size, size))
    np.add.at(counts, (np.asarray(near), np.asarray(far)), 1)
    return counts


def expected_probabilities(lower, upper, weights):
    product = np.where(np.less.outer(upper, lower), np.multiply.outer(weights, weights), 0)
    return product / product.sum()


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1, 1], [1, 2, 0.5, 0, 3, 1]])
def test_draws_follow_the_product_of_the_weights(weights):
    lower, upper, weights = np.int32([0, 1, 0, 2, 2, 1]), np.int32([0, 1, 1, 2, 2, 2]), np.float32(weights)
    near, far, exists = sample_ordered(jax.random.key(0), lower, upper, weights, num_samples=50_000, num_levels=3)
    counts, expected = frequencies(near, far, 6), expected_probabilities(lower, upper, weights)
    assert exists
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    assert chisquare(counts[possible], 50_000 * expected[possible]).pvalue > 1e-3


def test_the_draw_depends_on_the_key():
    levels, weights = np.int32([0, 1, 0, 2, 2, 1]), np.ones(6, np.float32)
    once, again, other = (
        np.stack(sample_ordered(jax.random.key(key), levels, levels, weights, num_samples=50_000, num_levels=3)[:2])
        for key in (0, 0, 1)
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_draws_are_valid_even_if_sums_of_weights_are_rounded():
    # 250,000 items: the sums of weights exceed 2^24, beyond which float32 does not hold every integer.
    size = 250_000
    rng = np.random.default_rng(0)
    lower = rng.integers(0, 4, size).astype(np.int32)
    upper = rng.integers(lower, 4).astype(np.int32)
    weights = np.where(rng.random(size) < 0.5, rng.random(size, np.float32), np.float32(0))
    near, far, _ = sample_ordered(jax.random.key(0), lower, upper, weights, num_samples=1_000_000, num_levels=4)
    assert (upper[near] < lower[far]).all()
    assert (weights[near] > 0).all()
    assert (weights[far] > 0).all()
    # Which level is drawn is right as well, to five standard errors.
    share = expected_share_of_upper(lower, upper, weights.astype(float))
    np.testing.assert_allclose(np.bincount(upper[near], minlength=4) / 1e6, share, atol=5 * np.sqrt(0.25 / 1e6))


def expected_share_of_upper(lower, upper, weights):
    far = np.array([weights[lower > level].sum() for level in range(4)])
    near = np.array([weights[upper == level].sum() for level in range(4)])
    return near * far / (near * far).sum()


def test_one_ordered_pair_among_many_is_found():
    size = 250_000
    levels, weights = np.ones(size, np.int32), np.zeros(size, np.float32)
    levels[123_456], weights[[123_456, 99_999]] = 0, 1
    draw = sample_ordered(jax.random.key(0), levels, levels, weights, num_samples=1_000_000, num_levels=4)
    assert draw[2]
    assert np.unique(draw[0]) == 123_456
    assert np.unique(draw[1]) == 99_999


@pytest.mark.parametrize("weights", [np.zeros(6), np.array([0, 0.1, 0, 0, 0, 0.3]), np.array([0.7, 0, 0.1, 0, 0, 0])])
def test_reports_when_there_is_nothing_to_draw(weights):
    levels = np.int32([0, 1, 0, 2, 2, 1])
    draw = sample_ordered(
        jax.random.key(0), levels, levels, weights.astype(np.float32), num_samples=50_000, num_levels=3
    )
    assert not draw[2]
    assert not jnp.any((draw[0] < 0) | (draw[0] >= 6) | (draw[1] < 0) | (draw[1] >= 6))
