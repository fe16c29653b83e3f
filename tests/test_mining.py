from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric import mining
from jaxmetric.references import References

hardest_positives, easiest_positives, hardest_negatives, semi_hard_negatives, multi_similarity, pair_margin = map(
    jax.jit,
    (
        mining.hardest_positives,
        mining.easiest_positives,
        mining.hardest_negatives,
        mining.semi_hard_negatives,
        mining.multi_similarity,
        mining.pair_margin,
    ),
)

KEY = jax.random.key(0)
MINERS = {
    "batch_hard": mining.batch_hard,
    "batch_easy_hard": mining.batch_easy_hard,
    "triplet_margin": mining.triplet_margin,
    "semi_hard": mining.semi_hard,
    "multi_similarity": multi_similarity,
    "pair_margin": pair_margin,
    "hard_aware": mining.hard_aware,
    "distance_weighted": partial(mining.distance_weighted, KEY, dim=8),
    "uniform_histogram": partial(mining.uniform_histogram, KEY),
}
all_miners = pytest.mark.parametrize("miner", [pytest.param(miner, id=name) for name, miner in MINERS.items()])


def example(seed, values):
    """`[A, B]` distances (with many ties if `values` is small) and a mask of some references for each anchor."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, values, (5, 9)).astype(np.float32), rng.random((5, 9)) < rng.choice([0.1, 0.5, 1])


def masked_example(seed, values):
    """`[A, R]` distances and disjoint masks of positives and negatives, either of which may be empty for an anchor."""
    distances, positives = example(seed, values)
    return distances, positives, ~positives & example(seed + 1, 2)[1]


def examples(function):
    return given(seed=st.integers(0, 2**31 - 1), values=st.sampled_from([1, 4, 1000]))(function)


def kept(*pairs):
    mask = np.zeros((5, 9), bool)
    for a, r in pairs:
        mask[a, r] = True
    return mask


def assert_keeps(mask, expected):
    np.testing.assert_array_equal(np.asarray(mask), expected)


def triplets(positives, negatives):
    for a in range(len(positives)):
        yield from product([a], np.flatnonzero(positives[a]), np.flatnonzero(negatives[a]))


def test_label_pairs_of_a_batch():
    labels, where = np.array([3, 3, 5, 3, 8]), np.array([True, True, True, False, True])
    positives, negatives = mining.label_pairs(labels, where=where)
    for a, r in product(range(5), repeat=2):
        compared = where[a] and where[r] and a != r
        assert positives[a, r] == (compared and labels[a] == labels[r])
        assert negatives[a, r] == (compared and labels[a] != labels[r])
    assert_keeps(mining.label_pairs(labels[:, None])[0], mining.label_pairs(labels)[0])


def test_label_pairs_with_references():
    labels, others = np.array([3, 5]), np.array([3, 3, 5, 5, 3])
    references = References(
        None, others, np.array([1, 1, 1, 0, 1], bool), np.array([1.0, 1, 1, 1, 0]), own=np.array([1, -1])
    )
    positives, negatives = mining.label_pairs(labels, references)
    assert positives.astype(int).tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert negatives.astype(int).tolist() == [[0, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
    positives, negatives = mining.label_pairs(labels, References(None, others))
    assert_keeps(positives, labels[:, None] == others)
    assert_keeps(negatives, labels[:, None] != others)


def test_label_pairs_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"labels has shape \(3, 2\), expected one column"):
        mining.label_pairs(np.zeros((3, 2), int))
    with pytest.raises(TypeError, match=r"labels has dtype float32, expected integers"):
        mining.label_pairs(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"references.own has shape \(2,\), expected \(3,\) as labels"):
        mining.label_pairs(np.zeros(3, int), References(None, np.zeros(4, int), own=np.zeros(2, int)))


def chosen(kind, distances, candidates, *, harder, reference=None):
    """The indices of one side that are kept for one anchor; `harder` is 1 where far is hard, -1 where near is."""
    if kind == "all":
        return list(candidates)
    if kind == "semi-hard":
        candidates = [r for r in candidates if harder * distances[r] < harder * reference]
    sign = -1 if kind == "easy" else 1
    return sorted(candidates, key=lambda r: (-sign * harder * distances[r], r))[:1]


EASY_HARD = [
    kinds
    for kinds in product(("easy", "hard", "semi-hard", "all"), repeat=2)
    if kinds not in [("semi-hard", "semi-hard"), ("semi-hard", "all"), ("all", "semi-hard")]
]


@examples
def test_batch_easy_hard_keeps_one_of_each_kind(seed, values):
    distances, positives, negatives = masked_example(seed, values)
    for positive, negative in EASY_HARD[seed % 3 :: 3]:
        expected = kept()
        for a, row in enumerate(distances):
            pos, neg = np.flatnonzero(positives[a]), np.flatnonzero(negatives[a])
            if not (pos.size and neg.size):
                continue
            if positive == "semi-hard":
                neg = chosen(negative, row, neg, harder=-1)
                pos = chosen(positive, row, pos, harder=1, reference=row[neg[0]])
            else:
                pos = chosen(positive, row, pos, harder=1)
                neg = chosen(negative, row, neg, harder=-1, reference=row[pos[0]])
            if len(pos) and len(neg):
                expected[a, pos] = expected[a, neg] = True
        mask = mining.batch_easy_hard(distances, positives, negatives, positive=positive, negative=negative)
        assert_keeps(mask, expected)


def test_batch_hard_keeps_the_farthest_positive_and_the_nearest_negative():
    distances = np.float32([[1, 5, 2, 9, 3], [1, 1, 2, 2, 2], [1, 2, 3, 4, 5]])
    positives = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]], bool)
    negatives = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    mask = mining.batch_hard(distances, positives, negatives)
    assert mask.astype(int).tolist() == [[0, 1, 1, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]


@examples
def test_triplet_margin_keeps_the_pairs_of_the_triplets_of_a_kind(seed, values):
    distances, positives, negatives = masked_example(seed, values)
    margin = 2
    for kind, of_this_kind in {
        "all": lambda gap: gap <= margin,
        "hard": lambda gap: gap <= 0,
        "semi-hard": lambda gap: 0 < gap <= margin,
        "easy": lambda gap: gap > margin,
    }.items():
        expected = kept()
        for a, p, n in triplets(positives, negatives):
            if of_this_kind(distances[a, n] - distances[a, p]):
                expected[a, [p, n]] = True
        assert_keeps(mining.triplet_margin(distances, positives, negatives, margin=margin, kind=kind), expected)
    of_semi_hard = mining.triplet_margin(distances, positives, negatives, margin=margin, kind="semi-hard")
    assert_keeps(mining.semi_hard(distances, positives, negatives, margin=margin), of_semi_hard)


@examples
def test_multi_similarity_keeps_pairs_harder_than_the_hardest_of_the_other_kind(seed, values):
    distances, positives, negatives = masked_example(seed, values)
    epsilon, expected = 1.5, kept()
    for a, p, n in triplets(positives, negatives):
        expected[a, p] |= distances[a, p] + epsilon > distances[a, n]
        expected[a, n] |= distances[a, n] - epsilon < distances[a, p]
    assert_keeps(multi_similarity(distances, positives, negatives, epsilon=epsilon), expected)


@examples
def test_pair_margin_keeps_pairs_on_the_wrong_side(seed, values):
    distances, positives, negatives = masked_example(seed, values)
    expected = (positives & (distances > 1)) | (negatives & (distances < 3))
    assert_keeps(pair_margin(distances, positives, negatives, pos_margin=1, neg_margin=3), expected)


@examples
def test_hard_aware_keeps_the_hardest_share_of_the_batch(seed, values):
    distances, positives, negatives = masked_example(seed, values)
    expected = kept()
    for mask, sign in ((positives, -1), (negatives, 1)):
        pairs = sorted(zip(*np.nonzero(mask), strict=True), key=lambda pair: (sign * distances[pair], pair))
        expected |= kept(*pairs[: -(-len(pairs) // 4)])
    assert_keeps(mining.hard_aware(distances, positives, negatives, share=0.25), expected)


def inverse_density(d, dim):
    """1 / q(d) of Wu et al., section 4."""
    return 1 / (d ** (dim - 2) * (1 - d**2 / 4) ** ((dim - 3) / 2))


@pytest.mark.parametrize(("dim", "tolerance"), [(2, 0.03), (3, 0.03), (8, 0.03)])
def test_distance_weighted_draws_by_the_inverse_density(dim, tolerance):
    distances = np.float32([[0.7, 0.2, 0.6, 0.9, 1.3, 1.5]])
    positives, negatives = np.array([[1, 0, 0, 0, 0, 0]], bool), np.array([[0, 1, 1, 1, 1, 1]], bool)

    def draw(key):
        return mining.distance_weighted(key, distances, positives, negatives, dim=dim)[0]

    masks = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 4000)))
    assert (masks[:, 1:].sum(1) == 1).all()
    weights = inverse_density(np.maximum(distances[0, 1:], 0.5).astype(float), dim) * [1, 1, 1, 1, 0]
    np.testing.assert_allclose(masks[:, 1:].mean(0), weights / weights.sum(), atol=tolerance)


@pytest.mark.parametrize("dim", [1, 128, 4096])
def test_distance_weighted_draws_as_many_negatives_as_there_are_positives(dim):
    rng = np.random.default_rng(0)
    distances = rng.uniform(0, 2, (30, 40)).astype(np.float32)
    distances[0] = 2
    positives = rng.random(distances.shape) < np.linspace(0, 0.9, 30)[:, None]
    near = ~positives & (distances < 1.4)
    mask = np.asarray(mining.distance_weighted(KEY, distances, positives, ~positives, dim=dim))
    count = np.minimum(positives.sum(1), near.sum(1))
    np.testing.assert_array_equal((mask & ~positives).sum(1), count)
    assert not (mask & ~positives & ~near).any()
    np.testing.assert_array_equal(mask & positives, positives & (count > 0)[:, None])


def test_distance_weighted_prefers_near_negatives_in_high_dimensions_without_underflow():
    distances = np.float32([[1, 1.39, 1.30], [1, 0.51, 1.39]])
    positives = np.array([[1, 0, 0], [1, 0, 0]], bool)
    mask = mining.distance_weighted(KEY, distances, positives, ~positives, dim=2048)
    assert mask.tolist() == [[True, False, True], [True, True, False]]


def test_uniform_histogram_draws_equally_from_every_bin():
    rng = np.random.default_rng(0)
    distances = rng.normal(size=(40, 50)).astype(np.float32)
    positives = rng.random(distances.shape) < 0.3
    negatives = ~positives & (rng.random(distances.shape) < 0.9)
    mask = np.asarray(
        mining.uniform_histogram(KEY, distances, positives, negatives, num_bins=12, pos_per_bin=5, neg_per_bin=20)
    )
    assert not (mask & ~positives & ~negatives).any()
    for side, per_bin in ((positives, 5), (negatives, 20)):
        counts, edges = np.histogram(distances[side].astype(float), bins=12)
        drawn, _ = np.histogram(distances[side & mask].astype(float), bins=edges)
        np.testing.assert_array_equal(drawn, np.minimum(counts, per_bin))


def test_uniform_histogram_draws_without_preference_within_a_bin():
    distances = np.tile(np.linspace(0, 1, 10, dtype=np.float32), (1, 1))
    none = np.zeros(distances.shape, bool)

    def draw(key):
        return mining.uniform_histogram(key, distances, none, ~none, num_bins=1, neg_per_bin=3)[0]

    masks = jax.vmap(draw)(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(masks.mean(0), 0.3, atol=0.03)


def angle(a, p, n):
    """In degrees, as in section 3 of Wang et al."""
    return np.degrees(np.arctan(np.linalg.norm(a - p) / (2 * np.linalg.norm(n - (a + p) / 2))))


@pytest.mark.parametrize("threshold", [20.0, 40.0, 60.0])
def test_angular_keeps_the_pairs_of_triplets_with_a_large_angle(threshold):
    rng = np.random.default_rng(0)
    embeddings, others = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    labels, other_labels = rng.integers(0, 3, 5), rng.integers(0, 3, 9)
    references = References(others, other_labels)
    positives, negatives = map(np.asarray, mining.label_pairs(labels, references))
    expected = kept()
    for a, p, n in triplets(positives, negatives):
        if angle(embeddings[a], others[p], others[n]) > threshold:
            expected[a, [p, n]] = True
    assert expected.any()
    assert (expected != positives | negatives).any()
    assert_keeps(
        mining.angular(embeddings, positives, negatives, angle=np.radians(threshold), references=references), expected
    )


def test_angular_of_a_batch_with_coinciding_points():
    points = np.float32([[0, 0], [0, 0], [0, 0], [1, 0], [5, 0]])
    labels = np.array([0, 0, 1, 0, 1])
    positives, negatives = mining.label_pairs(labels)
    mask = mining.angular(points, positives, negatives)
    # (0, 3, 2): arctan(1 / (2 * 0.5)) = 45 degrees; (0, 1, 2) has no angle; (0, 3, 4): arctan(1 / 9) = 6 degrees.
    assert mask[0].tolist() == [False, False, True, True, False]


def test_angular_needs_no_array_of_triplets():
    count = 256
    arguments = jnp.ones((count, 16)), jnp.ones((count, count), bool), jnp.ones((count, count), bool)
    compiled = jax.jit(mining.angular).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 8 * count**2  # one of bytes would take 16.8 MB


def test_angular_keeps_pairs_at_a_distance_of_nan_and_is_not_differentiated():
    points, labels = np.float32([[0, 0], [np.nan, 0], [0, 9], [9, 0]]), np.array([0, 0, 1, 1])
    mask = mining.angular(points, *mining.label_pairs(labels))
    assert mask.astype(int).tolist() == [[0, 1, 0, 0], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    gradient = jax.grad(lambda x: jnp.where(mining.angular(x, *mining.label_pairs(labels)), 1.0, 0.0).sum())(points)
    np.testing.assert_array_equal(gradient, 0)


@all_miners
def test_pairs_at_a_distance_of_nan_are_kept_if_they_are_positives_or_negatives(miner):
    distances = np.full((5, 9), 0.5, np.float32)
    positives, negatives = kept((0, 1), (0, 2), (1, 1), (2, 3)), kept((0, 3), (0, 4), (1, 2), (3, 4))
    distances[0, [1, 3, 5]] = distances[2, 3] = distances[3, 4] = np.nan
    mask = np.asarray(miner(distances, positives, negatives))
    at_nan = np.isnan(distances)
    assert_keeps(mask & at_nan, (positives | negatives) & at_nan)


def test_a_negative_at_a_distance_of_nan_makes_no_easy_triplet():
    distances = np.float32([[1, np.nan, 2, 9]])
    positives, negatives = np.array([[1, 0, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    mask = mining.triplet_margin(distances, positives, negatives, margin=5, kind="easy")
    assert mask.tolist() == [[False, True, False, False]]


@all_miners
def test_without_positives_or_negatives_only_candidates_are_kept(miner):
    distances, positives, negatives = masked_example(1, 1000)
    distances /= 1000
    nothing = np.zeros_like(positives)
    assert not miner(distances, nothing, nothing).any()
    for pos, neg in ((positives, nothing), (nothing, negatives), (positives, negatives)):
        mask = np.asarray(miner(distances, pos, neg))
        assert not (mask & ~(pos | neg)).any()
    assert miner(distances[:0], nothing[:0], nothing[:0]).shape == (0, 9)


@pytest.mark.parametrize("name", sorted(set(MINERS) - {"pair_margin", "hard_aware", "uniform_histogram"}))
def test_triplet_miners_keep_no_anchor_that_lacks_positives_or_negatives(name):
    distances, positives, negatives = masked_example(1, 1000)
    mask = MINERS[name](distances / 1000, positives, negatives)
    assert not mask[~(positives.any(1) & negatives.any(1))].any()


@all_miners
def test_nothing_is_differentiated(miner):
    _, positives, negatives = masked_example(1, 4)
    distances = jnp.full((5, 9), 0.5)
    gradient = jax.grad(lambda d: jnp.sum(jnp.where(miner(d, positives, negatives), 2.0, 1.0)))(distances)
    np.testing.assert_array_equal(gradient, 0)


@all_miners
def test_results_are_the_same_traced_batched_and_in_half_precision(miner):
    distances, positives, negatives = masked_example(3, 4)
    distances /= 4
    expected = miner(distances, positives, negatives)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        batched = jax.jit(jax.vmap(miner))(*(jnp.stack([each, each]) for each in (distances, positives, negatives)))
    assert_keeps(batched, np.stack([expected, expected]))
    assert_keeps(miner(jnp.asarray(distances, jnp.bfloat16), positives, negatives), expected)


@all_miners
def test_shapes_and_dtypes_which_do_not_fit_are_named(miner):
    distances, positives, negatives = masked_example(1, 4)
    with pytest.raises(ValueError, match=r"distances has shape \(9,\), expected \[A, R\]"):
        miner(distances[0], positives, negatives)
    with pytest.raises(ValueError, match=r"negatives has shape \(5, 8\), expected \(5, 9\) as distances"):
        miner(distances, positives, negatives[:, 1:])
    with pytest.raises(TypeError, match="positives has dtype float32, expected bool"):
        miner(distances, positives.astype(np.float32), negatives)


@pytest.mark.parametrize(
    ("miner", "arguments", "message"),
    [
        (mining.batch_easy_hard, {"positive": "far"}, "positive is 'far', expected one of easy, hard, semi-hard, all"),
        (
            mining.batch_easy_hard,
            {"positive": "semi-hard"},
            "negative is 'semi-hard', expected 'easy' or 'hard' with positive 'semi-hard'",
        ),
        (
            mining.batch_easy_hard,
            {"positive": "all"},
            "negative is 'semi-hard', expected 'easy' or 'hard' or 'all' with positive 'all'",
        ),
        (mining.triplet_margin, {"kind": "semi"}, "kind is 'semi', expected one of all, hard, semi-hard, easy"),
        (mining.semi_hard, {"margin": -1}, "margin is -1, expected a finite number of at least 0"),
        (mining.multi_similarity, {"epsilon": np.inf}, "epsilon is inf, expected a finite number"),
        (mining.hard_aware, {"share": 2}, "share is 2, expected a finite number of at least 0 and of at most 1"),
        (MINERS["distance_weighted"], {"cutoff": 2}, "cutoff is 2, expected a finite number above 0 and below 2"),
        (MINERS["uniform_histogram"], {"num_bins": 0}, "num_bins is 0, expected a static integer of at least 1"),
    ],
)
def test_hyper_parameters_out_of_range_are_named(miner, arguments, message):
    with pytest.raises(ValueError) as error:
        miner(*masked_example(1, 4), **arguments)
    assert str(error.value) == message


def test_an_angle_out_of_range_is_named():
    with pytest.raises(ValueError, match="angle is 2, expected radians above 0 and below 1"):
        mining.angular(np.ones((2, 3)), np.ones((2, 2), bool), np.ones((2, 2), bool), angle=2)


@examples
def test_hardest_positive_is_the_farthest_and_the_first_among_equals(seed, values):
    distances, mask = example(seed, values)
    for distance, positive, index in zip(distances, mask, hardest_positives(distances, mask), strict=True):
        expected = min(np.flatnonzero(positive), key=lambda j: (-distance[j], j), default=0)
        assert index == expected


@pytest.mark.parametrize("function", [hardest_negatives, easiest_positives])
@examples
def test_hardest_negative_and_easiest_positive_are_the_nearest_and_the_first_among_equals(function, seed, values):
    distances, mask = example(seed, values)
    for distance, candidate, index in zip(distances, mask, function(distances, mask), strict=True):
        expected = min(np.flatnonzero(candidate), key=lambda j: (distance[j], j), default=0)
        assert index == expected


@examples
def test_semi_hard_negative_is_the_nearest_that_is_farther_else_the_farthest(seed, values):
    distances, mask = example(seed, values)
    chosen = np.asarray(semi_hard_negatives(distances, mask))
    assert chosen.shape == distances.shape
    for distance, negative, indices in zip(distances, mask, chosen, strict=True):
        for reference, index in zip(distance, indices, strict=True):
            candidates = np.flatnonzero(negative)
            if candidates.size == 0:
                continue
            assert negative[index]
            farther = [distance[n] for n in candidates if distance[n] > reference]
            assert distance[index] == (min(farther) if farther else distance[candidates].max())


@pytest.mark.parametrize("function", [hardest_positives, easiest_positives, hardest_negatives])
def test_a_nan_distance_is_selected_so_that_it_stays_visible(function):
    distances = np.float32([[1, np.nan, 3, 0]])
    assert function(distances, np.ones((1, 4), bool)).tolist() == [1]
    assert function(distances, np.array([[True, False, False, False]])).tolist() == [0]
