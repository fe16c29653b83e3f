"""What is refused as holding nothing to compare is compared with every batch that a plan can draw."""

import dataclasses
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from jaxmetric.data import LabelColumn, LabeledImages, batch_indices, make_plan, make_uniform_plan
from jaxmetric.run import comparable
from jaxmetric.run.comparable import Disagreement, check_comparable, comparable_plan, has_comparison
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.objective import objective
from jaxmetric.run.plan import make_batch_plan
from jaxmetric.run.presets import PRESETS


def multisets(group, K):
    """Every way in which K images of a group can stand in a batch: distinct, or each as often as the others, or so."""
    whole, rest = divmod(K, len(group))
    return [whole * list(group) + list(more) for more in itertools.combinations(group, rest)]


def all_batches(plan):
    for groups in itertools.combinations(plan.groups, plan.classes_per_batch):
        for parts in itertools.product(*(multisets(group, plan.images_per_class) for group in groups)):
            yield list(itertools.chain(*parts))


def bounds(a, b, how):
    """The least and the most by which two rows of labels disagree, of which -1 is unknown."""
    weights = how.label_weights or (1,) * len(a)
    ranges = how.ordinal or (0,) * len(a)
    lower = upper = 0
    for x, y, weight, largest in zip(a, b, weights, ranges, strict=True):
        if -1 in (x, y):
            upper += weight * (largest or 1)
        else:
            difference = min(abs(x - y), largest) if largest else int(x != y)
            lower, upper = lower + weight * difference, upper + weight * difference
    return (lower > 0, upper > 0) if how.agreement == "any" else (lower, upper)


def has_tuple(labels, batch, how):
    """Whether a batch holds two pairs of which one certainly disagrees more; -1 is no image."""
    pairs = [bounds(labels[i], labels[j], how) for i, j in itertools.combinations([i for i in batch if i >= 0], 2)]
    return any(near[1] < far[0] for near, far in itertools.permutations(pairs, 2))


@st.composite
def cases(draw, missing=True):
    columns = draw(st.integers(1, 3))
    images = draw(st.integers(2, 6))
    values = st.integers(-1 if missing else 0, draw(st.integers(0, 3)))
    labels = np.array(
        draw(st.lists(st.lists(values, min_size=columns, max_size=columns), min_size=images, max_size=images))
    )
    K = draw(st.integers(1, 4))
    if draw(st.booleans()):
        assume(K > 1)
        plan = make_uniform_plan(images, batch_size=K)
    else:
        P = draw(st.integers(1, 3))
        assume(P * K > 1 and len(np.unique(labels[:, 0])) >= P)
        plan = make_plan(labels[:, 0], classes_per_batch=P, images_per_class=K)
    how = Disagreement(
        draw(st.sampled_from(["count", "any"])),
        draw(st.sampled_from([None, (1.0, 2.0, 0.5), (3.0, 1.0, 1.0)])),
        draw(st.sampled_from([None, (0, 3, 0)])),
    )
    return (
        labels,
        plan,
        how._replace(
            label_weights=how.label_weights and how.label_weights[:columns],
            ordinal=how.ordinal and how.ordinal[:columns],
        ),
    )


@given(cases(missing=False))
def test_with_all_labels_known_the_answer_equals_a_check_of_every_batch(case):
    labels, plan, how = case
    assert has_comparison(labels, plan, how) == any(has_tuple(labels, batch, how) for batch in all_batches(plan))


@given(cases())
def test_with_missing_labels_no_batch_contradicts_a_refusal(case):
    labels, plan, how = case
    if not has_comparison(labels, plan, how):
        assert not any(has_tuple(labels, batch, how) for batch in all_batches(plan))


@given(cases())
def test_a_triplet_is_found_where_a_batch_has_one(case):
    labels, plan, _ = case
    batches = list(all_batches(comparable._without(plan, labels[:, 0] < 0)))
    identities = [[labels[i, 0] for i in batch if i >= 0] for batch in batches]
    there = any(len(set(batch)) > 1 and len(set(batch)) < len(batch) for batch in identities)
    assert has_comparison(labels[:, :1], comparable._without(plan, labels[:, 0] < 0)) == there


@given(cases(), st.integers(0, 30))
def test_the_batches_of_a_plan_are_among_those_considered_possible(case, step):
    _, plan, _ = case
    drawn = sorted(batch_indices(plan, step).tolist())
    assert drawn in [sorted(batch) for batch in all_batches(plan)]


@pytest.mark.parametrize("K", [1, 2])
def test_many_identities_are_checked_fast(K, monkeypatch):
    """All of them compare alike, so that hundred thousand are as two."""
    monkeypatch.setattr(comparable, "_MOST_PAIRS", 100)
    labels = np.arange(100_000)[:, None]
    plan = make_plan(labels[:, 0], classes_per_batch=8, images_per_class=K)
    assert has_comparison(labels, plan) == (K > 1)


def images(columns, split=None):
    codes, described = [], []
    for name, cells in columns.items():
        values = tuple(sorted({cell for cell in cells if cell}))
        described.append(LabelColumn(name, values))
        codes.append([values.index(cell) if cell else -1 for cell in cells])
    labels = np.array(codes, np.int32).T
    return LabeledImages(
        images=np.zeros((len(labels), 8, 8, 3), np.uint8),
        labels=labels,
        columns=tuple(described),
        split=np.zeros(len(labels), np.int8) if split is None else split,
        names=[str(i) for i in range(len(labels))],
    )


def config(P, K, loss):
    batch = dataclasses.replace(PRESETS["debug"].batch, classes_per_batch=P, images_per_class=K)
    return dataclasses.replace(PRESETS["debug"], batch=batch, loss=loss)


def check(config, source):
    terms = objective(config.loss, source.columns).terms
    check_comparable(terms, config, source, make_batch_plan(config.batch, source, seed=0))


def plan_of(config, source):
    return comparable_plan(objective(config.loss, source.columns).terms, config, source)


FOUR = {"person": list("aabbccdd")}
ONE = {"person": ["a"] * 8}
EMPTY = {"person": list("aabbccdd"), "": [""] * 8}


@pytest.mark.parametrize(
    ("columns", "config", "message"),
    [
        (FOUR, config(4, 1, "2*quadruplet"), "no batch of 4 x 1 images.*give --images-per-class 2"),
        (FOUR, config(1, 4, "quadruplet"), "--classes-per-batch 2 or more"),
        (FOUR, config(1, 2, "triplet"), "two images of one person and one of another; give --classes"),
        (FOUR, config(2, 1, "triplet"), "give --images-per-class 2 or more"),
        (FOUR, config(0, 2, "triplet"), "no batch of 2 images can hold .*; give --images-per-class 3"),
        (ONE, config(1, 8, "quadruplet"), r"the learning images need more values than those of person \(1\)"),
        (ONE, config(1, 8, "soft_triple"), "the learning images have one value of person: class vectors"),
        (ONE, config(1, 8, "normalized_softmax"), "normalized_softmax is in the loss, but"),
        ({"person": [""] * 8}, config(1, 8, "normalized_softmax"), "have no known person"),
        (EMPTY, config(4, 2, "quadruplet"), "no learning image has a value in '': give --columns person"),
        (EMPTY, config(4, 2, "sampled_quadruplet(num_quadruplets=9)"), "give --columns person"),
        (FOUR, config(4, 1, "vicreg"), "two images of one person; give --images-per-class 2 or more"),
        (FOUR, config(4, 1, "supcon"), "certainly agrees on more labels than the other; give --images-per-class 2"),
        (FOUR, config(4, 1, "triplet + soft_triple"), "^triplet is in the loss, but"),
    ],
)  # fmt: skip
def test_a_term_with_nothing_to_compare_is_refused_with_a_cure(columns, config, message):
    with pytest.raises(ConfigError, match=message):
        check(config, images(columns))


@pytest.mark.parametrize(
    ("columns", "config"),
    [
        (FOUR, config(2, 2, "quadruplet + triplet")),
        (FOUR, config(4, 1, "soft_triple")),
        (FOUR, config(0, 3, "triplet")),
        (FOUR, config(0, 2, "contrastive")),  # either of the two kinds of pairs is enough
        (ONE, config(1, 8, "contrastive")),
        (FOUR, config(1, 2, "vicreg")),
        (FOUR, config(4, 1, "supcon(memory=8)")),
        ({"person": list("abcdefgh"), "side": list("llllrrrr")}, config(3, 1, "quadruplet")),
        ({"person": [""] * 8, "side": list("llllrrrr")}, config(1, 8, "quadruplet(label_weights=(1.0, 2.0))")),
        (EMPTY, config(4, 2, "quadruplet(label_weights=(2.0, 1.0))")),
    ],
)
def test_a_term_with_something_to_compare_is_accepted(columns, config):
    check(config, images(columns))


@pytest.mark.parametrize(
    ("columns", "config", "message"),
    [
        (ONE, config(16, 8, "quadruplet"), r"need more values than those of person \(1\)$"),
        (ONE, config(16, 8, "soft_triple"), "class vectors need at least two classes"),
        (
            {**ONE, "side": list("llllrrrr")},
            config(16, 8, "quadruplet"),
            "have 1 value of person; give --classes-per-batch 1$",
        ),
        (
            FOUR,
            config(16, 2, "quadruplet"),
            "4 values of person; give --classes-per-batch a number from 1 to 4",
        ),
    ],
)
def test_a_term_with_nothing_to_compare_is_reported_before_too_many_identities(columns, config, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(config, images(columns))


def test_a_plan_that_can_be_compared_is_the_plan_of_the_batch():
    plan = plan_of(config(2, 2, "quadruplet"), images(FOUR))
    assert (plan.classes_per_batch, plan.images_per_class) == (2, 2)


def test_held_out_images_do_not_count_as_comparisons():
    split = np.array([0, 0, 0, 0, 2, 2, 2, 2], np.int8)
    with pytest.raises(ConfigError, match=r"more values than those of person \(1\)"):
        check(config(1, 4, "triplet"), images({"person": list("aaaabbbb")}, split))
