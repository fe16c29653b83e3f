"""The ranking losses against loops over the papers' definitions, in double precision."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from jaxmetric.losses.rankings import fast_ap_loss, pnp_loss, recall_at_k_loss, smooth_ap_loss
from jaxmetric.references import References

B, D = 12, 3
KS = (1, 2, 5)
TEMPERATURE = 0.1
RANK_TEMPERATURE = 3.0  # wide enough for more than k positives among the first k
PNP = {
    "O": lambda r: r,
    "Ds": lambda r: np.log(1 + r),
    "Dq": lambda r: 1 - 1 / (1 + r) ** 3,
    "Iu": lambda r: (1 + r) * np.log(1 + r),
    "Ib": lambda r: (4 * r - np.log(1 + 4 * r)) / 16,
}
LOSSES = {
    "smooth AP": partial(smooth_ap_loss, temperature=TEMPERATURE),
    **{
        f"PNP-{variant}": partial(pnp_loss, variant=variant, alpha=3.0, b=4.0, temperature=TEMPERATURE)
        for variant in PNP
    },
    "recall at k": partial(recall_at_k_loss, ks=KS, temperature=TEMPERATURE, rank_temperature=RANK_TEMPERATURE),
    "FastAP": partial(fast_ap_loss, num_bins=7),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
every_kind = pytest.mark.parametrize("name", ["smooth AP", "PNP-Dq", "recall at k", "FastAP"])
seeds = st.integers(0, 2**32 - 1)


@partial(jax.jit, static_argnames="name")
def evaluate(embeddings, labels, weights, pairs, name):
    """`((losses of the queries, stats), gradient of the mean)`, one program for each loss."""

    def loss(embeddings, reduction):
        where = weights >= 0
        options = {"weights": weights, "where": where, "pairs": pairs, "reduction": reduction}
        return LOSSES[name](embeddings, labels, **options, has_aux=True)

    return loss(embeddings, "none"), jax.value_and_grad(lambda x: loss(x, "mean")[0])(embeddings)


def losses_stats_gradient(embeddings, labels, name, weights=None, pairs=None):
    weights = np.ones(len(labels)) if weights is None else weights
    pairs = np.ones((len(labels),) * 2, bool) if pairs is None else pairs
    (losses, stats), (loss, gradient) = evaluate(embeddings, labels, weights.astype(np.float32), pairs, name)
    np.testing.assert_allclose(loss, stats.total / stats.valid if stats.valid else 0, rtol=1e-6)
    return losses, stats, gradient


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def before(values, i, others):
    """How many of the others are ranked before i, softly."""
    return sum(sigmoid((values[j] - values[i]) / TEMPERATURE) for j in others if j != i)


def loss_of_query(name, query, values, positives, negatives, weights):
    """The loss of one query, of the similarities (FastAP: distances) to its positives and negatives, lists of rows."""

    def mean(terms, over):
        return np.average(terms, weights=[weights[i] for i in over])

    if name == "FastAP":
        nodes = np.linspace(0, 4, 8)

        def counts(rows):
            pulses = [np.maximum(1 - abs(min(values[j], 4) - nodes) / nodes[1], 0) for j in rows]
            return np.sum(pulses, axis=0) if pulses else np.zeros(8)

        cumulative = np.cumsum(counts(positives) + counts(negatives))
        precision = np.cumsum(counts(positives)) / np.where(cumulative > 0, cumulative, 1)
        return 1 - mean([(counts([i]) * precision).sum() for i in positives], positives)
    if name == "recall at k":
        ranked = positives + negatives
        recalls = []
        for k in KS:
            found = [sigmoid((k - 1 - before(values, i, ranked)) / RANK_TEMPERATURE) for i in positives]
            recalls.append(min(k, len(positives) * mean(found, positives)) / min(k, len(positives)))
        return 1 - np.mean(recalls)
    positives = [*positives, query]
    if name == "smooth AP":
        ranks = [[1 + before(values, i, of) for i in positives] for of in (positives, positives + negatives)]
        return 1 - mean(np.divide(*ranks), positives)
    curve = PNP[name.removeprefix("PNP-")]
    return mean([curve(before(values, i, negatives)) for i in positives], positives)


def brute_force(embeddings, labels, name, weights=None, pairs=None):
    """The weighed loss of each query, and the weight of the queries that have one."""
    x = np.asarray(embeddings, np.float64)
    weights = np.ones(len(labels)) if weights is None else weights
    if name == "FastAP":
        values = ((x[:, None] - x[None]) ** 2).sum(-1)
    else:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        values = x @ x.T
    losses, valid = np.zeros(len(labels)), 0.0
    for a in np.flatnonzero(weights > 0):
        others = [j for j in np.flatnonzero(weights > 0) if j != a and (pairs is None or pairs[a, j])]
        positives = [j for j in others if labels[j] == labels[a]]
        negatives = [j for j in others if labels[j] != labels[a]]
        if positives and (negatives or name != "recall at k"):
            losses[a] = weights[a] * loss_of_query(name, a, values[a], positives, negatives, weights)
            valid += weights[a]
    return losses, valid


def example(seed=0, classes=4):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(B, D)) * rng.uniform(0.3, 1.3, size=(B, 1))
    return embeddings.astype(np.float32), rng.integers(0, classes, B)


@every_loss
@given(seed=seeds, classes=st.sampled_from([1, 2, 4, 20]))
def test_is_the_loss_of_the_paper(name, seed, classes):
    embeddings, labels = example(seed, classes)
    expected, valid = brute_force(embeddings, labels, name)
    losses, stats, _ = losses_stats_gradient(embeddings, labels, name)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(stats[:2], (expected.sum(), valid), rtol=1e-4, atol=2e-6)


@every_kind
@given(seed=seeds)
def test_weights_masks_and_pairs(name, seed):
    embeddings, labels = example(seed)
    rng = np.random.default_rng(seed)
    weights = rng.choice([-1, 0, 0.5, 1, 3], B)  # -1: masked by `where`
    pairs = (rng.random((B, B)) < 0.7) | np.eye(B, dtype=bool)
    expected, valid = brute_force(embeddings, labels, name, weights, pairs)
    embeddings[weights <= 0] = np.nan  # whatever a masked row holds
    losses, stats, gradient = losses_stats_gradient(embeddings, labels, name, weights, pairs)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=5e-6)
    np.testing.assert_allclose(stats.valid, valid, rtol=1e-6)
    np.testing.assert_array_equal(gradient[weights <= 0], 0)
    assert np.isfinite(gradient).all()


@every_kind
@pytest.mark.parametrize("labels", [np.zeros(B, int), np.arange(B)], ids=["one class", "all distinct"])
def test_nothing_to_compare_is_0_without_gradient(name, labels):
    losses, _, gradient = losses_stats_gradient(example()[0], labels, name)
    np.testing.assert_array_equal(losses, 0)
    np.testing.assert_array_equal(gradient, 0)


@every_kind
def test_own_rows_among_the_references_are_the_batch(name):
    """The references hold the batch in another order, and one more of each class."""
    embeddings, labels = example()
    order = np.random.default_rng(1).permutation(B)
    more, more_labels = example(seed=5)[0][:4], np.arange(4)
    everybody, all_labels = np.concatenate([embeddings[order], more]), np.concatenate([labels[order], more_labels])
    references = References(everybody, all_labels, own=np.argsort(order))
    losses = jax.jit(partial(LOSSES[name], reduction="none"))(embeddings, labels, references=references)
    expected = brute_force(np.concatenate([embeddings, more]), np.concatenate([labels, more_labels]), name)[0]
    np.testing.assert_allclose(losses, expected[:B], rtol=1e-4, atol=1e-6)


@every_kind
def test_references_without_the_batch(name):
    embeddings, labels = example()
    references = References(embeddings[4:], labels[4:], where=labels[4:] != 2)
    losses = jax.jit(partial(LOSSES[name], reduction="none"))(embeddings[:4], labels[:4], references=references)
    expected = []
    values = squared_distances_or_cosines(embeddings, name)
    gallery = [j for j in range(4, B) if labels[j] != 2]
    for a in range(4):
        positives, negatives = ([j for j in gallery if (labels[j] == labels[a]) == same] for same in (True, False))
        if not positives:
            expected.append(0)
        elif name in ("FastAP", "recall at k"):
            expected.append(loss_of_query(name, a, values[a], positives, negatives, np.ones(B)))
        else:  # the loop adds the query, which is not there: any positive in its place, and one less in the list
            expected.append(loss_of_query(name, positives[0], values[a], positives[1:], negatives, np.ones(B)))
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)


def squared_distances_or_cosines(embeddings, name):
    x = np.asarray(embeddings, np.float64)
    if name == "FastAP":
        return ((x[:, None] - x[None]) ** 2).sum(-1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def test_smooth_ap_at_low_temperature_is_one_minus_the_average_precision():
    embeddings, labels = example(classes=3)
    options = {"temperature": 1e-5, "pairs": ~np.eye(B, dtype=bool), "reduction": "none"}
    losses = np.asarray(jax.jit(partial(smooth_ap_loss, **options))(embeddings, labels))
    cosines = squared_distances_or_cosines(embeddings, "")
    for a in range(B):
        others = np.arange(B) != a
        expected = average_precision_score(labels[others] == labels[a], cosines[a, others])
        np.testing.assert_allclose(1 - losses[a], expected, rtol=1e-5)


def test_a_query_which_is_an_ordinary_reference_is_one_of_its_positives():
    embeddings, _ = example()
    labels = np.repeat([0, 1, 2], 4)
    references = References(embeddings, labels)
    for loss in map(jax.jit, (smooth_ap_loss, pnp_loss)):
        np.testing.assert_allclose(loss(embeddings, labels, references=references), loss(embeddings, labels), rtol=1e-6)


def test_a_query_masked_among_the_references_is_not_in_its_ranking():
    embeddings, labels = example()[0], np.repeat([0, 1, 2], 4)
    without = References(embeddings, labels, where=np.arange(B) % 4 > 0, own=np.arange(B))
    first_ones_are_others = References(embeddings, labels, where=without.where)
    queries = np.arange(0, B, 4)
    for loss in map(jax.jit, (smooth_ap_loss, pnp_loss)):
        np.testing.assert_allclose(
            loss(embeddings, labels, references=without, where=np.isin(np.arange(B), queries)),
            loss(embeddings[queries], labels[queries], references=first_ones_are_others),
            rtol=1e-6,
        )


def test_fast_ap_takes_larger_distances_for_4():
    distance = np.array([[0, 9.0, 3.9], [9.0, 0, 5.0], [3.9, 5.0, 0]], np.float32)
    labels = np.array([0, 0, 1])
    value_and_grad = jax.jit(jax.value_and_grad(lambda d: fast_ap_loss(None, labels, distance=d)))
    value, gradient = value_and_grad(distance)
    np.testing.assert_allclose(value, value_and_grad(np.minimum(distance, 4))[0], rtol=1e-6)
    np.testing.assert_array_equal(gradient[distance > 4], 0)


@every_kind
def test_memory_is_quadratic_in_the_batch(name):
    shapes = jax.ShapeDtypeStruct((256, 8), np.float32), jax.ShapeDtypeStruct((256,), np.int32)
    compiled = jax.jit(jax.value_and_grad(LOSSES[name])).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 4 * 256**2


@pytest.mark.parametrize(
    ("loss", "changes", "error", "message"),
    [
        (smooth_ap_loss, {"temperature": 0}, ValueError, "temperature is 0, expected a finite number above 0"),
        (pnp_loss, {"variant": "Do"}, ValueError, "variant is 'Do', expected one of O, Ds, Dq, Iu, Ib"),
        (pnp_loss, {"alpha": -1.0}, ValueError, "alpha is -1, expected a finite number above 0"),
        (recall_at_k_loss, {"ks": ()}, ValueError, r"ks is \(\), expected at least one static number"),
        (recall_at_k_loss, {"ks": (1, 0)}, ValueError, "ks has 0, expected static integers of at least 1"),
        (recall_at_k_loss, {"ks": 4}, TypeError, "ks is 4, expected a sequence of static integers"),
        (
            recall_at_k_loss,
            {"rank_temperature": np.ones(2)},
            ValueError,
            r"rank_temperature has shape \(2,\), expected",
        ),
        (fast_ap_loss, {"num_bins": 0}, ValueError, "num_bins is 0, expected a static integer of at least 1"),
        (fast_ap_loss, {"num_bins": 2.5}, TypeError, "num_bins is 2.5, expected a static integer"),
        (
            fast_ap_loss,
            {"labels": np.zeros((B, 2), int)},
            ValueError,
            r"labels has shape \(12, 2\), expected one column",
        ),
    ],
)
def test_bad_input_is_named(loss, changes, error, message):
    embeddings, labels = example()
    with pytest.raises(error, match=message):
        loss(**{"embeddings": embeddings, "labels": labels} | changes)
