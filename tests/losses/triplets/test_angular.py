import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses.triplets import angular_loss
from jaxmetric.references import References

B, R = 9, 7


def brute_force(similarities, others, labels, of_references, allowed, angle, weights, of_references_weights):
    """Total, valid and active weight, by loops over the paper's definition in float64."""
    tangent = math.tan(angle) ** 2
    stats = np.zeros(3)
    for a in range(len(labels)):
        references = np.flatnonzero(allowed[a])
        negatives = [n for n in references if of_references[n] != labels[a]]
        for p in references:
            if of_references[p] != labels[a] or not negatives:
                continue
            f = [
                4 * tangent * (similarities[a, n] + others[p, n]) - 2 * (1 + tangent) * similarities[a, p]
                for n in negatives
            ]
            loss = math.log(1 + sum(map(math.exp, f)))
            stats += weights[a] * of_references_weights[p] * np.array([loss, 1, loss > 0])
    return stats


def cosines(x, y):
    x, y = (np.float64(z) / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return x @ y.T


@jax.jit
def within_batch(embeddings, labels, angle, weights):
    def loss(embeddings):
        return angular_loss(embeddings, labels, angle=angle, weights=weights, has_aux=True)

    return jax.value_and_grad(loss, has_aux=True)(embeddings)


@given(
    seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([1, 2, 4, 30]), angle=st.sampled_from([0.1, math.pi / 4, 1])
)
def test_is_the_mean_over_pairs_of_anchor_and_positive(seed, classes, angle):
    rng = np.random.default_rng(seed)
    embeddings, labels = rng.normal(size=(B, 3)).astype(np.float32), rng.integers(0, classes, B)
    weights = rng.choice(np.float32([0, 0.5, 1, 3]), B)
    matrix, allowed = cosines(embeddings, embeddings), (weights > 0) & ~np.eye(B, dtype=bool)
    expected = brute_force(matrix, matrix, labels, labels, allowed, angle, weights, weights)
    (loss, stats), _ = within_batch(embeddings, labels, angle, weights)
    np.testing.assert_allclose(stats, expected, rtol=1e-4)
    np.testing.assert_allclose(loss, expected[0] / expected[1] if expected[1] else 0, rtol=1e-4)


def test_queries_against_a_gallery_with_dot_products_and_allowed_pairs():
    rng = np.random.default_rng(1)
    queries, gallery = 0.5 * rng.normal(size=(B, 3)), 0.5 * rng.normal(size=(R, 3))
    labels, of_gallery, pairs = rng.integers(0, 3, B), rng.integers(0, 3, R), rng.random((B, R)) < 0.7
    weights, of_gallery_weights = rng.choice([0, 0.5, 1, 3], B), rng.choice([0, 0.5, 1, 3], R)

    def expected(queries, gallery):
        allowed = pairs & (of_gallery_weights > 0)
        similarities = queries @ gallery.T, gallery @ gallery.T
        return brute_force(*similarities, labels, of_gallery, allowed, math.pi / 4, weights, of_gallery_weights)

    def ours(queries, gallery):
        references = References(gallery, of_gallery, weights=of_gallery_weights)
        return angular_loss(
            queries, labels, similarity="dot", references=references, pairs=pairs, weights=weights, has_aux=True
        )

    with jax.enable_x64(True):
        result = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(queries, gallery)
        (_, stats), gradients = jax.tree.map(np.asarray, result)
    np.testing.assert_allclose(stats, expected(queries, gallery), rtol=1e-9)
    for direction in rng.normal(size=(3, B + R, 3)):
        moved = 1e-6 * direction[:B], 1e-6 * direction[B:]
        above, below = (expected(queries + s * moved[0], gallery + s * moved[1])[0] for s in (1, -1))
        slope = (gradients[0] * direction[:B]).sum() + (gradients[1] * direction[B:]).sum()
        np.testing.assert_allclose(slope, (above - below) / 2e-6 / stats.valid, rtol=1e-6)


def test_a_pair_without_negatives_is_not_counted():
    labels = np.array([0, 0, 1])
    pairs = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)  # the negative is only allowed to the second anchor
    assert angular_loss(np.eye(3, dtype=np.float32), labels, pairs=pairs, has_aux=True)[1].valid == 1


def test_large_similarities_are_finite_and_nan_stays_visible():
    embeddings = np.float32([[300, 0], [-300, 0], [0, 300], [200, 200]])
    labels = np.array([0, 0, 1, 1])
    loss, gradient = jax.value_and_grad(angular_loss)(embeddings, labels, similarity="dot")
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    embeddings[2, 0] = np.nan
    assert np.isnan(angular_loss(embeddings, labels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angle": 0.0}, "angle is 0, expected radians above 0"),
        ({"angle": 45}, "angle is 45, expected radians above 0 and below 1.57"),
        ({"reduction": "max"}, "reduction is 'max', expected one of"),
        ({"similarity": "euclidean"}, "similarity is 'euclidean', expected one of"),
    ],
)
def test_bad_input_is_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message):
        angular_loss(np.ones((4, 2), np.float32), np.arange(4) // 2, **changes)
