"""Losses over pairs: the same numbers as the peer's, value and gradient, and where they differ, how."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxmetric import (
    References,
    contrastive_loss,
    intra_pair_variance_loss,
    margin_loss,
    ranked_list_loss,
    siglip_loss,
    snr_contrastive_loss,
    threshold_consistent_margin_loss,
)

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pml = pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
from pytorch_metric_learning import distances, losses, reducers, regularizers  # noqa: E402

pytestmark = pytest.mark.parity

B, C, D = 24, 5, 8


def example(seed=0):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(B, D)).astype(np.float32)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), rng.integers(0, C, B)


def theirs(loss, embeddings, *arguments):
    """Their value and their gradient."""
    embeddings = torch.tensor(embeddings, requires_grad=True)
    value = loss(embeddings, *(torch.tensor(each) for each in arguments))
    value.backward()
    return value.item(), embeddings.grad.numpy()


def ours(loss, embeddings):
    return jax.jit(jax.value_and_grad(loss))(embeddings)


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


def torch_euclidean(power=1):
    return distances.LpDistance(normalize_embeddings=False, p=2, power=power)


@pytest.mark.parametrize(
    ("reduction", "reducer"), [("mean", reducers.MeanReducer), ("mean_active", reducers.AvgNonZeroReducer)]
)
def test_contrastive(reduction, reducer):
    """Their hinges are linear, and they average positives and negatives apart: here, in two calls."""
    embeddings, labels = example()
    same = labels[:, None] == labels[None]

    def apart(x):
        loss = partial(contrastive_loss, x, labels, pos_margin=0.5, neg_margin=1.3, power=1, reduction=reduction)
        return loss(pairs=same) + loss(pairs=~same)

    loss = losses.ContrastiveLoss(0.5, 1.3, distance=torch_euclidean(), reducer=reducer())
    assert_equal(ours(apart, embeddings), theirs(loss, embeddings, labels))


def test_contrastive_against_references():
    embeddings, labels = example()
    gallery, of_gallery = example(seed=1)
    same = labels[:, None] == of_gallery[None]

    def apart(x):
        references = References(gallery, of_gallery)
        loss = partial(contrastive_loss, x, labels, neg_margin=1.3, power=1, references=references)
        return loss(pairs=same) + loss(pairs=~same)

    peer = losses.ContrastiveLoss(0, 1.3, distance=torch_euclidean(), reducer=reducers.MeanReducer())

    def loss(embeddings, labels):
        return peer(embeddings, labels, ref_emb=torch.tensor(gallery), ref_labels=torch.tensor(of_gallery))

    assert_equal(ours(apart, embeddings), theirs(loss, embeddings, labels))


def test_snr_contrastive():
    embeddings, labels = example()
    same = labels[:, None] == labels[None]

    def apart(x):
        loss = partial(snr_contrastive_loss, x, labels, pos_margin=0.2, neg_margin=1.5)
        regularizer = loss(zero_mean=0.1) - loss()
        return loss(pairs=same) + loss(pairs=~same) + regularizer

    loss = losses.SignalToNoiseRatioContrastiveLoss(
        pos_margin=0.2,
        neg_margin=1.5,
        distance=distances.SNRDistance(normalize_embeddings=False),
        reducer=reducers.MeanReducer(),
        embedding_regularizer=regularizers.ZeroMeanRegularizer(),
        embedding_reg_weight=0.1,
    )
    assert_equal(ours(apart, embeddings), theirs(loss, embeddings, labels))


def test_siglip():
    """They have none: the pseudo-code of the paper, with labels."""
    embeddings, labels = example()
    texts, of_texts = example(seed=1)

    def published(embeddings, labels, texts, of_texts):
        logits = 10 * torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(texts).T - 8
        signs = 2.0 * (labels[:, None] == of_texts[None]) - 1
        return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(embeddings)

    def loss(x):
        return siglip_loss(x, labels, bias=-8.0, references=References(texts, of_texts))

    assert_equal(ours(loss, embeddings), theirs(published, embeddings, labels, texts, of_texts))


@pytest.mark.parametrize("nu", [0.0, 0.2])
@pytest.mark.parametrize("num_classes", [None, C])
def test_margin(num_classes, nu):
    """They divide by the pairs that lose something, but not the regularizer of a beta which all classes share."""
    embeddings, labels = example()
    peer = losses.MarginLoss(
        margin=0.2, nu=nu, beta=1.1, learn_beta=True, num_classes=num_classes, distance=torch_euclidean()
    )
    value, of_embeddings = theirs(peer, embeddings, labels)
    of_beta = peer.beta.grad.numpy()

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(x, beta):
        return margin_loss(x, labels, beta, nu=nu, reduction="mean_active", has_aux=True)

    (mine, stats), gradients = loss(embeddings, np.float32(1.1) if num_classes is None else np.full(C, 1.1, np.float32))
    if num_classes is None:
        per_pair = float(stats.valid / 2 / stats.active)  # of triplets to pairs that lose something
        value, of_beta = value + nu * 1.1 * (per_pair - 1), of_beta[0] + nu * (per_pair - 1)
    assert_equal((mine, *gradients), (value, of_embeddings, of_beta))


def test_intra_pair_variance():
    embeddings, labels = example()
    loss = losses.IntraPairVarianceLoss(pos_eps=0.05, neg_eps=0.02)
    expected = theirs(loss, embeddings, labels)
    assert_equal(ours(lambda x: intra_pair_variance_loss(x, labels, pos_eps=0.05, neg_eps=0.02), embeddings), expected)


def test_threshold_consistent_margin():
    embeddings, labels = example()
    loss = losses.ThresholdConsistentMarginLoss(lambda_plus=0.5, lambda_minus=2.0, margin_plus=0.4, margin_minus=0.1)
    expected = theirs(loss, embeddings, labels)

    def same(x):
        options = {"pos_margin": 0.4, "neg_margin": 0.1, "pos_weight": 0.5, "neg_weight": 2.0}
        return threshold_consistent_margin_loss(x, labels, **options)

    assert_equal(ours(same, embeddings), expected)


def test_threshold_consistent_margin_against_references_is_wrong_there():
    """They take the rows of the references out of the batch."""
    embeddings, labels = example()
    gallery, of_gallery = example(seed=1)
    peer = losses.ThresholdConsistentMarginLoss(margin_plus=0.4, margin_minus=0.1)
    value = peer(*map(torch.tensor, (embeddings, labels)), None, *map(torch.tensor, (gallery, of_gallery))).item()
    loss = partial(threshold_consistent_margin_loss, embeddings, labels, pos_margin=0.4, neg_margin=0.1)
    np.testing.assert_allclose(loss(references=References(embeddings, of_gallery)), value, rtol=1e-5)
    assert abs(float(loss(references=References(gallery, of_gallery))) - value) > 1e-3


def torch_ranked_list(embeddings, labels, *, detached):
    """The formula of the paper with margin 0.4 and T_n = 5, its weights constants or not."""
    distance = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels[None]
    near, far = same & ~torch.eye(B, dtype=bool) & (distance > 0.8), ~same & (distance < 1.2)
    weight = torch.exp(5 * (1.2 - distance)) * far + 1e-30
    weight = weight.detach() if detached else weight
    of_near = ((distance - 0.8) * near).sum(1) / near.sum(1).clamp(min=1)
    return (of_near + ((1.2 - distance) * far * weight).sum(1) / weight.sum(1)).mean() / 2


def test_ranked_list():
    """Their value is ours but for 1e-5 in their denominators. They warn of an overflow from temperatures of 5 on.

    Their gradient goes through the weights of the pairs as well. In the code of the authors the weights only scale
    the gradients of the pairs: they are constants.
    """
    embeddings, labels = example()
    expected = theirs(losses.RankedListLoss(margin=0.4, Tn=5, distance=torch_euclidean()), embeddings, labels)
    mine = ours(lambda x: ranked_list_loss(x, labels, neg_temperature=5.0), embeddings)
    assert_equal(mine, theirs(partial(torch_ranked_list, detached=True), embeddings, labels))
    np.testing.assert_allclose(mine[0], expected[0], rtol=2e-4)
    through_weights = theirs(partial(torch_ranked_list, detached=False), embeddings, labels)
    np.testing.assert_allclose(expected[1], through_weights[1], atol=2e-4)
    assert np.abs(mine[1] - expected[1]).max() > 2e-3


def test_ranked_list_with_weights_that_do_not_depend_on_the_distances():
    embeddings, labels = example()
    expected = theirs(losses.RankedListLoss(margin=0.4, Tn=0, distance=torch_euclidean()), embeddings, labels)
    mine = ours(lambda x: ranked_list_loss(x, labels, neg_temperature=0.0), embeddings)
    for one, other in zip(mine, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
