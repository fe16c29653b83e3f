import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmetric

MININGS = ("all", "semi-hard", "hard")

# One program compiles faster than its operations one by one.
triplet_loss = jax.jit(jaxmetric.triplet_loss, static_argnames=("mining", "reduction", "has_aux"))


def squared_distances(embeddings):
    embeddings = np.asarray(embeddings, np.float64)
    return ((embeddings[:, None] - embeddings[None]) ** 2).sum(-1)


def triplets(distances, labels, mining):
    """The triplets (a, p, n) of which the loss is made, by loops over the definition of each mining."""
    everybody = range(len(labels))
    for a in everybody:
        positives = [p for p in everybody if labels[p] == labels[a] and p != a]
        negatives = [n for n in everybody if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            yield from ((a, p, n) for p in positives for n in negatives)
        elif mining == "semi-hard":
            for p in positives:
                farther = [n for n in negatives if distances[a, n] > distances[a, p]]
                if farther:
                    yield a, p, min(farther, key=lambda n: distances[a, n])
                else:
                    yield a, p, max(negatives, key=lambda n: distances[a, n])
        else:
            farthest = max(positives, key=lambda p: distances[a, p])
            yield a, farthest, min(negatives, key=lambda n: distances[a, n])


def brute_force(embeddings, labels, mining, margin=0.2, weights=None):
    """Per anchor the weighted sum of the hinges; the weight of all triplets; that of the active ones."""
    weights = np.ones(len(labels)) if weights is None else weights
    kept = np.flatnonzero(weights)
    distances = squared_distances(embeddings[kept])
    total, valid, active = np.zeros(len(labels)), 0.0, 0.0
    for triplet in triplets(distances, labels[kept], mining):
        a, p, n = triplet
        hinge = max(distances[a, p] - distances[a, n] + margin, 0)
        weight = weights[kept[list(triplet)]].prod()
        total[kept[a]] += weight * hinge
        valid += weight
        active += weight * (hinge > 0)
    return total, valid, active


def example(seed=0, batch=12, classes=4, dim=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, dim)).astype(np.float32), rng.integers(0, classes, batch)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([1, 2, 4, 30]), margin=st.sampled_from([-0.5, 0.2, 3.0]))
def test_is_the_mean_over_its_triplets(mining, seed, classes, margin):
    embeddings, labels = example(seed, classes=classes)
    total, valid, active = brute_force(embeddings, labels, mining, margin)
    loss, stats = triplet_loss(embeddings, labels, margin=margin, mining=mining, has_aux=True)
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, total.sum() / valid if valid else 0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1), margin=st.sampled_from([0.0, 1.0]))
def test_ties_are_resolved_as_defined(mining, seed, margin):
    # Points of a grid: most distances are equal to others, and exact in float32.
    rng = np.random.default_rng(seed)
    embeddings, labels = rng.integers(0, 3, (12, 2)).astype(np.float32), rng.integers(0, 3, 12)
    total, valid, active = brute_force(embeddings, labels, mining, margin)
    stats = triplet_loss(embeddings, labels, margin=margin, mining=mining, has_aux=True)[1]
    assert tuple(map(float, stats)) == (total.sum(), valid, active)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_triplet_weighs_the_product_of_its_members(mining, seed):
    embeddings, labels = example(seed)
    weights = np.random.default_rng(seed).choice([0, 0.5, 1, 3], 12)
    total, valid, active = brute_force(embeddings, labels, mining, weights=weights)
    stats = triplet_loss(embeddings, labels, mining=mining, weights=weights, has_aux=True)[1]
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1))
def test_masking_equals_deleting(mining, seed):
    embeddings, labels = example(seed)
    where = np.random.default_rng(seed).random(12) < 0.6
    total, valid, active = brute_force(embeddings[where], labels[where], mining)
    embeddings[~where] = np.nan  # whatever a masked row holds
    stats = triplet_loss(embeddings, labels, mining=mining, where=where, has_aux=True)[1]
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("reduction", ["mean", "mean_active", "sum", "none"])
def test_reductions(mining, reduction):
    embeddings, labels = example()
    total, valid, active = brute_force(embeddings, labels, mining, margin=-0.5)
    assert 0 < active < valid
    expected = {"mean": total.sum() / valid, "mean_active": total.sum() / active, "sum": total.sum(), "none": total}
    actual = triplet_loss(embeddings, labels, margin=-0.5, mining=mining, reduction=reduction)
    np.testing.assert_allclose(actual, expected[reduction], rtol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
def test_gradient_is_that_of_the_chosen_triplets(mining):
    embeddings, labels = example()
    x = embeddings.astype(np.float64)
    distances = squared_distances(x)
    expected, count = np.zeros_like(x), 0
    for a, p, n in triplets(distances, labels, mining):
        count += 1
        if distances[a, p] - distances[a, n] + 0.2 > 0:
            expected[a] += 2 * (x[a] - x[p]) - 2 * (x[a] - x[n])
            expected[p] += 2 * (x[p] - x[a])
            expected[n] -= 2 * (x[n] - x[a])
    gradient = jax.grad(triplet_loss)(embeddings, labels, mining=mining)
    np.testing.assert_allclose(gradient, expected / count, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(
    "labels",
    [np.zeros(12, int), np.arange(12), np.zeros((12, 1), int)],
    ids=["one class", "all distinct", "one class, a column"],
)
def test_no_triplet_gives_0_and_no_gradient(mining, labels):
    loss, gradient = jax.value_and_grad(triplet_loss)(example()[0], labels, mining=mining)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_batches_too_small_for_a_triplet_give_0(mining, batch):
    embeddings, labels = example(batch=batch)
    loss, gradient = jax.value_and_grad(triplet_loss)(embeddings, labels, mining=mining)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    assert triplet_loss(embeddings, labels, mining=mining, reduction="none").shape == (batch,)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("alone", [False, True], ids=["in a class", "alone in its class"])
def test_a_nan_stays_visible(mining, alone):
    embeddings, labels = example()
    labels[5] = 99 if alone else labels[4]
    embeddings[5, 0] = np.nan
    for reduction in ("mean", "sum"):
        assert np.isnan(triplet_loss(embeddings, labels, mining=mining, reduction=reduction))


@pytest.mark.parametrize("mining", MININGS)
def test_a_collapsed_batch_costs_the_margin_and_has_no_gradient(mining):
    _, labels = example()
    same = np.tile(np.float32([0.3, -1.7, 0.9]), (12, 1))
    loss, gradient = jax.value_and_grad(triplet_loss)(same, labels, mining=mining, margin=0.25)
    np.testing.assert_allclose(loss, 0.25, rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


def test_all_triplets_need_memory_quadratic_in_the_batch():
    def temporary_bytes(batch):
        shapes = jax.ShapeDtypeStruct((batch, 8), np.float32), jax.ShapeDtypeStruct((batch,), np.int32)
        compiled = jax.jit(jax.value_and_grad(jaxmetric.triplet_loss)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Enumerating them would take 4 * 256^3 = 67 MB, and 8 times as much at twice the batch.
    small, large = temporary_bytes(128), temporary_bytes(256)
    assert large < 5 * small
    assert large < 4 * 256**2 * 40


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mining": "hardest"}, ValueError, "mining is 'hardest', expected one of all, semi-hard, hard"),
        ({"reduction": "median"}, ValueError, "reduction is 'median', expected one of"),
        ({"margin": np.inf}, ValueError, "margin is inf, expected a finite number"),
        ({"margin": np.ones(2)}, ValueError, r"margin has shape \(2,\), expected a scalar"),
        ({"embeddings": np.ones((12, 0), np.float32)}, ValueError, r"embeddings has shape \(12, 0\), expected"),
        ({"embeddings": np.ones((12, 3), int)}, TypeError, "embeddings has dtype int"),
        ({"labels": np.zeros((12, 2), int)}, ValueError, r"labels has shape \(12, 2\), expected one column of 12"),
        ({"labels": np.zeros(12, bool)}, TypeError, "labels has dtype bool, expected integers"),
        ({"where": np.ones((12, 1), bool)}, ValueError, r"where has shape \(12, 1\), expected \(12,\)"),
        ({"weights": np.ones(11)}, ValueError, r"weights has shape \(11,\), expected \(12,\)"),
    ],
    ids=lambda value: str(list(value)[0]) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_clear_line(changes, error, message):
    embeddings, labels = example()
    with pytest.raises(error, match=message) as raised:
        jaxmetric.triplet_loss(**{"embeddings": embeddings, "labels": labels, **changes})
    assert "\n" not in str(raised.value)
