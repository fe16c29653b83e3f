"""Class-vector losses: the same numbers as pytorch-metric-learning, value and gradients, or how it differs."""

import math

import jax
import numpy as np
import pytest

import jaxmetric

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
from pytorch_metric_learning import distances, losses, regularizers  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]

B, C, K, D = 24, 5, 4, 8


def example(seed=0, normalized=True):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(B, D))
    if normalized:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), rng.integers(0, C, B)


def of_theirs(loss, parameter, embeddings, labels):
    """Value and gradients in the embeddings and the parameter."""
    embeddings = torch.tensor(embeddings, requires_grad=True)
    value = loss(embeddings, torch.tensor(labels))
    value.backward()
    return value.item(), embeddings.grad.numpy(), parameter.grad.numpy()


def of_ours(loss, embeddings, labels, vectors, **options):
    def call(embeddings, vectors):
        return loss(embeddings, labels, vectors, **options)

    value, gradients = jax.jit(jax.value_and_grad(call, argnums=(0, 1)))(embeddings, vectors)
    return value, *gradients


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_soft_triple(tau):
    embeddings, labels = example()
    sparse = {"weight_regularizer": regularizers.SparseCentersRegularizer(C, K), "weight_reg_weight": tau}
    loss = losses.SoftTripleLoss(
        num_classes=C, embedding_size=D, centers_per_class=K, la=20, gamma=0.1, margin=0.01, **(sparse if tau else {})
    )
    value, of_embeddings, of_centers = of_theirs(loss, loss.fc, embeddings, labels)
    centers = loss.fc.detach().numpy().T.reshape(C, K, D)
    ours = of_ours(jaxmetric.soft_triple_loss, embeddings, labels, centers, tau=tau)

    # They normalize embeddings inside: their gradient lies in the tangent space of the sphere.
    tangential = ours[1] - (ours[1] * embeddings).sum(1, keepdims=True) * embeddings
    assert_equal((ours[0], tangential, ours[2]), (value, of_embeddings, of_centers.T.reshape(C, K, D)))


def test_coinciding_centers_have_a_gradient_here_and_none_there():
    direction = np.random.default_rng(3).normal(size=(C, 1, D)).astype(np.float32)
    centers = np.repeat(direction, K, axis=1)
    assert np.isfinite(jax.grad(jaxmetric.soft_triple_regularizer)(centers)).all()
    weights = torch.tensor(centers.reshape(C * K, D), requires_grad=True)
    regularizers.SparseCentersRegularizer(C, K)(weights).backward()
    assert not weights.grad.isfinite().all()


def test_normalized_softmax():
    embeddings, labels = example()
    loss = losses.NormalizedSoftmaxLoss(
        num_classes=C,
        embedding_size=D,
        temperature=0.05,
        distance=distances.DotProductSimilarity(normalize_embeddings=False),
    )
    proxies = loss.W.detach().numpy().T
    # Their distance is the one that normalizes the class vectors, too; given ones of length 1, nothing is left to do.
    proxies = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    loss.W.data = torch.tensor(proxies.T)
    value, of_embeddings, of_proxies = of_theirs(loss, loss.W, embeddings, labels)
    ours = of_ours(jaxmetric.normalized_softmax_loss, embeddings, labels, proxies, scale=20.0)
    # That they do not normalize shows in the gradient: ours is the tangential part of theirs.
    tangential = of_proxies.T - (of_proxies.T * proxies).sum(1, keepdims=True) * proxies
    assert_equal(ours, (value, of_embeddings, tangential))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 1 / 9])
def test_their_proxy_nca_has_the_positive_in_the_denominator(temperature, normalized):
    embeddings, labels = example(normalized=normalized)
    loss = losses.ProxyNCALoss(num_classes=C, embedding_size=D, softmax_scale=1 / temperature)
    theirs = of_theirs(loss, loss.proxies, embeddings, labels)
    proxies = loss.proxies.detach().numpy()
    options = {"temperature": temperature, "positive_in_denominator": True}
    assert_equal(of_ours(jaxmetric.proxy_nca_loss, embeddings, labels, proxies, **options), theirs)


@pytest.mark.parametrize("normalized", [True, False])
def test_proxy_anchor(normalized):
    embeddings, labels = example(normalized=normalized)
    labels = labels % 3  # two classes without examples
    loss = losses.ProxyAnchorLoss(num_classes=C, embedding_size=D, margin=0.1, alpha=32)
    theirs = of_theirs(loss, loss.proxies, embeddings, labels)
    proxies = loss.proxies.detach().numpy()
    assert_equal(of_ours(jaxmetric.proxy_anchor_loss, embeddings, labels, proxies), theirs)


# Theirs takes the margins of ArcFace in degrees.
MARGINS = {
    "arcface": (jaxmetric.arcface_loss, losses.ArcFaceLoss, {"margin": math.radians(28.6)}, {"margin": 28.6}),
    "wide arcface": (jaxmetric.arcface_loss, losses.ArcFaceLoss, {"margin": math.pi / 2}, {"margin": 90.0}),
    "cosface": (jaxmetric.cosface_loss, losses.CosFaceLoss, {"margin": 0.35}, {"margin": 0.35}),
    "sphereface": (jaxmetric.sphereface_loss, losses.SphereFaceLoss, {"margin": 4}, {"margin": 4}),
    "sphereface of 3": (jaxmetric.sphereface_loss, losses.SphereFaceLoss, {"margin": 3}, {"margin": 3}),
    "large-margin softmax": (
        jaxmetric.large_margin_softmax_loss,
        losses.LargeMarginSoftmaxLoss,
        {"margin": 4},
        {"margin": 4},
    ),
}


@pytest.mark.parametrize("name", MARGINS)
def test_margins(name):
    embeddings, labels = example(normalized=False)
    ours, theirs, our_options, their_options = MARGINS[name]
    scale = 1.5 if "margin softmax" in name or "sphere" in name else 64.0
    loss = theirs(num_classes=C, embedding_size=D, scale=scale, **their_options)
    value, of_embeddings, of_proxies = of_theirs(loss, loss.W, embeddings, labels)
    proxies = loss.W.detach().numpy().T
    computed = of_ours(ours, embeddings, labels, proxies, scale=scale, **our_options)
    largest = [1, np.abs(of_embeddings).max(), np.abs(of_proxies).max()]
    for one, other, scale in zip(computed, (value, of_embeddings, of_proxies.T), largest, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * scale)


def test_sub_center_arcface():
    embeddings, labels = example(normalized=False)
    loss = losses.SubCenterArcFaceLoss(num_classes=C, embedding_size=D, sub_centers=K, margin=28.6, scale=64)
    value, of_embeddings, of_centers = of_theirs(loss, loss.W, embeddings, labels)
    centers = loss.W.detach().numpy().T.reshape(C, K, D)
    ours = of_ours(jaxmetric.sub_center_arcface_loss, embeddings, labels, centers, margin=math.radians(28.6))
    for one, other in zip(ours, (value, of_embeddings, of_centers.T.reshape(C, K, D)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("aligned", ["arcface", "sphereface"])
def test_their_gradient_at_an_angle_of_0_is_not_finite(aligned):
    """Their arccos has an infinite slope at 1, which a cosine of exactly 1 meets; sphereface is safe there as here."""
    proxies = np.eye(2, dtype=np.float32)
    ours, theirs, options, _ = MARGINS[aligned]
    assert all(np.isfinite(each).all() for each in of_ours(ours, proxies, np.arange(2), proxies, **options)[1:])
    loss = theirs(num_classes=2, embedding_size=2)
    loss.W.data = torch.tensor(proxies.T.copy())
    gradients = of_theirs(loss, loss.W, proxies, np.arange(2))[1:]
    assert all(np.isfinite(each).all() for each in gradients) == (aligned == "sphereface")


def test_p2sgrad_is_theirs_times_half_the_number_of_classes():
    """They average the squares over examples and classes; half the sum over classes has the gradient of the paper."""
    embeddings, labels = example(normalized=False)
    loss = losses.P2SGradLoss(descriptors_dim=D, num_classes=C)
    value, of_embeddings, of_proxies = of_theirs(loss, loss.weight, embeddings, labels)
    proxies = loss.weight.detach().numpy().T  # of length 1 after their call
    ours = of_ours(jaxmetric.p2sgrad_loss, embeddings, labels, proxies)
    tangential = of_proxies.T - (of_proxies.T * proxies).sum(1, keepdims=True) * proxies
    assert_equal(ours, [C / 2 * each for each in (value, of_embeddings, tangential)])


def test_a_label_of_minus_1_is_silently_skipped_there_and_an_error_here():
    embeddings, labels = example()
    labels[0] = -1
    loss = losses.ProxyNCALoss(num_classes=C, embedding_size=D)
    theirs = of_theirs(loss, loss.proxies, embeddings, labels)
    proxies = loss.proxies.detach().numpy()
    with pytest.raises(ValueError, match=r"labels span \[-1, 4\]"):
        jaxmetric.proxy_nca_loss(embeddings, labels, proxies)
    options = {"positive_in_denominator": True, "where": labels >= 0}
    assert_equal(of_ours(jaxmetric.proxy_nca_loss, embeddings, labels, proxies, **options), theirs)
