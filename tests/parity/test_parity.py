"""The same numbers as the peers, value and gradient. Needs the extra `parity`; skipped without it."""

import jax
import numpy as np
import pytest

import jaxmetric

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pml = pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers  # noqa: E402

pytestmark = pytest.mark.parity

B, C, K, D = 24, 5, 4, 8


def example(seed=0, normalized=True):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(B, D))
    if normalized:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), rng.integers(0, C, B)


def torch_value_and_gradients(loss, embeddings, labels, *parameters):
    embeddings = torch.tensor(embeddings, requires_grad=True)
    value = loss(embeddings, torch.tensor(labels))
    value.backward()
    return value.item(), embeddings.grad.numpy(), *(parameter.grad.numpy() for parameter in parameters)


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_soft_triple(tau):
    embeddings, labels = example()
    sparse = {"weight_regularizer": regularizers.SparseCentersRegularizer(C, K), "weight_reg_weight": tau}
    theirs = losses.SoftTripleLoss(
        num_classes=C, embedding_size=D, centers_per_class=K, la=20, gamma=0.1, margin=0.01, **(sparse if tau else {})
    )
    value, of_embeddings, of_centers = torch_value_and_gradients(theirs, embeddings, labels, theirs.fc)
    centers = theirs.fc.detach().numpy().T.reshape(C, K, D)

    def ours(embeddings, centers):
        return jaxmetric.soft_triple_loss(embeddings, labels, centers, tau=tau)

    # They normalise embeddings inside: their gradient lies in the tangent space of the sphere.
    def projected(gradient):
        return gradient - (gradient * embeddings).sum(1, keepdims=True) * embeddings

    loss, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(embeddings, centers)
    assert_equal((loss, projected(gradients[0]), gradients[1]), (value, of_embeddings, of_centers.T.reshape(C, K, D)))


def test_coinciding_centers_have_a_gradient_here_and_none_there():
    direction = np.random.default_rng(3).normal(size=(C, 1, D)).astype(np.float32)
    centers = np.repeat(direction, K, axis=1)
    assert np.isfinite(jax.grad(jaxmetric.soft_triple_regularizer)(centers)).all()
    weights = torch.tensor(centers.reshape(C * K, D), requires_grad=True)
    regularizers.SparseCentersRegularizer(C, K)(weights).backward()
    assert not weights.grad.isfinite().all()


def test_normalized_softmax():
    embeddings, labels = example()
    theirs = losses.NormalizedSoftmaxLoss(
        num_classes=C,
        embedding_size=D,
        temperature=0.05,
        distance=distances.DotProductSimilarity(normalize_embeddings=False),
    )
    proxies = theirs.W.detach().numpy().T
    # Their distance is the one that normalises the class vectors, too; given ones of length 1, nothing is left to do.
    proxies = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    theirs.W.data = torch.tensor(proxies.T)
    value, of_embeddings = torch_value_and_gradients(theirs, embeddings, labels)

    def ours(embeddings):
        return jaxmetric.normalized_softmax_loss(embeddings, labels, proxies, scale=20.0)

    assert_equal(jax.jit(jax.value_and_grad(ours))(embeddings), (value, of_embeddings))


def torch_squared_euclidean():
    return distances.LpDistance(normalize_embeddings=False, p=2, power=2)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("reduction", "reducer"), [("mean", reducers.MeanReducer), ("mean_active", reducers.AvgNonZeroReducer)]
)
def test_all_triplets(reduction, reducer, normalized):
    embeddings, labels = example(normalized=normalized)
    theirs = losses.TripletMarginLoss(margin=0.2, distance=torch_squared_euclidean(), reducer=reducer())
    ours = jax.value_and_grad(lambda x: jaxmetric.triplet_loss(x, labels, margin=0.2, reduction=reduction))
    assert_equal(jax.jit(ours)(embeddings), torch_value_and_gradients(theirs, embeddings, labels))


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
    miner = miners.TripletMarginMiner(margin, type_of_triplets=type_of_triplets, distance=torch_squared_euclidean())
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
    loss = losses.TripletMarginLoss(margin, distance=torch_squared_euclidean(), reducer=reducers.MeanReducer())
    value = loss(torch.tensor(embeddings), torch.tensor(labels), indices).item()
    np.testing.assert_allclose(jaxmetric.triplet_loss(embeddings, labels, mining=mining), value, rtol=1e-5)


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
        return 8 * jaxmetric.quadruplet_loss(
            embeddings, labels, margin=1.0, agreement="any", self_pairs=True, reduction="sum"
        )

    def theirs(embeddings, labels):
        return published_quadruplet_sum(embeddings, labels, 1.0)

    loss, gradient = jax.jit(jax.value_and_grad(ours))(embeddings)
    value, of_embeddings = torch_value_and_gradients(theirs, embeddings, labels)
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

    ours = jax.jit(jax.value_and_grad(lambda x: jaxmetric.quadruplet_loss(x, labels)))(embeddings)
    assert_equal(ours, torch_value_and_gradients(theirs, embeddings, labels))
