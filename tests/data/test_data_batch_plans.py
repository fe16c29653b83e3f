"""P x K plans: their guarantees for random classes, P, K and seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmetric.data import batch_indices, make_plan, make_uniform_plan, visit_counts


@st.composite
def plans(draw):
    """Draws a plan and the class of each image; class -1 is missing."""
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=7))
    class_ids = np.repeat(np.arange(len(sizes)) - draw(st.integers(0, 1)), sizes)
    class_ids = np.random.default_rng(draw(st.integers(0, 99))).permutation(class_ids)
    P, K = draw(st.integers(1, len(sizes))), draw(st.integers(1, 4))
    K += P * K < 2
    return make_plan(class_ids, classes_per_batch=P, images_per_class=K, seed=draw(st.integers(0, 2**40))), class_ids


def classes_of_batch(plan, class_ids, step):
    """Returns the classes of the batch, `[P, K]`."""
    return class_ids[batch_indices(plan, step)].reshape(plan.classes_per_batch, plan.images_per_class)


def batches_per_epoch(plan):
    return -(-len(plan.groups) // plan.classes_per_batch)


@given(plans(), st.integers(0, 10**9))
@settings(max_examples=50, deadline=None)
def test_a_batch_has_k_images_of_p_distinct_classes(drawn, step):
    plan, class_ids = drawn
    classes = classes_of_batch(plan, class_ids, step)
    assert (classes == classes[:, :1]).all()
    assert len(set(classes[:, 0])) == plan.classes_per_batch


@given(plans(), st.integers(0, 10**9))
@settings(max_examples=50, deadline=None)
def test_images_are_distinct_if_the_class_has_k(drawn, step):
    plan, class_ids = drawn
    K = plan.images_per_class
    for images in batch_indices(plan, step).reshape(-1, K):
        assert len(set(images)) == min(K, (class_ids == class_ids[images[0]]).sum())


@given(plans(), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_every_epoch_visits_every_class(drawn, epoch):
    plan, class_ids = drawn
    length = batches_per_epoch(plan)
    seen = [classes_of_batch(plan, class_ids, epoch * length + i) for i in range(length)]
    assert set(np.ravel(seen)) == set(class_ids)


@given(plans())
@settings(max_examples=50, deadline=None)
def test_every_ceil_n_over_k_visits_of_a_class_show_all_its_images(drawn):
    plan, class_ids = drawn
    K = plan.images_per_class
    visits = {c: [] for c in set(class_ids)}
    for step in range(14 * batches_per_epoch(plan)):
        for images in batch_indices(plan, step).reshape(-1, K):
            visits[class_ids[images[0]]].append(images)
    for c, shown in visits.items():
        members = set(np.flatnonzero(class_ids == c))
        epoch = -(-len(members) // K)
        assert len(shown) >= 2 * epoch
        for start in range(0, len(shown) - epoch + 1, epoch):
            assert set(np.concatenate(shown[start : start + epoch])) == members


@given(plans(), st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_visit_counts_equal_those_of_a_replay(drawn, step):
    plan, class_ids = drawn
    replayed = np.zeros(len(plan.groups), int)
    values = np.unique(class_ids)
    for s in range(step):
        replayed[np.searchsorted(values, classes_of_batch(plan, class_ids, s)[:, 0])] += 1
    np.testing.assert_array_equal(visit_counts(plan, step), replayed)


@given(plans())
@settings(max_examples=30, deadline=None)
def test_all_classes_are_visited_equally_often_in_the_long_run(drawn):
    plan, _ = drawn
    steps = len(plan.groups) * batches_per_epoch(plan)
    assert set(visit_counts(plan, steps)) == {steps * plan.classes_per_batch // len(plan.groups)}


@given(plans(), st.lists(st.integers(0, 10**6), max_size=5), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_batch_does_not_depend_on_earlier_batches(drawn, earlier, step):
    plan, _ = drawn
    expected = batch_indices(plan, step)
    for s in earlier:
        batch_indices(plan, s)
    np.testing.assert_array_equal(batch_indices(plan, step), expected)


@given(st.integers(1, 30), st.integers(2, 12), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_a_uniform_epoch_visits_every_image(images, batch_size, epoch):
    plan = make_uniform_plan(images, batch_size=batch_size, seed=3)
    length = -(-images // batch_size)
    batches = [batch_indices(plan, epoch * length + i) for i in range(length)]
    assert set(np.concatenate(batches)) == set(range(images))
    assert all(len(batch) == batch_size and len(set(batch)) == min(batch_size, images) for batch in batches)


def test_batches_are_pinned_to_the_seed():
    """Computed by hand from the definition: the argsort of Philox's raw numbers, seeded by (seed, purpose, epoch)."""
    plan = make_uniform_plan(6, batch_size=6, seed=7)
    raw = np.random.Philox(np.random.SeedSequence([7, 2, 0, 4])).random_raw(6)
    np.testing.assert_array_equal(batch_indices(plan, 4), np.argsort(raw))


def test_different_seeds_give_different_batches():
    class_ids = np.repeat(np.arange(20), 10)
    one, other = (make_plan(class_ids, classes_per_batch=8, images_per_class=4, seed=seed) for seed in (0, 1))
    classes = [class_ids[batch_indices(plan, 0)] for plan in (one, other)]
    assert set(classes[0]) != set(classes[1])


def test_where_limits_the_images_and_keeps_their_indices():
    class_ids = np.repeat(np.arange(4), 6)
    where = np.arange(24) % 3 != 0
    plan = make_plan(class_ids, classes_per_batch=4, images_per_class=4, where=where)
    assert set(batch_indices(plan, 0)) == set(np.flatnonzero(where))
    uniform = make_uniform_plan(24, batch_size=16, where=where)
    assert set(batch_indices(uniform, 5)) == set(np.flatnonzero(where))


@pytest.mark.parametrize(
    ("classes", "images", "message"),
    [
        (0, 4, "got 0 classes x 4 images"),
        (2, 0, "got 2 classes x 0 images"),
        (1, 1, "at least 2 images"),
        (4, 2, "classes_per_batch is 4, but there are only 3 classes"),
    ],
)
def test_a_batch_that_cannot_be_p_x_k_is_refused(classes, images, message):
    with pytest.raises(ValueError, match=message):
        make_plan(np.array([0, 0, 1, 2]), classes_per_batch=classes, images_per_class=images)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        make_uniform_plan(5, batch_size=1)
    with pytest.raises(ValueError, match="no image to draw"):
        make_uniform_plan(5, batch_size=2, where=np.zeros(5, bool))
    with pytest.raises(ValueError, match="no image to draw"):
        make_plan(np.array([], int), classes_per_batch=1, images_per_class=2)
    with pytest.raises(ValueError, match="class_ids must be integers"):
        make_plan(np.array([0.5]), classes_per_batch=1, images_per_class=2)
    with pytest.raises(ValueError, match="where must be booleans"):
        make_uniform_plan(5, batch_size=2, where=np.arange(5))
    with pytest.raises(ValueError, match="seed must not be negative"):
        make_uniform_plan(5, batch_size=2, seed=-1)
    with pytest.raises(ValueError, match="step must not be negative"):
        batch_indices(make_uniform_plan(5, batch_size=2), -1)


@given(plans(), st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_large_class_ids_are_distinguished_by_a_plan(drawn, step):
    """The ids agree in their lower 32 bits, or as float64."""
    plan, class_ids = drawn
    for large in (class_ids * 2**40, class_ids + 2**62, (class_ids + 1).astype(np.uint64) + np.uint64(2**63)):
        same = make_plan(
            large,
            classes_per_batch=plan.classes_per_batch,
            images_per_class=plan.images_per_class,
            seed=plan.seed,
        )
        np.testing.assert_array_equal(batch_indices(same, step), batch_indices(plan, step))


@pytest.mark.parametrize("class_ids", [np.array(["a", "b"]), np.array([1.0, 2.0]), np.array([2**70, 1])])
def test_class_ids_must_be_integers(class_ids):
    with pytest.raises(ValueError, match=r"class_ids must be integers \[N\], got .* \(2,\)"):
        make_plan(class_ids, classes_per_batch=1, images_per_class=2)
