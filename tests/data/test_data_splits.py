"""Splits are pure, of the right size, and hold out what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmetric.data import split_disjoint_classes, split_within_classes

class_ids = st.lists(st.integers(-1, 6), min_size=1, max_size=60).map(np.array)
shares = st.floats(0, 0.49)


@given(class_ids, shares, shares, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_within_leaves_something_of_every_class_to_learn_from(ids, validation, test, seed):
    split = split_within_classes(ids, validation=validation, test=test, seed=seed)
    for c in set(ids):
        parts = np.bincount(split[ids == c], minlength=3)
        assert parts[0] >= 1
        assert abs(parts[1] - validation * parts.sum()) <= 1
        assert abs(parts[2] - test * parts.sum()) <= 1


@given(class_ids, shares, shares, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_disjoint_keeps_classes_whole(ids, validation, test, seed):
    split = split_disjoint_classes(ids, validation=validation, test=test, seed=seed)
    assert all(len(set(split[ids == c])) == 1 for c in set(ids))
    assert (split[ids == -1] == 0).all()


def test_a_split_depends_on_its_seed_alone():
    ids = np.repeat(np.arange(10), 10)
    for function in (split_within_classes, split_disjoint_classes):
        np.testing.assert_array_equal(function(ids, seed=4), function(ids, seed=4))
        assert (function(ids, seed=4) != function(ids, seed=5)).any()


def test_within_spreads_what_it_holds_out():
    """Of 2 x 2 labels with five pictures each, four held out show all four combinations' values evenly."""
    labels = np.stack(np.meshgrid([0, 1], [0, 1], np.arange(5), indexing="ij"), -1).reshape(-1, 3)[:, :2]
    split = split_within_classes(np.zeros(20, int), validation=0.2, test=0.2, seed=1, spread=labels)
    for part in (1, 2):
        np.testing.assert_array_equal(np.bincount(labels[split == part, 0]), [2, 2])
        np.testing.assert_array_equal(np.bincount(labels[split == part, 1]), [2, 2])


def test_bad_shares_and_shapes_are_refused():
    for function in (split_within_classes, split_disjoint_classes):
        with pytest.raises(ValueError, match=r"leave some to learn from, got 0.5 and 0.5"):
            function(np.arange(3), validation=0.5, test=0.5)
        with pytest.raises(ValueError, match=r"class_ids must be \[N\], got \(2, 2\)"):
            function(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"spread must be \[3, S\], got \(2, 1\)"):
        split_within_classes(np.arange(3), spread=np.zeros((2, 1), int))
