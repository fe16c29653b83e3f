import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric import mining

hardest_positives, hardest_negatives, semi_hard_negatives = map(
    jax.jit, (mining.hardest_positives, mining.hardest_negatives, mining.semi_hard_negatives)
)


def example(seed, values):
    """`[A, B]` distances (with many ties if `values` is small) and a mask of some references for each anchor."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, values, (5, 9)).astype(np.float32), rng.random((5, 9)) < rng.choice([0.1, 0.5, 1])


def examples(function):
    return given(seed=st.integers(0, 2**32 - 1), values=st.sampled_from([1, 4, 1000]))(function)


@examples
def test_hardest_positive_is_the_farthest_and_the_first_among_equals(seed, values):
    distances, mask = example(seed, values)
    for distance, positive, index in zip(distances, mask, hardest_positives(distances, mask), strict=True):
        expected = min(np.flatnonzero(positive), key=lambda j: (-distance[j], j), default=0)
        assert index == expected


@examples
def test_hardest_negative_is_the_nearest_and_the_first_among_equals(seed, values):
    distances, mask = example(seed, values)
    for distance, negative, index in zip(distances, mask, hardest_negatives(distances, mask), strict=True):
        expected = min(np.flatnonzero(negative), key=lambda j: (distance[j], j), default=0)
        assert index == expected


@examples
def test_semi_hard_negative_is_the_nearest_that_is_farther_else_the_farthest(seed, values):
    distances, mask = example(seed, values)
    chosen = np.asarray(semi_hard_negatives(distances, mask))
    assert chosen.shape == distances.shape
    for distance, negative, indices in zip(distances, mask, chosen, strict=True):
        for reference, index in zip(distance, indices, strict=True):
            candidates = np.flatnonzero(negative)
            if candidates.size == 0:
                continue
            assert negative[index]
            farther = [distance[n] for n in candidates if distance[n] > reference]
            assert distance[index] == (min(farther) if farther else distance[candidates].max())


@pytest.mark.parametrize("function", [hardest_positives, hardest_negatives])
def test_a_nan_distance_is_chosen_so_that_it_stays_visible(function):
    distances = np.float32([[1, np.nan, 3, 0]])
    assert function(distances, np.ones((1, 4), bool)).tolist() == [1]
    assert function(distances, np.array([[True, False, False, False]])).tolist() == [0]
