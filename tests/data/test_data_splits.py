"""Splits are pure functions, have the right size, and hold out the right images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmetric.data import split_disjoint_classes, split_within_classes

class_ids = st.lists(st.integers(-1, 6), min_size=1, max_size=60).map(np.array)
shares = st.floats(0, 0.49)


@given(class_ids, shares, shares, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_within_leaves_a_learning_image_in_every_class(ids, validation, test, seed):
    split = split_within_classes(ids, validation=validation, test=test, seed=seed)
    for c in set(ids):
        parts = np.bincount(split[ids == c], minlength=3)
        assert parts[0] >= 1
        assert parts.sum() > 1 or parts[0] == 1, "a class with a single image is learned from"
        assert abs(parts[1] - validation * parts.sum()) <= 1
        assert abs(parts[2] - test * parts.sum()) <= 1


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=80), st.floats(0, 0.25), st.floats(0, 0.25), st.integers(0, 2**40)
)
@settings(max_examples=60, deadline=None)
def test_within_keeps_its_shares_over_small_classes(sizes, validation, test, seed):
    ids = np.repeat(np.arange(len(sizes)), sizes)
    split = split_within_classes(ids, validation=validation, test=test, seed=seed)
    images = sum(size for size in sizes if size > 1)
    for part, share in ((1, validation), (2, test)):
        assert abs((split == part).sum() - share * images) < 2


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_seed_selects_the_small_classes_that_lose_an_image(size):
    ids = np.repeat(np.arange(60), size)
    shares = np.zeros(60)
    for seed in range(200):
        shares += (split_within_classes(ids, seed=seed) > 0).reshape(60, size).mean(axis=1) / 200
    np.testing.assert_allclose(shares, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 200 / size))


@given(class_ids, shares, shares, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_disjoint_keeps_classes_whole(ids, validation, test, seed):
    split = split_disjoint_classes(ids, validation=validation, test=test, seed=seed)
    assert all(len(set(split[ids == c])) == 1 for c in set(ids))
    assert (split[ids == -1] == 0).all()


def test_a_split_depends_only_on_its_seed():
    ids = np.repeat(np.arange(10), 10)
    for function in (split_within_classes, split_disjoint_classes):
        np.testing.assert_array_equal(function(ids, seed=4), function(ids, seed=4))
        assert (function(ids, seed=4) != function(ids, seed=5)).any()


def test_within_spreads_held_out_images_over_labels():
    """With 2 x 2 labels and five images each, four held-out images have all values equally often."""
    labels = np.stack(np.meshgrid([0, 1], [0, 1], np.arange(5), indexing="ij"), -1).reshape(-1, 3)[:, :2]
    split = split_within_classes(np.zeros(20, int), validation=0.2, test=0.2, seed=1, spread=labels)
    for part in (1, 2):
        np.testing.assert_array_equal(np.bincount(labels[split == part, 0]), [2, 2])
        np.testing.assert_array_equal(np.bincount(labels[split == part, 1]), [2, 2])


def test_bad_shares_and_shapes_are_refused():
    for function in (split_within_classes, split_disjoint_classes):
        with pytest.raises(ValueError, match=r"leave some to learn from, got 0.5 and 0.5"):
            function(np.arange(3), validation=0.5, test=0.5)
        with pytest.raises(ValueError, match=r"class_ids must be integers \[N\], got int64 \(2, 2\)"):
            function(np.zeros((2, 2), np.int64))
        for ids in (np.array(["a", "b"]), np.array([0.5, np.nan]), np.array([2**70, 0])):
            with pytest.raises(ValueError, match=r"class_ids must be integers \[N\], got .* \(2,\)"):
                function(ids)
    with pytest.raises(ValueError, match=r"spread must be \[3, S\], got \(2, 1\)"):
        split_within_classes(np.arange(3), spread=np.zeros((2, 1), int))


@pytest.mark.parametrize("function", [split_within_classes, split_disjoint_classes])
def test_large_class_ids_are_distinguished(function):
    """Ids that agree in their lower 32 bits, or as float64."""
    small = np.repeat(np.arange(20), 5)
    for large in (small * 2**40, small + 2**62, small.astype(np.uint64) + np.uint64(2**63)):
        np.testing.assert_array_equal(function(large, seed=3), function(small, seed=3))
