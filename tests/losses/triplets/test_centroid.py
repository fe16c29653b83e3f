from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.distances import pairwise_lp
from jaxmetric.losses.triplets import centroid_triplet_loss
from jaxmetric.references import References

B, R = 10, 8


def distance(name, x, y):
    x, y = np.float64(x), np.float64(y)
    if name == "cosine":
        return 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    return ((x - y) ** 2).sum() ** (0.5 if name == "euclidean" else 1)


def brute_force(x, labels, weights, y, of_y, weights_of_y, own, mining, margin, name="squared_euclidean"):
    """Total of each anchor, valid and active weight, by the definition of each centroid."""

    def centroid(members):
        return np.average(y[members], axis=0, weights=weights_of_y[members])

    totals, valid, active = np.zeros(len(x)), 0.0, 0.0
    present = np.flatnonzero(weights_of_y)
    for a in np.flatnonzero(weights):
        mates = [r for r in present if of_y[r] == labels[a] and r != own[a]]
        others = [[r for r in present if of_y[r] == label] for label in sorted({*of_y[present]} - {labels[a]})]
        if not mates or not others:
            continue
        near = distance(name, x[a], centroid(mates))
        far = [distance(name, x[a], centroid(members)) for members in others]
        for loss in (max(near - each + margin, 0) for each in (far if mining == "all" else [min(far)])):
            totals[a] += weights[a] * loss
            valid += weights[a]
            active += weights[a] * (loss > 0)
    return totals, valid, active


@partial(jax.jit, static_argnames=("mining", "name"))
def within_batch(embeddings, labels, weights, margin, mining, name="squared_euclidean"):
    def loss(embeddings):
        return centroid_triplet_loss(
            embeddings, labels, margin=margin, mining=mining, distance=name, weights=weights, has_aux=True
        )

    return jax.value_and_grad(loss, has_aux=True)(embeddings)


@pytest.mark.parametrize("mining", ["hard", "all"])
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([1, 2, 4, 30]), margin=st.sampled_from([-1.0, 0.5, 9.0]))
def test_is_the_mean_over_anchors_and_centroids(mining, seed, classes, margin):
    rng = np.random.default_rng(seed)
    embeddings, labels = rng.normal(size=(B, 3)).astype(np.float32), rng.integers(-classes, classes, B)
    weights = rng.choice(np.float32([0, 0.5, 1, 3]), B)
    batch = embeddings, labels, weights
    total, valid, active = brute_force(*batch, *batch, np.arange(B), mining, margin)
    (loss, stats), _ = within_batch(*batch, margin, mining)
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, total.sum() / valid if valid else 0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["euclidean", "cosine"])
def test_gradient_by_finite_differences(name):
    rng = np.random.default_rng(0)
    x, labels, weights = rng.normal(size=(B, 3)), rng.integers(0, 3, B), rng.choice([0, 0.5, 1, 3], B)

    def expected(x):
        return brute_force(x, labels, weights, x, labels, weights, np.arange(B), "hard", 0.5, name)

    with jax.enable_x64(True):
        (_, stats), gradient = jax.tree.map(np.asarray, within_batch(x, labels, weights, 0.5, "hard", name))
    for direction in rng.normal(size=(3, B, 3)):
        above, below = (expected(x + s * 1e-6 * direction)[0].sum() for s in (1, -1))
        np.testing.assert_allclose((gradient * direction).sum(), (above - below) / 2e-6 / stats.valid, rtol=1e-6)


def test_queries_against_a_gallery():
    rng = np.random.default_rng(2)
    queries, gallery = rng.normal(size=(B, 3)).astype(np.float32), rng.normal(size=(R, 3)).astype(np.float32)
    labels, of_gallery, own = rng.integers(0, 4, B), rng.integers(0, 3, R), np.arange(B) % 4 - 1
    weights, weights_of_gallery = rng.choice([0, 1, 3], B), rng.choice([0, 0.5, 2], R)
    expected = brute_force(queries, labels, weights, gallery, of_gallery, weights_of_gallery, own, "all", 0.5)[0]
    references = References(gallery, of_gallery, weights=weights_of_gallery, own=own)
    losses = centroid_triplet_loss(
        queries, labels, mining="all", references=references, weights=weights, reduction="none"
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)


def test_a_function_as_distance():
    embeddings, labels = np.float32([[0, 0], [2, 0], [0, 3], [0, 5]]), np.array([4, 4, 9, 9])
    losses = centroid_triplet_loss(embeddings, labels, distance=partial(pairwise_lp, p=1), margin=3, reduction="none")
    np.testing.assert_allclose(losses, [2 - 4 + 3, 0, 2 - 4 + 3, 0])


@pytest.mark.parametrize("at", [0, 5])
def test_a_nan_stays_visible(at):
    embeddings, labels = np.random.default_rng(0).normal(size=(B, 3)), np.arange(B) % 3
    labels[5] = 99
    embeddings[at, 0] = np.nan
    assert np.isnan(within_batch(np.float32(embeddings), labels, np.ones(B, np.float32), 0.5, "hard")[0][0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mining": "semi-hard"}, ValueError, "mining is 'semi-hard', expected one of hard, all"),
        ({"margin": np.inf}, ValueError, "margin is inf, expected a finite number"),
        (
            {"distance": "l1"},
            ValueError,
            "distance is 'l1', expected one of squared_euclidean, euclidean, cosine, snr, a function",
        ),
        ({"distance": np.ones((4, 4))}, TypeError, "distance is ndarray, expected a name or a function"),
    ],
)
def test_bad_input_is_one_clear_line(changes, error, message):
    with pytest.raises(error, match=message):
        centroid_triplet_loss(np.ones((4, 2), np.float32), np.arange(4) // 2, **changes)
