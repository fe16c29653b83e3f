from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric import triplet_loss
from jaxmetric.distances import pairwise_lp, pairwise_squared_euclidean
from jaxmetric.references import References

MININGS = ("all", "all-semi-hard", "all-hard", "semi-hard", "hard")


@partial(jax.jit, static_argnames="mining")
def evaluate(embeddings, labels, margin, weights, mining):
    """`((loss, stats), gradient)`, in one program for all tests."""

    def loss(embeddings):
        return triplet_loss(
            embeddings, labels, margin=margin, mining=mining, weights=weights, where=weights >= 0, has_aux=True
        )

    return jax.value_and_grad(loss, has_aux=True)(embeddings)


def loss_stats_gradient(embeddings, labels, mining, margin=0.2, weights=None, where=None):
    weights = np.ones(len(labels)) if weights is None else weights
    weights = weights if where is None else np.where(where, weights, -1)
    (loss, stats), gradient = evaluate(embeddings, labels, margin, weights.astype(np.float32), mining)
    return loss, stats, gradient


def squared_distances(embeddings):
    embeddings = np.asarray(embeddings, np.float64)
    return ((embeddings[:, None] - embeddings[None]) ** 2).sum(-1)


def triplets(distances, labels, mining, margin):
    """The triplets (a, p, n) of which the loss is made, by loops over the definition of each mining."""
    everybody = range(len(labels))
    for a in everybody:
        positives = [p for p in everybody if labels[p] == labels[a] and p != a]
        negatives = [n for n in everybody if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            yield from ((a, p, n) for p in positives for n in negatives)
        elif mining == "all-semi-hard":
            gaps = {(a, p, n): distances[a, n] - distances[a, p] for p in positives for n in negatives}
            yield from (triplet for triplet, gap in gaps.items() if 0 < gap <= margin)
        elif mining == "all-hard":
            yield from ((a, p, n) for p in positives for n in negatives if distances[a, n] <= distances[a, p])
        elif mining == "semi-hard":
            for p in positives:
                farther = [n for n in negatives if distances[a, n] > distances[a, p]]
                if farther:
                    yield a, p, min(farther, key=lambda n: distances[a, n])
                else:
                    yield a, p, max(negatives, key=lambda n: distances[a, n])
        else:
            farthest = max(positives, key=lambda p: distances[a, p])
            yield a, farthest, min(negatives, key=lambda n: distances[a, n])


def brute_force(embeddings, labels, mining, margin=0.2, weights=None):
    """Per anchor the weighted sum of the hinges; the weight of all triplets; that of the active ones."""
    weights = np.ones(len(labels)) if weights is None else weights
    kept = np.flatnonzero(weights)
    distances = squared_distances(embeddings[kept])
    total, valid, active = np.zeros(len(labels)), 0.0, 0.0
    for triplet in triplets(distances, labels[kept], mining, margin):
        a, p, n = triplet
        hinge = max(distances[a, p] - distances[a, n] + margin, 0)
        weight = weights[kept[list(triplet)]].prod()
        total[kept[a]] += weight * hinge
        valid += weight
        active += weight * (hinge > 0)
    return total, valid, active


def example(seed=0, batch=12, classes=4, dim=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, dim)).astype(np.float32), rng.integers(0, classes, batch)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([1, 2, 4, 30]), margin=st.sampled_from([-0.5, 0.2, 3.0]))
def test_is_the_mean_over_its_triplets(mining, seed, classes, margin):
    embeddings, labels = example(seed, classes=classes)
    total, valid, active = brute_force(embeddings, labels, mining, margin)
    loss, stats, _ = loss_stats_gradient(embeddings, labels, mining, margin)
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, total.sum() / valid if valid else 0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1), margin=st.sampled_from([0.0, 1.0]))
def test_ties_are_resolved_as_defined(mining, seed, margin):
    # Points of a grid: most distances are equal to others, and exact in float32.
    rng = np.random.default_rng(seed)
    embeddings, labels = rng.integers(0, 3, (12, 2)).astype(np.float32), rng.integers(0, 3, 12)
    total, valid, active = brute_force(embeddings, labels, mining, margin)
    stats = loss_stats_gradient(embeddings, labels, mining, margin)[1]
    assert tuple(map(float, stats)) == (total.sum(), valid, active)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_weight_of_a_triplet_is_the_product_of_its_members_weights(mining, seed):
    embeddings, labels = example(seed)
    weights = np.random.default_rng(seed).choice([0, 0.5, 1, 3], 12)
    total, valid, active = brute_force(embeddings, labels, mining, weights=weights)
    stats = loss_stats_gradient(embeddings, labels, mining, weights=weights)[1]
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
@given(seed=st.integers(0, 2**32 - 1))
def test_masking_equals_deleting(mining, seed):
    embeddings, labels = example(seed)
    where = np.random.default_rng(seed).random(12) < 0.6
    total, valid, active = brute_force(embeddings[where], labels[where], mining)
    embeddings[~where] = np.nan  # whatever a masked row holds
    _, stats, gradient = loss_stats_gradient(embeddings, labels, mining, where=where)
    np.testing.assert_allclose(stats, (total.sum(), valid, active), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gradient[~where], 0)


@pytest.mark.parametrize("mining", MININGS)
def test_unreduced_it_is_the_sum_of_each_anchor(mining):
    embeddings, labels = example()
    labels[3] = 99  # an anchor without positives
    expected = brute_force(embeddings, labels, mining)[0]
    assert expected[3] == 0
    losses = jax.jit(partial(triplet_loss, mining=mining, reduction="none"))(embeddings, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
def test_gradient_is_that_of_the_chosen_triplets(mining):
    embeddings, labels = example()
    x = embeddings.astype(np.float64)
    distances = squared_distances(x)
    expected, count = np.zeros_like(x), 0
    for a, p, n in triplets(distances, labels, mining, 0.2):
        count += 1
        if distances[a, p] - distances[a, n] + 0.2 > 0:
            expected[a] += 2 * (x[a] - x[p]) - 2 * (x[a] - x[n])
            expected[p] += 2 * (x[p] - x[a])
            expected[n] -= 2 * (x[n] - x[a])
    gradient = loss_stats_gradient(embeddings, labels, mining)[2]
    np.testing.assert_allclose(gradient, expected / count, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("labels", [np.zeros(12, int), np.arange(12)], ids=["one class", "all distinct"])
def test_no_triplet_gives_0_and_no_gradient(mining, labels):
    loss, _, gradient = loss_stats_gradient(example()[0], labels, mining)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_too_small_for_a_triplet_give_0(mining, batch):
    embeddings, labels = example(batch=batch)
    loss, _, gradient = loss_stats_gradient(embeddings, labels, mining)
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros((batch, 3)))


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("alone", [False, True], ids=["in a class", "alone in its class"])
def test_a_nan_stays_visible(mining, alone):
    embeddings, labels = example()
    labels[5] = 99 if alone else labels[4]
    embeddings[5, 0] = np.nan
    loss, stats, _ = loss_stats_gradient(embeddings, labels, mining)
    assert np.isnan([loss, stats.total]).all()


@pytest.mark.parametrize("mining", [mining for mining in MININGS if mining != "all-semi-hard"])  # all are hard
def test_the_loss_of_a_collapsed_batch_is_the_margin_without_gradient(mining):
    _, labels = example()
    same = np.tile(np.float32([0.3, -1.7, 0.9]), (12, 1))
    loss, _, gradient = loss_stats_gradient(same, labels, mining, margin=0.25)
    np.testing.assert_allclose(loss, 0.25, rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


def gallery_example(seed=0):
    """Queries, their labels and weights; a gallery, its labels and weights; who of it is whom; and allowed pairs."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.normal(size=(6, 3)), rng.normal(size=(9, 3))
    gallery[2] = queries[1]
    labels, of_gallery = rng.integers(0, 3, 6), rng.integers(0, 3, 9)
    of_gallery[2] = labels[1]
    weights, weights_of_gallery = rng.choice([0, 0.5, 1, 3], 6), rng.choice([0, 0.5, 1, 3], 9)
    own = np.array([-1, 2, -1, -1, -1, -1])
    return queries, labels, weights, gallery, of_gallery, weights_of_gallery, own, rng.random((6, 9)) < 0.8


def brute_force_in_gallery(example, mining, margin, penalty, *, swap):
    """The total, the valid and the active weight of the triplets of queries and gallery, by the definitions."""
    queries, labels, weights, gallery, of_gallery, weights_of_gallery, own, pairs = example
    distances, others = (((x[:, None] - gallery[None]) ** 2).sum(-1) for x in (queries, gallery))
    total = valid = active = 0.0
    for a in range(6):
        allowed = [r for r in range(9) if pairs[a, r] and own[a] != r and weights_of_gallery[r] > 0]
        positives = [r for r in allowed if of_gallery[r] == labels[a]]
        negatives = [r for r in allowed if of_gallery[r] != labels[a]]
        if not positives or not negatives:
            continue
        nearest = min(negatives, key=lambda n: distances[a, n])
        if mining == "all":
            chosen = [(p, n) for p in positives for n in negatives]
        elif mining.startswith("all-"):
            gaps = {(p, n): distances[a, n] - distances[a, p] for p in positives for n in negatives}
            low, high = (0, margin) if mining == "all-semi-hard" else (-np.inf, 0)
            chosen = [pair for pair, gap in gaps.items() if low < gap <= high]
        elif mining == "hard":
            chosen = [(max(positives, key=lambda p: distances[a, p]), nearest)]
        else:
            farther = {p: [n for n in negatives if distances[a, n] > distances[a, p]] for p in positives}
            farthest = max(negatives, key=lambda n: distances[a, n])
            chosen = [(p, min(farther[p], key=lambda n: distances[a, n], default=farthest)) for p in positives]
        for p, n in chosen:
            far = min(distances[a, n], others[p, n]) if swap else distances[a, n]
            loss = penalty(distances[a, p] - far + margin)
            weight = weights[a] * weights_of_gallery[p] * weights_of_gallery[n]
            total, valid, active = total + weight * loss, valid + weight, active + weight * (loss > 0)
    return total, valid, active


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(
    ("soft_margin", "swap"),
    [
        (False, False),
        (True, True),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((False, True), (True, False))),
    ],
)
def test_queries_against_a_gallery_with_soft_margin_and_swap(mining, soft_margin, swap):
    def penalty(x):
        return np.log1p(np.exp(x)) if soft_margin else max(x, 0)

    def loss(queries, labels, weights, gallery, of_gallery, weights_of_gallery, own, pairs):
        references = References(gallery, of_gallery, weights=weights_of_gallery, own=own)
        options = {"mining": mining, "soft_margin": soft_margin, "swap": swap, "references": references}
        return triplet_loss(queries, labels, margin=0.3, weights=weights, pairs=pairs, has_aux=True, **options)

    ours = jax.jit(jax.value_and_grad(loss, argnums=(0, 3), has_aux=True))
    for seed in range(4):
        example = gallery_example(seed)
        with jax.enable_x64(True):
            (value, stats), gradients = jax.tree.map(np.asarray, ours(*example))
        expected = brute_force_in_gallery(example, mining, 0.3, penalty, swap=swap)
        np.testing.assert_allclose(stats, expected, rtol=1e-9, atol=1e-12)
        if not expected[1]:
            assert value == 0
            continue
        np.testing.assert_allclose(value, expected[0] / expected[1], rtol=1e-9)
        for direction in np.random.default_rng(seed).normal(size=(2, 15, 3)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = list(example)
                moved[0], moved[3] = example[0] + step * direction[:6], example[3] + step * direction[6:]
                ends.append(brute_force_in_gallery(moved, mining, 0.3, penalty, swap=swap)[0] / expected[1])
            slope = (gradients[0] * direction[:6]).sum() + (gradients[1] * direction[6:]).sum()
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_distances_by_name_by_function_and_by_array():
    embeddings, labels = example()
    squared, absolute = (np.abs(embeddings[:, None] - embeddings[None]) ** power for power in (2, 1))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for distance, matrix in [
        ("euclidean", np.sqrt(squared.sum(-1))),
        ("cosine", 1 - unit @ unit.T),
        (partial(pairwise_lp, p=1), absolute.sum(-1)),
    ]:
        loss = triplet_loss(embeddings, labels, distance=distance, swap=True)
        np.testing.assert_allclose(loss, triplet_loss(None, labels, distance=matrix, swap=True), rtol=1e-5)


def test_blocks_of_anchors_make_no_difference():
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(700, 2)).astype(np.float32), rng.integers(0, 3, 700)  # 93 anchors a block
    sort = jax.jit(jax.value_and_grad(triplet_loss))(embeddings, labels)
    distances = np.array(pairwise_squared_euclidean(embeddings), np.float64)
    same = labels[:, None] == labels[None]
    differences = [np.subtract.outer(row[near], row[~near]) + 0.2 for row, near in zip(distances, same, strict=True)]
    # An anchor is no positive of its own.
    expected = sum(np.maximum(each, 0).sum() for each in differences)
    expected -= sum(np.maximum(0.2 - row[~near], 0).sum() for row, near in zip(distances, same, strict=True))
    count = sum((near.sum() - 1) * (~near).sum() for near in same)
    np.testing.assert_allclose(sort[0], expected / count, rtol=1e-5)
    assert np.isfinite(sort[1]).all()


def test_all_triplets_need_memory_quadratic_in_the_batch():
    shapes = jax.ShapeDtypeStruct((256, 8), np.float32), jax.ShapeDtypeStruct((256,), np.int32)
    compiled = jax.jit(jax.value_and_grad(triplet_loss)).lower(*shapes).compile()
    # A few dozen [B, B] arrays; to enumerate the triplets takes B of them.
    assert compiled.memory_analysis().temp_size_in_bytes < 32 * 4 * 256**2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"mining": "hardest"},
            ValueError,
            "mining is 'hardest', expected one of all, all-semi-hard, all-hard, semi-hard",
        ),
        ({"reduction": "median"}, ValueError, "reduction is 'median', expected one of"),
        ({"margin": np.inf}, ValueError, "margin is inf, expected a finite number"),
        ({"margin": np.ones(2)}, ValueError, r"margin has shape \(2,\), expected a scalar"),
        ({"embeddings": np.ones((12, 0), np.float32)}, ValueError, r"embeddings has shape \(12, 0\), expected"),
        ({"embeddings": np.ones((12, 3), int)}, TypeError, "embeddings has dtype int"),
        ({"labels": np.zeros((12, 2), int)}, ValueError, r"labels has shape \(12, 2\), expected one column of 12"),
        ({"labels": np.zeros(12, bool)}, TypeError, "labels has dtype bool, expected integers"),
        ({"where": np.ones((12, 2), bool)}, ValueError, r"where has shape \(12, 2\), expected \(12,\)"),
        ({"weights": np.ones(11)}, ValueError, r"weights has shape \(11,\), expected \(12,\)"),
        ({"distance": "manhattan"}, ValueError, "distance is 'manhattan', expected one of squared_euclidean, eucl"),
        (
            {"distance": np.ones((12, 2)), "references": References(np.ones((2, 3)), np.arange(2)), "swap": True},
            ValueError,
            "distance is an array, expected a name or a function: references are compared with each other",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_clear_line(changes, error, message):
    embeddings, labels = example()
    with pytest.raises(error, match=message) as raised:
        triplet_loss(**{"embeddings": embeddings, "labels": labels, **changes})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mining", ["all-semi-hard", "all-hard"])
@pytest.mark.parametrize(
    "options", [{"soft_margin": True}, {"swap": True}, {"soft_margin": True, "swap": True}], ids=str
)
def test_sets_of_triplets_are_selected_by_distances_for_any_penalty(mining, options):
    embeddings, labels = example()
    distances, total, count = squared_distances(embeddings), 0.0, 0
    for a, p, n in triplets(distances, labels, mining, 0.7):
        far = min(distances[a, n], distances[p, n]) if "swap" in options else distances[a, n]
        slack = distances[a, p] - far + 0.7
        total, count = total + (np.logaddexp(0, slack) if "soft_margin" in options else max(slack, 0)), count + 1
    loss, stats = triplet_loss(embeddings, labels, mining=mining, margin=0.7, has_aux=True, **options)
    assert stats.valid == count > 0
    np.testing.assert_allclose(loss, total / count, rtol=1e-5)


def test_the_loss_of_a_small_set_of_triplets_is_accurate_among_many_others():
    # One anchor at 0, one positive at distance 1, 500 negatives far nearer and one semi-hard at 1 + 2^-10.
    values = np.float32([[0, 1, *[2.0**-8] * 500, 1 + 2.0**-10]])
    labels, references = np.array([0]), References(None, np.array([0, 0, *[1] * 501]), own=np.array([0]))
    loss, stats = triplet_loss(
        None, labels, distance=values, references=references, mining="all-semi-hard", margin=2.0**-9, has_aux=True
    )
    assert (loss, stats.valid, stats.active) == (2.0**-10, 1, 1)


def test_sets_of_triplets_need_a_margin_of_at_least_0():
    for mining in ("all-semi-hard", "all-hard"):
        with pytest.raises(ValueError, match=r"margin is -0.1, expected a finite number of at least 0"):
            triplet_loss(*example(), mining=mining, margin=-0.1)


@given(seed=st.integers(0, 2**32 - 1))
def test_only_the_given_triplets_are_used(seed):
    embeddings, _ = example(seed)
    rng = np.random.default_rng(seed)
    index = np.stack([rng.permutation(13)[:3] - 1 for _ in range(7)])
    weights, where = rng.choice([0, 0.5, 2], 12), rng.random(12) < 0.8
    distances = squared_distances(embeddings)
    a, p, n = index.T
    hinges = np.maximum(distances[a, p] - distances[a, n] + 0.2, 0)
    each = np.where((index >= 0).all(1), (weights * where)[index].prod(1), 0)
    embeddings[~where] = np.nan
    losses, stats = given_triplets(embeddings, index, weights, where)
    np.testing.assert_allclose(losses, each * hinges, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats, ((each * hinges).sum(), each.sum(), each[hinges > 0].sum()), rtol=1e-4, atol=1e-5)


@jax.jit
def given_triplets(embeddings, index, weights, where):
    return triplet_loss(embeddings, None, triplets=index, weights=weights, where=where, reduction="none", has_aux=True)


def test_given_triplets_take_every_distance_and_penalty():
    embeddings, _ = example()
    gallery, _ = example(seed=1, batch=9)
    rng = np.random.default_rng(0)
    index = np.stack([[rng.integers(12), *rng.permutation(9)[:2]] for _ in range(20)])
    a, p, n = index.T
    to, between = np.abs(embeddings[:, None] - gallery[None]).sum(-1), np.abs(gallery[:, None] - gallery[None]).sum(-1)
    slack = to[a, p] - np.minimum(to[a, n], between[p, n]) + 0.5
    taxicab = partial(pairwise_lp, p=1)
    loss = triplet_loss(
        embeddings,
        None,
        triplets=index,
        references=References(gallery, None),
        distance=taxicab,
        swap=True,
        soft_margin=True,
        margin=0.5,
    )
    np.testing.assert_allclose(loss, np.logaddexp(0, slack).mean(), rtol=1e-5)
    given = {"triplets": index, "references": References(gallery, None), "margin": 0.5}
    by_matrix = triplet_loss(None, None, distance=to, **given | {"references": References(None, None)})
    np.testing.assert_allclose(by_matrix, np.maximum(to[a, p] - to[a, n] + 0.5, 0).mean(), rtol=1e-5)
    np.testing.assert_allclose(triplet_loss(embeddings, None, distance=taxicab, **given), by_matrix, rtol=1e-5)


def test_three_arrays_are_triplets_of_their_rows():
    anchors, positives, negatives = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    near, far = ((anchors - others) ** 2 for others in (positives, negatives))
    expected = np.maximum(near.sum(1) - far.sum(1) + 0.2, 0).mean()
    stacked, index = np.concatenate([anchors, positives, negatives]), np.arange(15).reshape(3, 5).T
    for triplet_rows in (index, tuple(index.T)):
        np.testing.assert_allclose(triplet_loss(stacked, None, triplets=triplet_rows), expected, rtol=1e-5)


def test_a_triplet_index_out_of_range_is_an_error_or_nan_if_traced():
    embeddings, _ = example()
    index = np.array([[0, 1, 2], [3, 12, 4]])
    with pytest.raises(ValueError, match="triplets has the row 12, expected rows below 12, or -1 for none"):
        triplet_loss(embeddings, None, triplets=index)
    traced = jax.jit(lambda x, index: triplet_loss(x, None, triplets=index))
    assert np.isnan(traced(embeddings, index))
    index[1] = 5, 5, 4  # no triplet
    np.testing.assert_allclose(traced(embeddings, index), triplet_loss(embeddings, None, triplets=index[:1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": np.zeros(12, int)}, ValueError, "labels and triplets are both given, expected one of them"),
        ({"pairs": np.ones((12, 12), bool)}, ValueError, "pairs and triplets are both given"),
        ({"mining": "hard"}, ValueError, "mining is 'hard', expected 'all': triplets lists the triplets"),
        ({"triplets": np.zeros((3, 2), int)}, ValueError, r"triplets has shape \(3, 2\), expected \[N, 3\]"),
        ({"triplets": [[0, 1, 1]]}, ValueError, r"triplets has \[0, 1, 1\], expected three different examples"),
        ({"triplets": [[3, 3, 1]]}, ValueError, r"triplets has \[3, 3, 1\], expected three different examples"),
        ({"triplets": np.zeros((2, 3))}, TypeError, "triplets has dtype float64, expected integers"),
        ({"references": References(np.ones((2, 3)), np.zeros(2, int))}, ValueError, "references.labels and triplets"),
    ],
)
def test_triplets_that_do_not_fit_are_named(options, error, message):
    arguments = {"labels": None, "triplets": np.array([[0, 1, 2]])} | options
    with pytest.raises(error, match=message) as raised:
        triplet_loss(example()[0], **arguments)
    assert "\n" not in str(raised.value)
