"""Arrays on a mesh of explicit axes, the default of `jax.make_mesh`, go through every function that takes arrays.

The losses' own tests are in `tests/losses/test_loss_conformance.py`, those of distances and search beside them.
"""

from contextlib import nullcontext
from functools import partial

import jax
import numpy as np
import pytest

import jaxmetric
from jaxmetric import memory, mining, regularizers, views
from jaxmetric.references import References

B, D = 16, 4
RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(size=(B, D)).astype(np.float32)
LABELS = RNG.integers(0, 3, B)
CENTERS = RNG.normal(size=(8, 2, D)).astype(np.float32)
POSITIVES, NEGATIVES = map(np.asarray, mining.label_pairs(LABELS))
DISTANCES = ((EMBEDDINGS[:, None] - EMBEDDINGS[None]) ** 2).sum(-1)
KEY = jax.random.key(0)
FILLED = memory.update(memory.init(8, D), EMBEDDINGS, LABELS)

FUNCTIONS = {
    "label_agreement": (jaxmetric.label_agreement, LABELS, LABELS),
    "label_pairs": (mining.label_pairs, LABELS),
    "label_pairs with references": (lambda x, y: mining.label_pairs(y, References(x, y)), EMBEDDINGS, LABELS),
    **{
        name: (getattr(mining, name), DISTANCES, POSITIVES, NEGATIVES)
        for name in ("batch_hard", "batch_easy_hard", "triplet_margin", "semi_hard", "multi_similarity", "pair_margin")
    },
    "hard_aware": (mining.hard_aware, DISTANCES, POSITIVES, NEGATIVES),
    "distance_weighted": (partial(mining.distance_weighted, KEY, dim=D), DISTANCES, POSITIVES, NEGATIVES),
    "uniform_histogram": (partial(mining.uniform_histogram, KEY), DISTANCES, POSITIVES, NEGATIVES),
    "angular": (mining.angular, EMBEDDINGS, POSITIVES, NEGATIVES),
    "hardest_positives": (mining.hardest_positives, DISTANCES, POSITIVES),
    "easiest_positives": (mining.easiest_positives, DISTANCES, POSITIVES),
    "hardest_negatives": (mining.hardest_negatives, DISTANCES, NEGATIVES),
    "semi_hard_negatives": (mining.semi_hard_negatives, DISTANCES, NEGATIVES),
    "lp_regularizer": (regularizers.lp_regularizer, EMBEDDINGS),
    "zero_mean_regularizer": (regularizers.zero_mean_regularizer, EMBEDDINGS),
    "center_invariant_regularizer": (regularizers.center_invariant_regularizer, CENTERS[:, 0]),
    "regular_face_regularizer": (regularizers.regular_face_regularizer, CENTERS[:, 0]),
    "soft_triple_regularizer": (jaxmetric.soft_triple_regularizer, CENTERS),
    "effective_centers": (jaxmetric.effective_centers, CENTERS),
    "sample_classes": (lambda labels: jaxmetric.sample_classes(KEY, labels, 32, 20), LABELS),
    "memory.update": (memory.update, FILLED, EMBEDDINGS, LABELS),
    "memory.as_references": (lambda m, x, y: memory.as_references(m, x, y)[:3], FILLED, EMBEDDINGS, LABELS),
    "self_supervised": (views.self_supervised(jaxmetric.ntxent_loss), EMBEDDINGS, EMBEDDINGS[::-1].copy()),
    "one-sided self_supervised": (
        views.self_supervised(jaxmetric.ntxent_loss, symmetric=False),
        EMBEDDINGS,
        EMBEDDINGS[::-1].copy(),
    ),
    "triplets": (
        lambda x, t: jaxmetric.triplet_loss(x, None, triplets=t),
        EMBEDDINGS,
        np.stack([RNG.permutation(B)[:3] for _ in range(8)]),
    ),
    "masks": (
        lambda x, p, n: jaxmetric.contrastive_loss(x, None, pairs=(p, n)),
        EMBEDDINGS,
        POSITIVES,
        NEGATIVES,
    ),
}


def test_every_miner_is_covered():
    miners = {name for name, each in vars(mining).items() if getattr(each, "__module__", "") == mining.__name__}
    assert {name for name in miners if not name.startswith("_")} <= FUNCTIONS.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sharded_arrays_are_accepted(name):
    function, *arrays = FUNCTIONS[name]
    mesh = jax.make_mesh((8,), ("data",))
    arrays = placed(mesh, arrays)
    expected = jax.eval_shape(function, *FUNCTIONS[name][1:])
    for context in (nullcontext(), jax.set_mesh(mesh)):
        with context:
            result = jax.eval_shape(function, *arrays)
        assert jax.tree.map(np.shape, result) == jax.tree.map(np.shape, expected)


def placed(mesh, arrays):
    def place(array):
        rows = jax.P("data") if np.ndim(array) else jax.P()
        return jax.device_put(array, jax.NamedSharding(mesh, rows))

    return jax.tree.map(place, arrays)


QUICK = ("label_agreement", "multi_similarity", "memory.update", "triplets", "masks")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS]
)
def test_the_result_is_that_of_one_device(name):
    function, *arrays = FUNCTIONS[name]
    expected = function(*arrays)
    arrays = placed(jax.make_mesh((8,), ("data",)), arrays)
    jitted = jax.jit(function)(*arrays)
    for result in (function(*arrays), jitted):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), result, expected)
    if name == "memory.update":  # a memory stays where it was
        for new, old in zip(jitted, arrays[0], strict=True):
            assert new.sharding.is_equivalent_to(old.sharding, new.ndim)
