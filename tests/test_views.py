import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric.losses.log_sum_exp import ntxent_loss
from jaxmetric.losses.triplets import triplet_loss
from jaxmetric.views import self_supervised, view_labels


def views(num_views=2, batch=4):
    x = np.random.default_rng(0).normal(size=(num_views, batch, 3)).astype(np.float32)
    return list(x)


def cosines(x, y):
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x.astype(float), y.astype(float)))
    return x @ y.T


def infonce(anchors, references, positives, left_out=()):
    """-log of the share of each positive among it and the negatives, pair by pair."""
    s = np.exp(cosines(anchors, references) / 0.1)
    losses = []
    for a, p in positives:
        negatives = [r for r in range(len(references)) if (a, r) not in positives and (a, r) not in left_out]
        losses.append(-np.log(s[a, p] / (s[a, p] + sum(s[a, r] for r in negatives))))
    return losses


def test_view_labels_number_the_images_view_by_view():
    assert view_labels(3, 1).tolist() == [0, 1, 2]
    assert view_labels(2, 3).tolist() == [0, 1, 0, 1, 0, 1]


def test_symmetric_every_view_is_compared_with_all_others():
    first, second = views()
    stacked = np.concatenate([first, second])
    positives = [(i, (i + 4) % 8) for i in range(8)]
    expected = infonce(stacked, stacked, positives, left_out=[(i, i) for i in range(8)])
    loss = self_supervised(ntxent_loss)(first, second, temperature=0.1)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    each = self_supervised(ntxent_loss)(first, second, temperature=0.1, reduction="none")
    np.testing.assert_allclose(each, expected, rtol=1e-4)


def test_asymmetric_only_the_first_view_is_an_anchor_and_only_the_others_are_references():
    first, second = views()
    expected = infonce(first, second, [(i, i) for i in range(4)])
    loss = self_supervised(ntxent_loss, symmetric=False)(first, second, temperature=0.1)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    first, second, third = views(3)
    positives = [(i, j) for i in range(4) for j in (i, i + 4)]
    expected = infonce(first, np.concatenate([second, third]), positives)
    loss = self_supervised(ntxent_loss, symmetric=False)(first, second, third, temperature=0.1)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_losses_without_references_work_on_symmetric_views():
    first, second, third = views(3)
    expected = triplet_loss(np.concatenate([first, second, third]), np.tile(np.arange(4), 3), margin=1.0)
    assert self_supervised(triplet_loss)(first, second, third, margin=1.0) == expected


@pytest.mark.parametrize("symmetric", [True, False])
def test_masked_images_equal_deleted_ones_in_every_view(symmetric):
    loss = self_supervised(ntxent_loss, symmetric=symmetric)
    first, second, third = views(3)
    where = np.array([True, False, True, True])
    poisoned = (np.where(where[:, None], view, np.nan) for view in (first, second, third))
    expected = loss(*(view[where] for view in (first, second, third)))
    np.testing.assert_allclose(loss(*poisoned, where=where), expected, rtol=1e-6)
    doubled = loss(first, second, third, weights=2 * where.astype(np.float32))
    np.testing.assert_allclose(doubled, expected, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_view_has_a_gradient(symmetric):
    loss = self_supervised(ntxent_loss, symmetric=symmetric)
    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(*views()):
        assert (np.abs(gradient).sum(1) > 0).all()


def test_bad_views_are_named():
    loss = self_supervised(ntxent_loss)
    with pytest.raises(ValueError, match=r"views have shapes \[\(4, 3\)\], expected two or more of one shape \[B, D\]"):
        loss(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"views have shapes \[\(4, 3\), \(5, 3\)\], expected two or more"):
        loss(jnp.ones((4, 3)), jnp.ones((5, 3)))
