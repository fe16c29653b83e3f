"""What the objective tells of how much each term found to compare."""

import dataclasses
import itertools
from functools import cache, partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxmetric.data import LabelColumn
from jaxmetric.parallel import AXIS_NAME
from jaxmetric.run.config import LossConfig
from jaxmetric.run.objective import init_loss_params, make_objective
from jaxmetric.run.train import _watch_comparisons

COLUMNS = (LabelColumn("person", tuple("abcd")), LabelColumn("side", ("left", "right")))
LABELS = np.array([[0, 0], [0, 1], [1, -1], [1, 0], [2, 1], [-1, 1], [3, 0], [3, 0]], np.int32)
DIM = 4


SETUPS = [
    ({}, 1),
    ({}, 2),
    ({"quadruplet_anchors": 3}, 2),
    ({"quadruplet_samples": 9}, 2),
    ({"shard_classes": True}, 2),
    ({"shard_classes": True, "sampled_classes": 4}, 2),
]
every_setup = pytest.mark.parametrize(("options", "devices"), SETUPS, ids=str)
# The margins are far below all distances, so that every tuple is satisfied.
EVERY_TERM = LossConfig(
    quadruplet_weight=1.0,
    quadruplet_margin=-1e6,
    soft_triple_weight=1.0,
    centers_per_class=2,
    softmax_weight=1.0,
    triplet_weight=1.0,
    triplet_margin=-1e6,
)


@cache
def program(options, devices):
    config = dataclasses.replace(EVERY_TERM, **dict(options))
    objective = make_objective(config, COLUMNS, classes=np.arange(4))
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS_NAME,), axis_types=(AxisType.Auto,))
    specs = (P(), P(AXIS_NAME) if config.shard_classes else P(), P(), P())
    run = jax.shard_map(objective, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    params = init_loss_params(jax.random.key(0), config, num_classes=4, dim=DIM)
    return jax.jit(partial(run, jax.random.key(1), params))


def reported(options, devices, labels):
    """What the objective reports of a batch on so many devices."""
    embeddings = np.random.default_rng(0).normal(size=(len(labels), DIM)).astype(np.float32)
    _, terms = program(tuple(options.items()), devices)(embeddings, labels)
    return {name: float(value) for name, value in terms.items()}


def count_quadruplets(labels):
    """Ordered pairs of pairs of which the first certainly disagrees less."""

    def bounds(a, b):
        known = (a >= 0) & (b >= 0)
        differ = int((known & (a != b)).sum())
        return differ, differ + int((~known).sum())

    pairs = [bounds(a, b) for a, b in itertools.combinations(labels, 2)]
    return sum(near[1] < far[0] for near, far in itertools.permutations(pairs, 2))


def count_triplets(labels):
    identity = labels[labels[:, 0] >= 0, 0]
    return sum(
        a != p and identity[a] == identity[p] != identity[n]
        for a, p, n in itertools.product(range(len(identity)), repeat=3)
    )


@every_setup
def test_terms_tell_how_much_they_found_to_compare(options, devices):
    terms = reported(options, devices, LABELS)
    assert {name: value for name, value in terms.items() if name.startswith("valid/")} == {
        "valid/quadruplet": options.get("quadruplet_samples", count_quadruplets(LABELS)),  # each draw is one
        "valid/soft_triple": 7,
        "valid/softmax": 7,
        "valid/triplet": count_triplets(LABELS),
    }


@every_setup
def test_a_loss_of_0_without_anything_to_compare_is_told_from_a_satisfied_one(options, devices):
    satisfied = reported(options, devices, LABELS)
    assert (satisfied["loss/quadruplet"], satisfied["loss/triplet"]) == (0, 0)
    assert min(satisfied["valid/quadruplet"], satisfied["valid/triplet"]) > 0
    # Where a column is unknown throughout, no pair certainly disagrees more than another.
    terms = reported(options, devices, np.stack([LABELS[:, 0], np.full(len(LABELS), -1, np.int32)], axis=1))
    assert (terms["loss/quadruplet"], terms["valid/quadruplet"]) == (0, 0)
    assert terms["valid/triplet"] == count_triplets(LABELS)
    # Where all images are of one person, no softmax is the worse for it, but no triplet is there.
    alone = reported(options, devices, np.zeros_like(LABELS))
    assert (alone["valid/quadruplet"], alone["valid/triplet"], alone["valid/softmax"]) == (0, 0, len(LABELS))


def test_a_term_that_never_found_anything_is_told_once():
    watch = _watch_comparisons(0)
    assert watch(1, {"valid/triplet": 0.0, "valid/softmax": 8.0, "loss": 0.1}, last=False) is None
    told = watch(30, {"valid/triplet": 0.0, "valid/softmax": 8.0, "loss": 0.1}, last=False)
    assert told.startswith("warning: nothing to compare for triplet in any of the 30 batches so far")
    assert watch(40, {"valid/triplet": 0.0}, last=True) is None


def test_a_term_that_found_something_once_is_no_matter():
    watch = _watch_comparisons(0)
    for step, valid in ((10, 0.0), (20, 0.5), (30, 0.0)):
        assert watch(step, {"valid/triplet": valid}, last=step == 30) is None


def test_a_short_run_tells_at_its_end():
    assert "any of the 3 batches" in _watch_comparisons(7)(10, {"valid/quadruplet": 0.0}, last=True)
