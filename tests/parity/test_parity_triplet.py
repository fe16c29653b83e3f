"""Losses over triplets and quadruplets: the same numbers as the peers', value and gradient, or how they differ.

Needs the extra `parity`; skipped without it.
"""

import math

import jax
import numpy as np
import pytest

from jaxmetric import (
    References,
    angular_loss,
    dynamic_soft_margin_loss,
    quadruplet_loss,
    triplet_loss,
)

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

pytestmark = pytest.mark.parity

B, C, D = 24, 5, 8


def example(seed=0, normalized=True):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(B, D))
    if normalized:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), rng.integers(0, C, B)


def torch_value_and_gradient(loss, embeddings, labels, *more):
    embeddings = torch.tensor(embeddings, requires_grad=True)
    value = loss(embeddings, torch.tensor(labels), *more)
    value.backward()
    return value.item(), embeddings.grad.numpy()


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


def torch_euclidean(power=2):
    return distances.LpDistance(normalize_embeddings=False, p=2, power=power)


def on_the_sphere(embeddings, gradient):
    """The part of a gradient that is left where embeddings are normalized first, as the peer does."""
    return gradient - (gradient * embeddings).sum(1, keepdims=True) * embeddings


REDUCTIONS = [("mean", reducers.MeanReducer), ("mean_active", reducers.AvgNonZeroReducer)]


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("reduction", "reducer"), REDUCTIONS)
def test_all_triplets(reduction, reducer, normalized):
    embeddings, labels = example(normalized=normalized)
    theirs = losses.TripletMarginLoss(margin=0.2, distance=torch_euclidean(), reducer=reducer())
    ours = jax.value_and_grad(lambda x: triplet_loss(x, labels, margin=0.2, reduction=reduction))
    assert_equal(jax.jit(ours)(embeddings), torch_value_and_gradient(theirs, embeddings, labels))


@pytest.mark.parametrize("soft_margin", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("distance", "peer"), [("euclidean", torch_euclidean(1)), ("cosine", distances.CosineSimilarity())]
)
def test_soft_margin_swap_and_distances(soft_margin, swap, distance, peer):
    """With a similarity, they take minus it for the distance: the differences are those of 1 minus it."""
    embeddings, labels = example()
    reducer = reducers.MeanReducer()
    theirs = losses.TripletMarginLoss(0.3, swap=swap, smooth_loss=soft_margin, distance=peer, reducer=reducer)

    def ours(embeddings):
        return triplet_loss(embeddings, labels, margin=0.3, soft_margin=soft_margin, swap=swap, distance=distance)

    loss, gradient = jax.jit(jax.value_and_grad(ours))(embeddings)
    assert_equal((loss, gradient), torch_value_and_gradient(theirs, embeddings, labels))


def test_triplets_with_references():
    (queries, labels), (gallery, of_gallery) = example(0), example(1)
    theirs = losses.TripletMarginLoss(0.2, distance=torch_euclidean(), reducer=reducers.MeanReducer())

    def ours(queries):
        return triplet_loss(queries, labels, references=References(gallery, of_gallery))

    more = None, torch.tensor(gallery), torch.tensor(of_gallery)
    expected = torch_value_and_gradient(theirs, queries, labels, *more)
    assert_equal(jax.jit(jax.value_and_grad(ours))(queries), expected)


def chosen_here(embeddings, labels, mining):
    """The triplets (anchor, positive, negative) that `triplet_loss` chooses."""
    squared = ((embeddings[:, None] - embeddings[None]) ** 2).sum(-1)
    same = labels[:, None] == labels[None]
    for a in range(B):
        for p in np.flatnonzero(same[a] & (np.arange(B) != a)):
            negatives = sorted(np.flatnonzero(~same[a]), key=lambda n: squared[a, n])
            if mining == "semi-hard":
                yield a, p, next((n for n in negatives if squared[a, n] > squared[a, p]), negatives[-1])
            elif squared[a, p] == squared[a, same[a]].max():
                yield a, p, negatives[0]


@pytest.mark.parametrize(("mining", "type_of_triplets"), [("semi-hard", "semihard"), ("hard", "hard")])
def test_mined_triplets_are_among_those_of_the_miner(mining, type_of_triplets):
    """Their miner returns every triplet of a kind; ours takes of each kind the hardest, and always one.

    "semihard" there: all negatives farther than the positive by less than the margin. Here: the nearest of them,
    whether within the margin or not, and the farthest negative where none is farther. "hard" there: all negatives
    nearer than the positive. Here: the farthest positive with the nearest negative, even if that is farther.
    """
    margin = 0.2
    embeddings, labels = example()
    miner = miners.TripletMarginMiner(margin, type_of_triplets=type_of_triplets, distance=torch_euclidean())
    mined = miner(torch.tensor(embeddings), torch.tensor(labels))
    theirs = set(zip(*(index.tolist() for index in mined), strict=True))
    ours = set(chosen_here(embeddings, labels, mining))
    squared = ((embeddings[:, None] - embeddings[None]) ** 2).sum(-1)
    for a, p, n in ours - theirs:
        gap = squared[a, n] - squared[a, p]
        assert gap > 0 if mining == "hard" else (gap > margin or gap <= 0)
    assert len(ours & theirs) > len(labels) / 2
    # Their loss on our triplets is our loss.
    indices = tuple(torch.tensor(index) for index in zip(*ours, strict=True))
    loss = losses.TripletMarginLoss(margin, distance=torch_euclidean(), reducer=reducers.MeanReducer())
    value = loss(torch.tensor(embeddings), torch.tensor(labels), indices).item()
    np.testing.assert_allclose(triplet_loss(embeddings, labels, mining=mining), value, rtol=1e-5)


@pytest.mark.parametrize("degrees", [30, 45])
def test_angular(degrees):
    """They take degrees, and normalize anchors and positives but not negatives, so that lengths matter there."""
    embeddings, labels = example()
    theirs = losses.AngularLoss(degrees, reducer=reducers.MeanReducer())

    def ours(embeddings):
        return angular_loss(embeddings, labels, angle=math.radians(degrees))

    loss, gradient = jax.jit(jax.value_and_grad(ours))(embeddings)
    value, of_embeddings = torch_value_and_gradient(theirs, embeddings, labels)
    assert_equal((loss, gradient), (value, on_the_sphere(embeddings, of_embeddings)))
    assert not np.allclose(of_embeddings, on_the_sphere(embeddings, of_embeddings), atol=1e-3)
    doubled = torch_value_and_gradient(theirs, 2 * embeddings, labels)[0]
    assert doubled > 1.1 * value
    np.testing.assert_allclose(angular_loss(2 * embeddings, labels, angle=math.radians(degrees)), loss, rtol=1e-5)


class ConstantHistogram(losses.DynamicSoftMarginLoss):
    """The peer's loss with the weights as constants, as in the paper's own code."""

    def update_histogram(self, data):
        super().update_histogram(data.detach())


def test_dynamic_soft_margin_over_two_batches():
    """They take all triplets, and K bins of which the last is missing: ours are K + 1.

    A difference in the missing bin is an index error there. Their past is a distribution, to which they add the counts
    of a batch: all the past weighs as one triplet. Their weights are differentiated, through the state of past batches
    as well, so that a second batch cannot be.
    """
    theirs, histogram = ConstantHistogram(num_bins=10, momentum=0.3), np.zeros(11, np.float32)
    for seed in (0, 1):
        embeddings, labels = example(seed)
        same = labels[:, None] == labels[None]
        triplets = ((same.sum(1) - 1) * (~same).sum(1)).sum()
        momentum = 0.3 * triplets / (0.3 * triplets + 0.7)
        value, of_embeddings = torch_value_and_gradient(theirs, embeddings, labels)

        def ours(embeddings, histogram, momentum, labels=labels):
            return dynamic_soft_margin_loss(
                embeddings, labels, histogram=histogram, momentum=momentum, mining="all", has_aux=True
            )

        program = jax.jit(jax.value_and_grad(ours, has_aux=True))
        (loss, stats), gradient = program(embeddings, histogram, momentum)
        histogram = stats.histogram
        assert_equal((loss, on_the_sphere(embeddings, gradient)), (value, of_embeddings))
        np.testing.assert_allclose(histogram, [*theirs.hist_, 0], atol=1e-6)

    differentiated = losses.DynamicSoftMarginLoss()
    torch_value_and_gradient(differentiated, *example(0))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch_value_and_gradient(differentiated, *example(1))
    opposite = np.float32([[1, 0], [-1, 0], [1, 0], [-1, 0]])  # d(a, p) - d(a, n) = 2
    assert np.isfinite(dynamic_soft_margin_loss(opposite, np.array([0, 0, 1, 1]), mining="all"))
    with pytest.raises(RuntimeError, match="out of bounds"):
        losses.DynamicSoftMarginLoss()(torch.tensor(opposite), torch.tensor([0, 0, 1, 1]))


def published_quadruplet_sum(embeddings, labels, alpha):
    """The loss of the code published with the paper: all B^4 ordered pairs of ordered pairs, (i, i) included."""
    d = ((embeddings[:, None] - embeddings[None]) ** 2).sum(-1).flatten()
    phi = (labels[:, None] != labels[None]).any(-1).flatten().int()
    sign = phi[None, :] - phi[:, None]
    return (sign.abs() * torch.relu(sign * (d[:, None] - d[None, :]) + alpha)).sum()


def test_quadruplet_loss_as_published():
    embeddings, labels = example(normalized=False)
    labels = np.stack([labels % 2, labels // 3], axis=1)

    def ours(embeddings):
        # Each pair of pairs once, where the published sum has it in 2 x 2 x 2 orders.
        return 8 * quadruplet_loss(embeddings, labels, margin=1.0, agreement="any", self_pairs=True, reduction="sum")

    def theirs(embeddings, labels):
        return published_quadruplet_sum(embeddings, labels, 1.0)

    loss, gradient = jax.jit(jax.value_and_grad(ours))(embeddings)
    value, of_embeddings = torch_value_and_gradient(theirs, embeddings, labels)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(gradient, of_embeddings, rtol=1e-4, atol=1e-5 * np.abs(of_embeddings).max())


def test_quadruplet_loss_over_label_counts():
    embeddings, labels = example(normalized=False)
    labels = np.stack([labels, labels % 2, labels // 3], axis=1)

    def theirs(embeddings, labels):
        first, second = torch.triu_indices(B, B, offset=1)
        d = ((embeddings[first] - embeddings[second]) ** 2).sum(-1)
        phi = (labels[first] != labels[second]).sum(-1)
        ordered = phi[:, None] < phi[None, :]
        return torch.relu(d[:, None] - d[None, :] + 0.1)[ordered].mean()

    ours = jax.jit(jax.value_and_grad(lambda x: quadruplet_loss(x, labels)))(embeddings)
    assert_equal(ours, torch_value_and_gradient(theirs, embeddings, labels))


@pytest.mark.parametrize(("kind", "mining"), [("semihard", "all-semi-hard"), ("hard", "all-hard"), ("all", "all")])
def test_sets_of_triplets_are_those_of_the_triplet_margin_miner(kind, mining):
    embeddings, labels = example()
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets=kind, distance=torch_euclidean())
    loss = losses.TripletMarginLoss(margin=0.2, distance=torch_euclidean())

    def theirs(embeddings, labels):
        return loss(embeddings, labels, miner(embeddings, labels))

    ours = jax.value_and_grad(lambda x: triplet_loss(x, labels, mining=mining, reduction="mean_active"))(embeddings)
    assert_equal(ours, torch_value_and_gradient(theirs, embeddings, labels))


def test_given_triplets_are_those_of_an_indices_tuple():
    embeddings, labels = example()
    rng = np.random.default_rng(1)
    index = np.stack([rng.permutation(B)[:3] for _ in range(40)])
    loss = losses.TripletMarginLoss(margin=0.2, distance=torch_euclidean(), reducer=reducers.MeanReducer())
    theirs = torch_value_and_gradient(loss, embeddings, labels, tuple(torch.tensor(index.T)))
    ours = jax.value_and_grad(lambda x: triplet_loss(x, None, triplets=index))(embeddings)
    assert_equal(ours, theirs)
