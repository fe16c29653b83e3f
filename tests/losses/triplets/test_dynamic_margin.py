import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses.triplets import dynamic_soft_margin_loss
from jaxmetric.references import References

B, R, K = 9, 7, 16
MININGS = ("hard", "all")


def euclidean(x, y):
    return np.sqrt(((np.float64(x)[:, None] - np.float64(y)[None]) ** 2).sum(-1))


def triplets(distances, others, labels, of_references, allowed, mining):
    """(a, p, n, d(a, p) - d(., n)) for each triplet, by the definition of each mining."""
    for a in range(len(labels)):
        positives = [p for p in np.flatnonzero(allowed[a]) if of_references[p] == labels[a]]
        negatives = [n for n in np.flatnonzero(allowed[a]) if of_references[n] != labels[a]]
        for p in positives if negatives else []:
            if mining == "all":
                yield from ((a, p, n, distances[a, p] - distances[a, n]) for n in negatives)
            else:
                far, n = min((min(distances[a, n], others[p, n]), n) for n in negatives)
                yield a, p, n, distances[a, p] - far


def brute_force(distances, others, labels, of_references, allowed, weights, of_references_weights, mining, past, m):
    """Stats and the new histogram, by loops over the paper's definitions."""
    width = 4 / (K - 1)
    found = [
        (z, weights[a] * of_references_weights[p] * of_references_weights[n])
        for a, p, n, z in triplets(distances, others, labels, of_references, allowed, mining)
    ]
    counts = np.zeros(K)
    for z, weight in found:
        place = min(max((z + 2) / width, 0), K - 1)
        low = int(place)
        counts[low] += weight * (1 - place + low)
        counts[min(low + 1, K - 1)] += weight * (place - low)
    histogram = past / (past.sum() or 1)
    if counts.sum():
        m = m if past.sum() else 1
        histogram = (1 - m) * histogram + m * counts / counts.sum()
    stats = np.zeros(3)
    for z, weight in found:
        share = histogram[: int(min(max((z + 2) / width, 0), K - 1)) + 1].sum()
        stats += weight * np.array([share * z, 1, share * z > 0])
    return stats, histogram


def problem(seed, classes=4):
    rng = np.random.default_rng(seed)
    embeddings, labels = rng.normal(size=(B, 3)), rng.integers(0, classes, B)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels, rng.choice([0, 0.5, 1, 3], B), rng.choice([0, 0, 1, 2], K) * 1.0


@pytest.mark.parametrize("mining", MININGS)
@given(
    seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([1, 2, 4, 30]), momentum=st.sampled_from([0.0, 0.01, 1.0])
)
def test_the_weight_of_a_triplet_is_the_share_of_easier_ones(mining, seed, classes, momentum):
    embeddings, labels, weights, past = problem(seed, classes)
    past = past * (seed % 3 > 0)  # also without a past
    distances, allowed = euclidean(embeddings, embeddings), (weights > 0) & ~np.eye(B, dtype=bool)
    allowed &= weights[:, None] > 0
    expected, histogram = brute_force(
        distances, distances, labels, labels, allowed, weights, weights, mining, past, momentum
    )
    with jax.enable_x64(True):  # else rounding moves a difference to the next bin
        loss, stats = COMPILED[mining](distances, labels, weights, past, momentum)
    np.testing.assert_allclose(stats[:3], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(stats.histogram, histogram, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(loss, expected[0] / expected[1] if expected[1] else 0, rtol=1e-9, atol=1e-12)


def compiled(mining):
    def loss(distances, labels, weights, past, momentum):
        return dynamic_soft_margin_loss(
            None,
            labels,
            distance=distances,
            histogram=past,
            momentum=momentum,
            weights=weights,
            mining=mining,
            has_aux=True,
        )

    return jax.jit(loss)


COMPILED = {mining: compiled(mining) for mining in MININGS}


@pytest.mark.parametrize("mining", MININGS)
def test_queries_against_a_gallery_with_the_gradient_of_constant_shares(mining):
    rng = np.random.default_rng(4)
    queries, labels, weights, past = problem(4)
    gallery, of_gallery = rng.normal(size=(R, 3)), rng.integers(0, 4, R)
    weights_of_gallery, own = rng.choice([0, 0.5, 1, 3], R), np.arange(B) % 4 - 1
    allowed = (weights[:, None] > 0) & (weights_of_gallery > 0) & (own[:, None] != np.arange(R))
    references = References(gallery, of_gallery, weights=weights_of_gallery, own=own)

    def ours(queries):
        return dynamic_soft_margin_loss(
            queries,
            labels,
            histogram=past,
            mining=mining,
            references=references,
            weights=weights,
            reduction="sum",
            has_aux=True,
        )

    with jax.enable_x64(True):
        (loss, stats), gradient = jax.tree.map(np.asarray, jax.value_and_grad(ours, has_aux=True)(queries))
    distances, others = euclidean(queries, gallery), euclidean(gallery, gallery)
    examples = labels, of_gallery, allowed, weights, weights_of_gallery
    expected, histogram = brute_force(distances, others, *examples, mining, past, 0.01)
    np.testing.assert_allclose(stats[:3], expected, rtol=1e-9)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-9)

    def of_constant_shares(queries):
        moved = list(triplets(euclidean(queries, gallery), others, *examples[:3], mining))
        return sum(share * z for share, (*_, z) in zip(shares, moved, strict=True))

    found = list(triplets(distances, others, *examples[:3], mining))
    places = [int(min(max((z + 2) * (K - 1) / 4, 0), K - 1)) for *_, z in found]
    shares = [
        histogram[: place + 1].sum() * weights[a] * weights_of_gallery[p] * weights_of_gallery[n]
        for place, (a, p, n, _) in zip(places, found, strict=True)
    ]
    for direction in rng.normal(size=(3, B, 3)):
        above, below = (of_constant_shares(queries + s * 1e-6 * direction) for s in (1, -1))
        np.testing.assert_allclose((gradient * direction).sum(), (above - below) / 2e-6, rtol=1e-6)


def test_the_histogram_is_the_state_of_a_scan():
    def step(histogram, batch):
        loss, stats = dynamic_soft_margin_loss(*batch, histogram=histogram, momentum=0.5, has_aux=True)
        return stats.histogram, loss

    embeddings, labels, _, _ = problem(0)
    batches = np.float32([embeddings, -embeddings, embeddings[::-1]]), np.stack([labels] * 3)
    last, losses = jax.lax.scan(step, np.zeros(K, np.float32), batches)
    first, stats = dynamic_soft_margin_loss(*(each[0] for each in batches), num_bins=K, has_aux=True)
    np.testing.assert_allclose(losses[:2], [first, first], rtol=1e-5)  # the second batch has the same distances
    np.testing.assert_allclose(np.sum(last), 1, rtol=1e-6)


def test_a_batch_without_triplets_does_not_change_the_histogram():
    past = np.float32([0.5, 0.5, 0])
    loss, stats = dynamic_soft_margin_loss(np.eye(3, dtype=np.float32), np.arange(3), histogram=past, has_aux=True)
    assert loss == 0
    np.testing.assert_array_equal(stats.histogram, past)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("at", [0, 5])
def test_a_nan_stays_visible(mining, at):
    embeddings, labels, _, _ = problem(0)
    labels[5] = 99
    embeddings[at, 0] = np.nan
    assert np.isnan(dynamic_soft_margin_loss(np.float32(embeddings), labels, mining=mining))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mining": "semi-hard"}, ValueError, "mining is 'semi-hard', expected one of hard, all"),
        ({"momentum": 1.5}, ValueError, "momentum is 1.5, expected a finite number of at least 0 and of at most 1"),
        ({"momentum": -0.5}, ValueError, "momentum is -0.5, expected a finite number of at least 0"),
        ({"largest": 0}, ValueError, "largest is 0, expected a finite number above 0"),
        ({"num_bins": 1}, ValueError, "num_bins is 1, expected a static integer of at least 2"),
        ({"num_bins": 9.0}, TypeError, "num_bins is 9.0, expected a static integer"),
        ({"histogram": np.ones((2, 2), np.float32)}, ValueError, r"histogram has shape \(2, 2\), expected \[K\]"),
        ({"histogram": np.arange(3)}, TypeError, "histogram has dtype int"),
    ],
)
def test_bad_input_is_one_clear_line(changes, error, message):
    with pytest.raises(error, match=message):
        dynamic_soft_margin_loss(np.ones((4, 2), np.float32), np.arange(4) // 2, **changes)
