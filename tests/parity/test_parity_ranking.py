"""Ranking losses, histogram, VICReg and manifold loss: the numbers of pytorch-metric-learning, value and gradient."""

import jax
import numpy as np
import pytest

from jaxmetric.losses.proxies import manifold_loss
from jaxmetric.losses.rankings import fast_ap_loss, histogram_loss, pnp_loss, smooth_ap_loss
from jaxmetric.losses.views import vicreg_loss

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
from pytorch_metric_learning import losses  # noqa: E402

pytestmark = pytest.mark.parity

B, D = 16, 8
FOUR_TIMES_FOUR = np.repeat(np.arange(4), 4)
UNEVEN = np.array([0, 0, 1, 2, 1, 2, 0, 3, 3, 2, 0, 1, 2, 2, 3, 0])
WITH_SINGLETONS = np.append(UNEVEN[:-2], [90, 91])


def example(seed=0, normalized=False):
    embeddings = np.random.default_rng(seed).normal(size=(B, D))
    if normalized:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32)


def theirs(call, *arrays):
    """Value and gradients of their loss."""
    arrays = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = call(*arrays)
    value.backward()
    return value.item(), *(array.grad.numpy() for array in arrays)


def ours(call, *arrays):
    value, gradients = jax.jit(jax.value_and_grad(call, argnums=tuple(range(len(arrays)))))(*arrays)
    return value, *gradients


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * max(np.abs(other).max(), 0.1))


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_smooth_ap(temperature):
    embeddings, labels = example(), FOUR_TIMES_FOUR
    loss = losses.SmoothAPLoss(temperature=temperature)
    assert_equal(
        ours(lambda x: smooth_ap_loss(x, labels, temperature=temperature), embeddings),
        theirs(lambda x: loss(x, torch.tensor(labels)), embeddings),
    )


def test_smooth_ap_of_other_batches_is_wrong_there():
    """Theirs takes the number of examples in a class for the number of classes, and the labels to be in order."""
    embeddings, loss = example(), losses.SmoothAPLoss()
    in_order = float(loss(torch.tensor(embeddings), torch.tensor(FOUR_TIMES_FOUR)))
    shuffled = np.random.default_rng(0).permutation(B)
    right = smooth_ap_loss(embeddings[shuffled], FOUR_TIMES_FOUR[shuffled])
    np.testing.assert_allclose(right, in_order, rtol=1e-5)
    wrong = loss(torch.tensor(embeddings[shuffled]), torch.tensor(FOUR_TIMES_FOUR[shuffled]))
    assert abs(float(wrong) - in_order) > 0.01
    eight_pairs = np.repeat(np.arange(8), 2)
    clustered = np.eye(8, dtype=np.float32)[eight_pairs]  # every class in one point: nothing could be ranked better
    np.testing.assert_allclose(smooth_ap_loss(clustered, eight_pairs), 0, atol=1e-6)
    assert float(loss(torch.tensor(clustered), torch.tensor(eight_pairs))) > 0.1
    with pytest.raises(ValueError, match="same number of elements"):
        loss(torch.tensor(embeddings), torch.tensor(UNEVEN))


@pytest.mark.parametrize("variant", ["O", "Ds", "Dq", "Iu", "Ib"])
def test_pnp(variant):
    embeddings, labels = example(), WITH_SINGLETONS
    loss = losses.PNPLoss(variant=variant, alpha=2, b=3, anneal=0.05)
    assert_equal(
        ours(lambda x: pnp_loss(x, labels, variant=variant, alpha=2, b=3, temperature=0.05), embeddings),
        theirs(lambda x: loss(x, torch.tensor(labels)), embeddings),
    )


@pytest.mark.parametrize("num_bins", [10, 7])
def test_fast_ap(num_bins):
    embeddings, labels = example(normalized=True), WITH_SINGLETONS
    loss = losses.FastAPLoss(num_bins=num_bins)
    value, gradient = ours(lambda x: fast_ap_loss(x, labels, num_bins=num_bins), embeddings)
    # They normalize embeddings inside: their gradient lies in the tangent space of the sphere.
    gradient -= (gradient * embeddings).sum(axis=1, keepdims=True) * embeddings
    assert_equal((value, gradient), theirs(lambda x: loss(x, torch.tensor(labels)), embeddings))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("num_bins", [100, 8])
def test_histogram(num_bins):
    embeddings, labels = example(), UNEVEN
    loss = losses.HistogramLoss(n_bins=num_bins)
    assert_equal(
        ours(lambda x: histogram_loss(x, labels, num_bins=num_bins), embeddings),
        theirs(lambda x: loss(x, torch.tensor(labels)), embeddings),
    )


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
def test_histogram_of_duplicates_and_of_singletons():
    """Theirs has no node above similarity 1, and takes negative pairs only of anchors which have a positive."""
    embeddings, loss = example(), losses.HistogramLoss(n_bins=8)
    twins = np.eye(D, dtype=np.float32)[np.arange(B) % 8]
    assert np.isfinite(histogram_loss(twins, np.arange(B) % 8))
    with pytest.raises((RuntimeError, IndexError)):
        loss(torch.tensor(twins), torch.tensor(np.arange(B) % 8))
    labels = WITH_SINGLETONS
    value = loss(torch.tensor(embeddings), torch.tensor(labels)).item()
    between_singletons = np.zeros((B, B), bool)
    between_singletons[-2:, -2:] = True
    np.testing.assert_allclose(
        histogram_loss(embeddings, labels, num_bins=8, pairs=~between_singletons), value, rtol=1e-4
    )
    assert abs(float(histogram_loss(embeddings, labels, num_bins=8)) - value) > 1e-4


def test_vicreg():
    z, other = example(), example(seed=1) * 0.5
    loss = losses.VICRegLoss(invariance_lambda=3, variance_mu=5, covariance_v=2, eps=1e-3)
    hyper = {"invariance": 3, "variance": 5, "covariance": 2, "eps": 1e-3}
    assert_equal(
        ours(lambda z, other: vicreg_loss(z, other, **hyper), z, other),
        theirs(lambda z, other: loss(z, ref_emb=other), z, other),
    )


@pytest.mark.parametrize("context_weight", [0.0, 1.5])
def test_manifold(context_weight):
    embeddings, labels = example(), UNEVEN
    loss = losses.ManifoldLoss(l=D, K=4, lambdaC=context_weight, alpha=0.7, margin=0.01)
    proxies = loss.proxies.detach().numpy()
    hyper = {"context_weight": context_weight, "alpha": 0.7, "margin": 0.01}
    value, of_embeddings = theirs(lambda x: loss(x, indices_tuple=torch.tensor(labels)), embeddings)
    assert_equal(
        ours(lambda x, proxies: manifold_loss(x, labels, proxies, **hyper), embeddings, proxies),
        (value, of_embeddings, loss.proxies.grad.numpy()),
    )
