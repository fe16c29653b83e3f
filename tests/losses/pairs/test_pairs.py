import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric import References, contrastive_loss, margin_loss, siglip_loss, snr_contrastive_loss

B, D, C = 9, 4, 3


def example(seed=0, columns=2):
    """Embeddings `[B, D]`, labels `[B, T]`, which of them are known, and weights `[B]` with a 0 among them."""
    rng = np.random.default_rng(seed)
    known = rng.random((B, columns)) > 0.2
    weights = rng.choice([0.5, 1, 2], B) * (np.arange(B) != 3)
    return rng.normal(size=(B, D)), rng.integers(0, C, (B, columns)), known, weights


def relu(x):
    return np.maximum(x, 0)


def softplus(x):
    return np.logaddexp(0, x)


def euclidean(x, y):
    return np.sqrt(((x - y) ** 2).sum())


def snr(x, y):
    return (x - y).var() / x.var()


def cosine(x, y):
    return x @ y / np.sqrt((x @ x) * (y @ y))


def share_alike(labels, known, i, j, label_weights):
    """The share of the known labels that agree; None if none is known."""
    both = known[i] & known[j]
    weight = np.asarray(label_weights) * both
    return (weight * (labels[i] == labels[j])).sum() / weight.sum() if both.any() else None


def sums_over_pairs(labels, known, weights, losses_of, label_weights=(1, 1)):
    """Of each anchor the weighted sum; the weight of all pairs; that of the positive terms: by the definition."""
    total, valid, active = np.zeros(len(labels)), 0.0, 0.0
    for i, j in itertools.permutations(range(len(labels)), 2):
        alike = share_alike(labels, known, i, j, label_weights)
        if alike is None:
            continue
        for share, loss in zip((alike, 1 - alike), losses_of(i, j), strict=True):
            weight = weights[i] * weights[j] * share
            total[i] += weight * loss
            valid += weight
            active += weight * (loss > 0)
    return total, valid, active


def assert_stats(loss, expected, *arguments, **options):
    """The sums of each anchor, and the stats of them all."""
    total, valid, active = expected

    @jax.jit
    def evaluate():
        each, stats = loss(*arguments, **options, reduction="none", has_aux=True)
        return each, stats, loss(*arguments, **options)

    each, stats, mean = evaluate()
    np.testing.assert_allclose(each, total, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=2e-5)
    np.testing.assert_allclose(mean, total.sum() / valid, rtol=2e-5)


@pytest.mark.parametrize("pos_margin", [0.0, 0.7])
@pytest.mark.parametrize("power", [1, 2])
def test_contrastive_is_the_sum_over_its_definition(power, pos_margin):
    embeddings, labels, known, weights = example()

    def losses_of(i, j):
        distance = euclidean(embeddings[i], embeddings[j])
        return relu(distance - pos_margin) ** power / power, relu(2.5 - distance) ** power / power

    expected = sums_over_pairs(labels, known, weights, losses_of, (3, 1))
    options = {"pos_margin": pos_margin, "neg_margin": 2.5, "power": power, "label_weights": (3, 1)}
    assert_stats(contrastive_loss, expected, np.float32(embeddings), labels, where=known, weights=weights, **options)


def test_contrastive_takes_other_distances():
    embeddings, labels, known, weights = example()

    def losses_of(i, j):
        distance = 1 - cosine(embeddings[i], embeddings[j])
        return distance**2 / 2, relu(0.5 - distance) ** 2 / 2

    expected = sums_over_pairs(labels, known, weights, losses_of)
    options = {"neg_margin": 0.5, "distance": "cosine", "where": known, "weights": weights}
    assert_stats(contrastive_loss, expected, np.float32(embeddings), labels, **options)


def test_equal_columns_give_the_loss_of_one_column():
    embeddings, labels, *_ = example()
    loss = jax.jit(contrastive_loss)
    np.testing.assert_allclose(loss(embeddings, labels[:, [0, 0]]), loss(embeddings, labels[:, 0]), rtol=1e-6)


def test_a_pair_that_agrees_on_half_of_its_labels_is_half_positive():
    embeddings = jnp.array([[0.0], [0.4]])
    loss = jax.jit(contrastive_loss)(embeddings, jnp.array([[1, 2], [1, 3]]))
    np.testing.assert_allclose(loss, (0.4**2 / 2 + 0.6**2 / 2) / 2, rtol=1e-6)


def test_positives_have_a_gradient_at_distances_near_rounding():
    x = np.float32([[1.0, 0.0], [1.0008, 0.0]])
    gradient = jax.jit(jax.grad(contrastive_loss))(x, np.array([5, 5]))
    # Of the mean over both orders of half the squared distance.
    np.testing.assert_allclose(gradient, [x[0] - x[1], x[1] - x[0]], rtol=1e-3)


def test_coinciding_examples_have_finite_losses_and_no_gradient():
    x = np.ones((3, 2), np.float32)
    loss, gradient = jax.jit(jax.value_and_grad(contrastive_loss))(x, np.array([5, 5, 6]))
    np.testing.assert_allclose(loss, 4 / 6 * 0.5, rtol=1e-6)  # four of the six pairs are different, at distance 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_an_unknown_power_is_named():
    embeddings, labels, *_ = example()
    with pytest.raises(ValueError, match="power is 3, expected 1 or 2"):
        contrastive_loss(embeddings, labels, power=3)
    with pytest.raises(ValueError, match=r"power is .*expected 1 or 2"):
        jax.jit(lambda power: contrastive_loss(embeddings, labels, power=power))(2)


@pytest.mark.parametrize("zero_mean", [0.0, 0.3])
def test_snr_contrastive_is_the_sum_over_its_definition(zero_mean):
    embeddings, labels, known, weights = example()

    def losses_of(i, j):
        distance, mean = snr(embeddings[i], embeddings[j]), zero_mean * abs(embeddings[i].sum())
        return relu(distance - 0.2) + mean, relu(2 - distance) + mean

    expected = sums_over_pairs(labels, known, weights, losses_of)
    options = {"pos_margin": 0.2, "neg_margin": 2.0, "zero_mean": zero_mean, "where": known, "weights": weights}
    assert_stats(snr_contrastive_loss, expected, np.float32(embeddings), labels, **options)


def test_the_mean_of_the_zero_mean_regularizer_is_over_the_anchors():
    embeddings, labels, *_ = example()
    loss = jax.jit(snr_contrastive_loss)
    without, with_it = (loss(embeddings, labels, zero_mean=zero_mean) for zero_mean in (0.0, 0.25))
    np.testing.assert_allclose(with_it - without, 0.25 * np.abs(embeddings.sum(axis=1)).mean(), rtol=1e-5)


def siglip_by_definition(embeddings, gallery, scale, bias):
    """The value for images and their texts, and its derivatives by scale and bias."""
    value = by_scale = by_bias = 0.0
    for i, j in itertools.product(range(B), repeat=2):
        sign, similarity = 1 if i == j else -1, cosine(embeddings[i], gallery[j])
        logit = sign * (scale * similarity + bias)
        value += softplus(-logit) / B
        slope = -sign / (1 + np.exp(logit)) / B
        by_scale, by_bias = by_scale + slope * similarity, by_bias + slope
    return value, by_scale, by_bias


def test_siglip_of_two_modalities_divides_by_the_batch_and_learns_scale_and_bias():
    images, texts = example()[0], example(seed=1)[0]
    references = References(np.float32(texts), np.arange(B))

    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(scale, bias):
        return siglip_loss(np.float32(images), np.arange(B), scale=scale, bias=bias, references=references)

    value, gradients = jax.jit(loss)(3.0, -1.5)
    np.testing.assert_allclose((value, *gradients), siglip_by_definition(images, texts, 3.0, -1.5), rtol=1e-5)


def test_siglip_weighs_anchors_and_references_and_takes_several_labels():
    embeddings, labels, known, weights = example()
    weights = weights * known.any(axis=1)  # an example without a known label is none
    relative = weights / weights[weights > 0].mean()
    alone = np.zeros(B)
    for i, j in itertools.permutations(range(B), 2):
        alike = share_alike(labels, known, i, j, (1, 1))
        if alike is not None:
            logit = 4 * cosine(embeddings[i], embeddings[j]) - 1
            alone[i] += relative[j] * (alike * softplus(-logit) + (1 - alike) * softplus(logit))
    expected = weights * alone, weights.sum(), weights.sum()
    options = {"scale": 4.0, "bias": -1.0, "where": known, "weights": weights}
    assert_stats(siglip_loss, expected, np.float32(embeddings), labels, **options)


def test_siglip_is_accurate_for_small_losses_and_has_the_right_slope_for_large_ones():
    # Two different examples with logits of 50, then of -50.
    @jax.jit
    @jax.value_and_grad
    def value_and_slope(bias):
        return siglip_loss(None, np.array([1, 2]), bias=bias, similarity=np.zeros((2, 2), np.float32))

    np.testing.assert_allclose(value_and_slope(50.0), (50, 1), rtol=1e-6)
    np.testing.assert_allclose(value_and_slope(-50.0), (np.exp(-50), np.exp(-50)), rtol=1e-5)


def margin_by_definition(embeddings, labels, weights, beta, margin, nu):
    """Per anchor sums over the triplets, their pairs, those with a loss, and the derivative by beta of the sum."""
    total, valid, active, slope = np.zeros(len(labels)), 0.0, 0.0, np.zeros(len(beta))
    for a, p, n in itertools.permutations(range(len(labels)), 3):
        if labels[a] != labels[p] or labels[a] == labels[n]:
            continue
        weight, boundary = weights[[a, p, n]].prod(), beta[labels[a]]
        close = relu(margin + euclidean(embeddings[a], embeddings[p]) - boundary)
        apart = relu(margin + boundary - euclidean(embeddings[a], embeddings[n]))
        total[a] += weight * (close + apart + nu * boundary)
        valid += 2 * weight
        active += weight * ((close > 0) + float(apart > 0))
        slope[labels[a]] += weight * (float(apart > 0) - (close > 0) + nu)
    return total, valid, active, slope


@pytest.mark.parametrize("nu", [0.0, 0.3])
def test_margin_loss_is_the_sum_over_triplets(nu):
    embeddings, labels, _, weights = example(columns=1)
    labels, beta = labels[:, 0], np.array([2.0, 2.6, 1.5])
    *expected, slope = margin_by_definition(embeddings, labels, weights, beta, 0.4, nu)
    arguments = np.float32(embeddings), labels, np.float32(beta)
    options = {"margin": 0.4, "nu": nu, "weights": weights}
    assert 0 < expected[2] < expected[1]
    assert_stats(margin_loss, expected, *arguments, **options)
    of_beta = jax.jit(jax.grad(partial(margin_loss, *arguments[:2], **options, reduction="sum")))(arguments[2])
    np.testing.assert_allclose(of_beta, slope, rtol=1e-5)


def test_a_shared_beta_equals_the_same_beta_for_each_class():
    embeddings, labels, *_ = example(columns=1)
    loss = jax.jit(partial(margin_loss, nu=0.1))
    one = loss(embeddings, labels, 2.0)
    np.testing.assert_allclose(loss(embeddings, labels, np.full(C, 2.0)), one, rtol=1e-6)


def test_a_label_without_a_beta_is_an_error_or_nan():
    embeddings, labels, *_ = example(columns=1)
    with pytest.raises(ValueError, match=r"labels span \[0, 2\], expected classes in \[0, 2\) as beta"):
        margin_loss(embeddings, labels, np.ones(2))
    assert np.isnan(jax.jit(margin_loss)(embeddings, labels, np.ones(2)))


def test_the_label_of_a_masked_example_needs_no_beta():
    embeddings, labels, *_ = example(columns=1)
    valid = labels[:, 0] < 2
    expected = jax.jit(margin_loss)(embeddings[valid], labels[valid], np.ones(2))
    masked = margin_loss(embeddings, np.where(valid[:, None], labels, -7), np.ones(2), where=valid)
    np.testing.assert_allclose(masked, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("beta", "error", "message"),
    [
        (np.ones((2, 2)), ValueError, r"beta has shape \(2, 2\), expected a scalar or \[C\]"),
        (np.ones(0), ValueError, r"beta has shape \(0,\), expected a scalar or \[C\]"),
        (np.ones(3, bool), TypeError, "beta has dtype bool, expected floats"),
    ],
)
def test_a_beta_that_does_not_fit_is_named(beta, error, message):
    embeddings, labels, *_ = example(columns=1)
    with pytest.raises(error, match=message):
        margin_loss(embeddings, labels, beta)


def test_a_negative_margin_is_an_error_if_it_is_a_width():
    embeddings, labels, *_ = example(columns=1)
    with pytest.raises(ValueError, match="margin is -1, expected a finite number of at least 0"):
        margin_loss(embeddings, labels, 1.2, margin=-1)


def test_margins_of_similarities_beyond_1_are_negative_margins_of_distances():
    embeddings, labels, *_ = example(columns=1)
    labels = labels[:, 0]
    similarities = np.array([[cosine(x, y) for y in embeddings] for x in embeddings])
    alike, others = labels[:, None] == labels[None], ~np.eye(B, dtype=bool)
    hinges = np.where(alike, relu(1.2 - similarities), relu(similarities + 1.1))[others]
    loss = contrastive_loss(embeddings, labels, distance="cosine", power=1, pos_margin=-0.2, neg_margin=2.1)
    np.testing.assert_allclose(loss, hinges.mean(), rtol=1e-5)


@pytest.mark.parametrize("loss", ["contrastive", "siglip"])
def test_masks_express_relations_that_labels_cannot(loss):
    # 0 is like 1 and 1 like 2, but 0 is not like 2; nothing is said of 3 and 0.
    embeddings = np.random.default_rng(0).normal(size=(4, D)).astype(np.float32)
    positives, negatives = np.zeros((2, 4, 4), bool)
    positives[[0, 1, 1, 2], [1, 0, 2, 1]] = negatives[[0, 2, 1, 3], [2, 0, 3, 1]] = True
    distances = np.array([[euclidean(x, y) for y in embeddings] for x in embeddings])
    cosines = np.array([[cosine(x, y) for y in embeddings] for x in embeddings])
    if loss == "contrastive":
        expected = (distances[positives] ** 2 / 2).sum() + (relu(1 - distances[negatives]) ** 2 / 2).sum()
        ours = contrastive_loss(embeddings, None, pairs=(positives, negatives), reduction="sum")
    else:
        expected = softplus(10 - 10 * cosines[positives]).sum() + softplus(10 * cosines[negatives] - 10).sum()
        ours = siglip_loss(embeddings, None, pairs=(positives, negatives), reduction="sum")
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_shares_in_place_of_masks_weight_both_terms():
    # The Jaccard similarity of label sets: a pair is alike by the share of its labels that both members bear.
    embeddings, sets = example()[0].astype(np.float32), np.random.default_rng(1).random((B, 5)) < 0.5
    shares = (sets[:, None] & sets[None]).sum(-1) / np.maximum((sets[:, None] | sets[None]).sum(-1), 1)
    distances = np.array([[euclidean(x, y) for y in embeddings] for x in embeddings])
    losses = shares * distances**2 / 2 + (1 - shares) * relu(1 - distances) ** 2 / 2
    loss = contrastive_loss(embeddings, None, pairs=(np.float32(shares), np.float32(1 - shares)))
    np.testing.assert_allclose(loss, losses[~np.eye(B, dtype=bool)].mean(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"pairs\[0\] goes beyond \[0, 1\], expected the shares"):
        contrastive_loss(embeddings, None, pairs=(np.float32(2 * shares), np.float32(1 - shares)))
