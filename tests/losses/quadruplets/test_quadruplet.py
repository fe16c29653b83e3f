import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from jaxmetric import quadruplet_hinge, quadruplet_loss, sampled_quadruplet_loss

BATCH, DIM = 8, 3


@functools.cache
def compiled(**options):
    """(loss, stats), gradient of `quadruplet_loss` with static options; masks, weights and margin are arguments."""

    def loss(embeddings, labels, where, weights, margin):
        return quadruplet_loss(embeddings, labels, where=where, weights=weights, margin=margin, has_aux=True, **options)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def evaluate(embeddings, labels, *, where=None, weights=None, margin=0.1, **options):
    where = np.ones(labels.shape, bool) if where is None else where
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    weights = np.asarray(weights, np.float32)
    (loss, stats), gradient = compiled(**options)(np.float32(embeddings), labels, where, weights, margin)
    return float(loss), tuple(map(float, stats)), np.asarray(gradient)


def phi_bounds(labels, where, i, j, label_weights, ordinal):
    """The smallest and the largest disagreement of i and j that their missing labels leave open."""
    least = most = 0
    for t in range(labels.shape[1]):
        largest = ordinal[t] or 1
        if where[i, t] and where[j, t]:
            difference = abs(int(labels[i, t]) - int(labels[j, t]))
            difference = min(difference, largest)
            least, most = least + label_weights[t] * difference, most + label_weights[t] * difference
        else:
            most += label_weights[t] * largest
    return round(least, 6), round(most, 6)  # 0.1 + 0.2 is as much as 0.3


def brute_force(
    embeddings,
    labels,
    *,
    margin=0.1,
    agreement="count",
    self_pairs=False,
    balance="quadruplets",
    label_weights=None,
    ordinal=None,
    where=None,
    weights=None,
    reduction="mean",
):
    """Loss, (total, valid, active) and gradient, enumerating every quadruplet of the definition in float64."""
    embeddings = np.asarray(embeddings, np.float64)
    batch, columns = labels.shape
    where = np.ones(labels.shape, bool) if where is None else where
    weights = np.ones(batch) if weights is None else np.asarray(weights, float)
    label_weights, ordinal = label_weights or (1,) * columns, ordinal or (0,) * columns

    pairs = []  # i, j, weight, least and largest phi
    for i, j in itertools.combinations([n for n in range(batch) if where[n].any()], 2):
        least, most = phi_bounds(labels, where, i, j, label_weights, ordinal)
        if agreement == "any":
            least, most = min(least, 1), min(most, 1)
        pairs.append((i, j, weights[i] * weights[j], least, most))
    if self_pairs:
        pairs += [(i, i, weights[i] ** 2 / 2, 0, 0) for i in range(batch) if where[i].any()]

    quadruplets = []  # near pair, far pair, weight, group of levels
    for (i, j, near_weight, _, near_phi), (p, q, far_weight, far_phi, _) in itertools.product(pairs, pairs):
        if near_phi < far_phi and near_weight * far_weight > 0:
            quadruplets.append((i, j, p, q, near_weight * far_weight, (near_phi, far_phi)))
    if balance == "levels":
        group_weight = {group: 0.0 for *_, group in quadruplets}
        for *_, weight, group in quadruplets:
            group_weight[group] += weight
        quadruplets = [(*q[:4], q[4] / group_weight[q[5]], None) for q in quadruplets]

    total = valid = active = 0.0
    gradient = np.zeros_like(embeddings)
    for i, j, p, q, weight, _ in quadruplets:
        near, far = embeddings[i] - embeddings[j], embeddings[p] - embeddings[q]
        hinge = near @ near - far @ far + margin
        valid += weight
        if hinge > 0:
            total, active = total + weight * hinge, active + weight
            for n, direction in ((i, near), (j, -near), (p, -far), (q, far)):
                gradient[n] += 2 * weight * direction
    divisor = {"mean": valid, "mean_active": active, "sum": 1}[reduction] or 1
    return total / divisor, (total, valid, active), gradient / divisor


def check(embeddings, labels, **kwargs):
    result, expected = evaluate(embeddings, labels, **kwargs), brute_force(embeddings, labels, **kwargs)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result[2], expected[2], rtol=1e-4, atol=1e-5 * max(1, np.abs(expected[2]).max()))


def random_batch(seed, columns=3, values=3, *, tied=False, missing=0.0):
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(0, 3, (BATCH, DIM)) if tied else rng.normal(size=(BATCH, DIM))
    labels = rng.integers(0, values, (BATCH, columns)).astype(np.int32)
    return embeddings.astype(np.float32), labels, rng.random(labels.shape) >= missing


@pytest.mark.parametrize("columns", [1, 3, 6, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 4, 5))])
def test_equals_all_quadruplets(columns):
    for seed in range(3):
        embeddings, labels, where = random_batch(seed, columns, tied=seed == 1, missing=0.3 * (seed == 2))
        check(embeddings, labels, where=where, margin=0.125)


@given(seed=st.integers(0, 2**32 - 1), tied=st.booleans(), missing=st.sampled_from([0, 0.2, 0.6]))
def test_equals_all_quadruplets_with_ties_weights_and_missing_labels(seed, tied, missing):
    embeddings, labels, where = random_batch(seed, tied=tied, missing=missing)
    weights = np.random.default_rng(seed).choice([0, 0.5, 1, 2], BATCH)
    check(embeddings, labels, where=where, weights=weights, margin=0.125)


@pytest.mark.parametrize(
    "options",
    [
        {"agreement": "any"},
        {"self_pairs": True},
        {"self_pairs": True, "agreement": "any", "margin": 1.0},
        {"balance": "levels"},
        {"balance": "levels", "self_pairs": True, "reduction": "mean_active"},
        {"reduction": "mean_active"},
        {"margin": 0.0},
        {"margin": -1.0},
        {"label_weights": (4, 2, 1)},
        {"label_weights": (0.3, 0.2, 0.1)},
        {"ordinal": (None, 2, 0), "reduction": "sum"},
        {"ordinal": (0, 2, 1), "label_weights": (1.5, 1, 0.25), "balance": "levels"},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_every_option_equals_all_quadruplets(options):
    for seed in range(3):
        embeddings, labels, where = random_batch(seed, tied=seed == 1, missing=0.2 * (seed == 2))
        weights = np.random.default_rng(seed).choice([0.5, 1, 2], BATCH) if seed else None
        check(embeddings, labels, where=where, weights=weights, **options)


def test_one_quadruplet_spelled_out():
    # phi(0, 1) = 0 < phi(0, 2) = phi(1, 2) = 1; distances 4, 9, 1: relu(4 - 9 + .5) + relu(4 - 1 + .5) = 3.5
    embeddings, labels = np.zeros((BATCH, DIM)), np.zeros((BATCH, 3), np.int32)
    embeddings[:3, 0], labels[:3, 0] = (0, 2, 3), (5, 5, 8)
    where = np.repeat([True, False], [3, BATCH - 3])
    assert evaluate(embeddings, labels, where=where, margin=0.5)[:2] == (1.75, (3.5, 2, 1))
    assert evaluate(embeddings, labels, where=where, margin=0.5, reduction="mean_active")[0] == 3.5


def test_masking_equals_deleting():
    for seed in range(3):
        embeddings, labels, _ = random_batch(seed)
        keep = np.random.default_rng(seed).random(BATCH) < 0.6
        where = np.repeat(keep[:, None], 3, axis=1)
        loss, stats, gradient = evaluate(embeddings, labels, where=where, margin=0.125)
        expected = brute_force(embeddings[keep], labels[keep], margin=0.125)
        np.testing.assert_allclose([loss, *stats], [expected[0], *expected[1]], rtol=1e-5)
        np.testing.assert_allclose(gradient[keep], expected[2], rtol=1e-4, atol=1e-5)
        assert not gradient[~keep].any()
        by_example = evaluate(embeddings, labels, where=keep, margin=0.125)
        np.testing.assert_allclose([by_example[0], *by_example[1]], [loss, *stats], rtol=1e-6)
        by_weight = evaluate(embeddings, labels, weights=keep, margin=0.125)
        np.testing.assert_allclose([by_weight[0], *by_weight[1]], [loss, *stats], rtol=1e-6)


def test_a_pair_with_a_missing_label_is_compared_only_where_its_value_cannot_matter():
    # Four examples and two labels, of which one is unknown (the third column is equal everywhere).
    embeddings, labels, where = np.zeros((BATCH, DIM)), np.zeros((BATCH, 3), np.int32), np.ones((BATCH, 3), bool)
    embeddings[:4, 0] = 0, 3, 1, 2
    labels[:4, :2] = [[1, 1], [1, 1], [2, 2], [1, 9]]
    where[3, 1] = where[4:] = False
    # phi: (0,1) 0; (0,2), (1,2) 2; (0,3), (1,3) in [0, 1]; (2,3) in [1, 2]. Distances 9; 1, 4; 4, 1; 1.
    # (0,1) < (0,2): 8, < (1,2): 5, < (2,3): 8; (0,3) < (0,2): 3, < (1,2): 0; (1,3) < (0,2): 0, < (1,2): 0.
    assert evaluate(embeddings, labels, where=where, margin=0.0)[1] == (24, 7, 4)


def test_weights_multiply_along_pairs_and_quadruplets():
    # Not the same as repeating examples: copies would form pairs with each other.
    embeddings, labels, _ = random_batch(0)
    one, doubled = np.ones(BATCH), np.ones(BATCH)
    doubled[0] = 2
    sums = [brute_force(embeddings, labels, weights=w, margin=0.125)[1] for w in (one, doubled)]
    results = [evaluate(embeddings, labels, weights=w, margin=0.125)[1] for w in (one, doubled)]
    np.testing.assert_allclose(results, sums, rtol=1e-5)
    # All weights times c: every quadruplet, a product of four, times c^4, and the mean unchanged.
    loss, stats, _ = evaluate(embeddings, labels, margin=0.125)
    scaled_loss, scaled_stats, _ = evaluate(embeddings, labels, weights=3 * one, margin=0.125)
    np.testing.assert_allclose(scaled_stats, 81 * np.array(stats), rtol=1e-6)
    np.testing.assert_allclose(scaled_loss, loss, rtol=1e-6)


def test_no_gradient_flows_into_the_weights():
    embeddings, labels, _ = random_batch(0)
    gradient = jax.jit(jax.grad(lambda w: quadruplet_loss(embeddings, labels, weights=w, balance="levels")))
    assert not gradient(jnp.linspace(0.5, 2, BATCH)).any()


def published_loss(embeddings, labels, margin):
    """The sum and the number of terms of the code published with the paper.

    It takes every ordered pair (i, j), i = j included, with every other one, and knows only whether all labels agree.
    """
    embeddings = np.asarray(embeddings, np.float64)
    batch = len(embeddings)
    disagrees = (labels[:, None] != labels[None]).any(-1).astype(int).reshape(batch**2)
    distances = np.square(embeddings[:, None] - embeddings[None]).sum(-1).reshape(batch**2)
    sign = np.sign(np.subtract.outer(disagrees, disagrees).T)
    terms = np.maximum(sign * np.subtract.outer(distances, distances) + margin, 0)
    return terms[sign != 0].sum(), np.count_nonzero(sign)


@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_the_published_code_is_agreement_any_with_self_pairs(margin):
    for seed in range(3):
        embeddings, labels, _ = random_batch(seed, columns=2, values=2, tied=seed == 1)
        total, count = published_loss(embeddings, labels, margin)
        loss, (ours, valid, _), _ = evaluate(embeddings, labels, margin=margin, agreement="any", self_pairs=True)
        np.testing.assert_allclose(ours, total / 8, rtol=1e-5)
        np.testing.assert_allclose(valid, count / 8)
        np.testing.assert_allclose(loss, total / count, rtol=1e-5)


def test_the_published_sum_is_8_s_plus_4_s_self():
    embeddings, labels, _ = random_batch(0, columns=2, values=2)
    total, _ = published_loss(embeddings, labels, 1.0)
    over_distinct = evaluate(embeddings, labels, margin=1.0, agreement="any")[1][0]
    distances = [
        np.square(embeddings[i] - embeddings[j]).sum()
        for i, j in itertools.combinations(range(BATCH), 2)
        if (labels[i] != labels[j]).any()
    ]
    over_self = BATCH * np.maximum(1.0 - np.array(distances), 0).sum()
    assert over_self > 0
    np.testing.assert_allclose(total, 8 * over_distinct + 4 * over_self, rtol=1e-5)


def test_invariances():
    embeddings, labels, _ = random_batch(0)
    rng = np.random.default_rng(1)
    loss, stats, gradient = evaluate(embeddings, labels, margin=0.125)

    order = rng.permutation(BATCH)
    permuted = evaluate(embeddings[order], labels[order], margin=0.125)
    np.testing.assert_allclose([permuted[0], *permuted[1]], [loss, *stats], rtol=1e-5)
    np.testing.assert_allclose(permuted[2], gradient[order], rtol=1e-4, atol=1e-6)

    names = np.stack([rng.permutation(100)[:3] for _ in range(3)])
    renamed = names[np.arange(3), labels].astype(np.int32)
    assert evaluate(embeddings, renamed, margin=0.125)[:2] == (loss, stats)

    rotation = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    rotated = evaluate(embeddings @ rotation + 1, labels, margin=0.125)
    np.testing.assert_allclose([rotated[0], *rotated[1]], [loss, *stats], rtol=1e-5)
    np.testing.assert_allclose(rotated[2], gradient @ rotation, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("self_pairs", [False, True])
def test_a_batch_too_small_for_a_quadruplet_is_exactly_zero(batch, self_pairs):
    embeddings, labels = jnp.ones((batch, 2)), jnp.zeros((batch, 3), int)
    function = jax.jit(jax.value_and_grad(quadruplet_loss), static_argnames="self_pairs")
    loss, gradient = function(embeddings, labels, self_pairs=self_pairs)
    assert float(loss) == 0
    assert gradient.shape == (batch, 2)
    assert not gradient.any()


@pytest.mark.parametrize("options", [{}, {"balance": "levels"}, {"reduction": "mean_active"}, {"agreement": "any"}])
def test_nothing_to_compare_is_exactly_zero(options):
    embeddings, labels, _ = random_batch(0)
    where, equal = np.ones((BATCH, 3), bool), np.zeros((BATCH, 3), np.int32)
    for batch in (
        {"labels": equal, "where": where},
        {"labels": labels, "where": ~where},
        {"labels": labels, "where": where & (np.arange(BATCH) < 2)[:, None]},
        {"labels": labels, "weights": np.zeros(BATCH)},
    ):
        loss, stats, gradient = evaluate(embeddings, **batch, **options)
        assert (loss, *stats) == (0, 0, 0, 0)
        assert not gradient.any()


@pytest.mark.parametrize("self_pairs", [False, True])
def test_equal_and_zero_embeddings_have_finite_gradients(self_pairs):
    _, labels, _ = random_batch(0)
    for point in (0.0, 1.5):
        embeddings = np.full((BATCH, DIM), point)
        loss, stats, gradient = evaluate(embeddings, labels, self_pairs=self_pairs)
        # Every hinge is the margin and every difference 0: the total collapse is a stationary point.
        np.testing.assert_allclose(loss, 0.1, rtol=1e-5)
        np.testing.assert_allclose(stats[1], stats[2], rtol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-4)
        assert np.isfinite(gradient).all()
        embeddings[0] += 1
        assert np.isfinite(evaluate(embeddings, labels, self_pairs=self_pairs)[2]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_masked_row_may_be_nan_and_a_valid_nan_stays_visible(bad):
    embeddings, labels, where = random_batch(0)
    where[2] = False
    expected = evaluate(embeddings, labels, where=where, margin=0.125)
    embeddings[2] = bad
    result = evaluate(embeddings, labels, where=where, margin=0.125)
    assert result[:2] == expected[:2]
    np.testing.assert_array_equal(result[2], expected[2])
    for reduction in ("mean", "mean_active"):
        loss, _, gradient = evaluate(embeddings, labels, reduction=reduction, margin=0.125)
        assert np.isnan(loss)
        assert np.isnan(gradient).any()
    everything, _, _ = evaluate(np.full_like(embeddings, bad), labels, reduction="mean_active", margin=0.125)
    assert np.isnan(everything)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(dtype):
    embeddings, labels, _ = random_batch(0)
    half = jnp.asarray(embeddings, dtype)
    loss, gradient = jax.jit(jax.value_and_grad(quadruplet_loss))(half, labels, margin=0.125)
    expected, _, expected_gradient = evaluate(half.astype(jnp.float32), labels, margin=0.125)
    assert (loss.dtype, gradient.dtype) == (jnp.float32, half.dtype)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, rtol=1e-2, atol=1e-4)
    exact = evaluate(embeddings, labels, margin=0.125)[0]
    np.testing.assert_allclose(loss, exact, rtol=2e-2)


def test_float64_gradient_equals_finite_differences():
    embeddings, labels, _ = random_batch(0)
    with jax.enable_x64(True):
        function = jax.jit(jax.value_and_grad(lambda e: quadruplet_loss(e, labels)))
        center = jnp.asarray(embeddings, jnp.float64)
        direction = jnp.asarray(np.random.default_rng(1).normal(size=embeddings.shape))
        loss, gradient = function(center)
        assert loss.dtype == jnp.float64
        slope = (function(center + 1e-6 * direction)[0] - function(center - 1e-6 * direction)[0]) / 2e-6
        np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-6)
        np.testing.assert_allclose(loss, brute_force(embeddings, labels)[0], rtol=1e-12)


def test_jit_equals_eager_with_a_traced_margin():
    embeddings, labels, _ = random_batch(0)
    eager = quadruplet_loss(embeddings, labels, margin=0.125)
    traced, *_ = evaluate(embeddings, labels, margin=0.125)
    np.testing.assert_allclose(eager, traced, rtol=1e-6)


def test_vmap_over_a_leading_axis():
    batches = [random_batch(seed) for seed in range(3)]
    embeddings, labels = (np.stack(arrays) for arrays in list(zip(*batches, strict=True))[:2])
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(quadruplet_loss)))(embeddings, labels)
    for n, (one, its_labels, _) in enumerate(batches):
        loss, _, gradient = brute_force(one, its_labels)
        np.testing.assert_allclose(losses[n], loss, rtol=1e-5)
        np.testing.assert_allclose(gradients[n], gradient, rtol=1e-4, atol=1e-6)


def test_many_levels_are_not_compared_with_all_pairs_at_once():
    batch, weights, ordinal = 512, (1, 0.7, 0.3), (None, None, 14)  # 46 levels
    embeddings, labels = jnp.zeros((batch, 8)), jnp.zeros((batch, 3), jnp.int32)
    loss = functools.partial(quadruplet_loss, label_weights=weights, ordinal=ordinal)
    compiled = jax.jit(jax.grad(loss)).lower(embeddings, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 15 * batch**2 * 4


def test_a_batch_of_1024_needs_less_than_300_megabytes():
    function = jax.jit(jax.value_and_grad(quadruplet_loss))
    embeddings, labels = jax.ShapeDtypeStruct((1024, 128), "float32"), jax.ShapeDtypeStruct((1024, 4), "int32")
    memory = function.lower(embeddings, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 300e6
    assert memory.generated_code_size_in_bytes < 10e6


EMBEDDINGS, LABELS = jnp.ones((4, 2)), jnp.zeros((4, 3), int)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"embeddings": jnp.ones(4)}, ValueError, r"embeddings has shape \(4,\), expected \[B, D\]"),
        ({"embeddings": jnp.ones((4, 0))}, ValueError, r"embeddings has shape \(4, 0\), expected \[B, D\] with D >= 1"),
        (
            {"embeddings": jnp.ones((4, 2), int)},
            TypeError,
            "embeddings has dtype int32, expected a floating-point dtype",
        ),
        ({"labels": LABELS[:3]}, ValueError, r"labels has shape \(3, 3\), expected 4 rows as embeddings \(4, 2\)"),
        ({"labels": jnp.int32(1)}, ValueError, r"labels has shape \(\), expected 4 rows as embeddings"),
        ({"labels": LABELS[:, :0]}, ValueError, r"labels has shape \(4, 0\), expected \[B\] or \[B, T\] with T >= 1"),
        ({"labels": LABELS[:, None]}, ValueError, r"labels has shape \(4, 1, 3\), expected \[B\] or \[B, T\]"),
        ({"labels": LABELS / 2}, TypeError, "labels has dtype float(32|64), expected integers"),
        ({"margin": jnp.ones(2)}, ValueError, r"margin has shape \(2,\), expected a scalar"),
        ({"margin": float("nan")}, ValueError, "margin is nan, expected a finite number"),
        ({"margin": "0.1"}, TypeError, "margin is '0.1', expected a number"),
        ({"margin": None}, TypeError, "margin is None, expected a number"),
        ({"agreement": "all"}, ValueError, "agreement is 'all', expected one of count, any"),
        ({"balance": "pairs"}, ValueError, "balance is 'pairs', expected one of quadruplets, levels"),
        ({"reduction": "none"}, ValueError, "reduction is 'none', expected one of mean, mean_active, sum"),
        ({"where": jnp.ones(3, bool)}, ValueError, r"where has shape \(3,\), expected \(4,\) or \(4, 3\) as labels"),
        ({"where": jnp.ones(4)}, TypeError, "where has dtype float32, expected bool"),
        ({"weights": jnp.ones((4, 3))}, ValueError, r"weights has shape \(4, 3\), expected \(4,\) as embeddings"),
        ({"label_weights": (1, 2)}, ValueError, "label_weights has 2 entries, expected one for each of 3 columns"),
        ({"label_weights": (1, -2, 1)}, ValueError, r"label_weights is \(1, -2, 1\), expected finite numbers above 0"),
        ({"label_weights": jnp.ones(3)}, TypeError, "label_weights is .* expected static numbers"),
        ({"ordinal": (0, 2)}, ValueError, "ordinal has 2 entries, expected one for each of 3 columns"),
        ({"ordinal": (0, True, 0)}, ValueError, r"ordinal\[1\] is True, expected the largest \|a - b\|"),
        ({"ordinal": (0, 5000, 0)}, ValueError, "ordinal has the entry 5000, expected .* below 4096"),
        (
            {"ordinal": (99, 99, 0), "label_weights": (1, 1.0123, 1)},
            ValueError,
            "label_weights and ordinal make more than",
        ),
    ],
)
def test_bad_input_is_named(kwargs, error, message):
    with pytest.raises(error, match=f"^{message}"):
        quadruplet_loss(**{"embeddings": EMBEDDINGS, "labels": LABELS, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_quadruplets": 0}, ValueError, "num_quadruplets is 0, expected a static integer of at least 1"),
        ({"num_quadruplets": 2.0}, TypeError, "num_quadruplets is 2.0, expected a static integer"),
        ({"where": jnp.ones((4, 9), bool)}, ValueError, r"where has shape \(4, 9\), expected \(4,\) or \(4, \d\)"),
        ({"where": jnp.ones(3, bool)}, ValueError, r"where has shape \(3,\), expected \(4,\)"),
        ({"reduction": "all"}, ValueError, "reduction is 'all', expected one of mean, mean_active, sum, none"),
        ({"margin": jnp.ones(2)}, ValueError, r"margin has shape \(2,\), expected a scalar"),
        ({"labels": LABELS / 2}, TypeError, "labels has dtype float(32|64), expected integers"),
    ],
)
def test_bad_input_of_the_sampled_loss_is_named(kwargs, error, message):
    arguments = {"embeddings": EMBEDDINGS, "labels": LABELS, "num_quadruplets": 3, **kwargs}
    with pytest.raises(error, match=f"^{message}"):
        sampled_quadruplet_loss(jax.random.key(0), **arguments)


def hinge_of_four(embeddings4, labels4, margin):
    (i, j, p, q), (y_i, y_j, y_p, y_q) = np.asarray(embeddings4, float), labels4
    phi_ij, phi_pq = np.count_nonzero(y_i != y_j), np.count_nonzero(y_p != y_q)
    near, far = np.square(i - j).sum(), np.square(p - q).sum()
    if phi_ij == phi_pq:
        return 0.0
    return max((near - far if phi_ij < phi_pq else far - near) + margin, 0.0)


def test_hinge_is_the_formula():
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(200, 4, 5)).astype(np.float32), rng.integers(0, 2, (200, 4, 3))
    hinges = jax.vmap(functools.partial(quadruplet_hinge, margin=0.3))(embeddings, labels)
    expected = [hinge_of_four(*four, 0.3) for four in zip(embeddings, labels, strict=True)]
    assert 0 < np.count_nonzero(expected) < 150
    np.testing.assert_allclose(hinges, expected, rtol=1e-5, atol=1e-5)


def test_hinge_of_one_label_column_and_equal_points():
    function = jax.jit(jax.value_and_grad(quadruplet_hinge))
    hinge, gradient = function(jnp.zeros((4, 2)), jnp.array([1, 1, 1, 2]), margin=0.5)
    assert float(hinge) == 0.5
    assert not gradient.any()


@pytest.mark.parametrize(
    ("embeddings4", "labels4", "error", "message"),
    [
        (jnp.ones((3, 2)), LABELS, ValueError, "embeddings4 and labels4 have 3 and 4 rows, expected 4 and 4"),
        (EMBEDDINGS, LABELS[:2], ValueError, "embeddings4 and labels4 have 4 and 2 rows, expected 4 and 4"),
        (EMBEDDINGS, LABELS / 2, TypeError, "labels4 has dtype float(32|64), expected integers"),
        (jnp.ones(4), LABELS, ValueError, r"embeddings4 has shape \(4,\), expected \[B, D\] with D >= 1"),
    ],
)
def test_bad_input_of_the_hinge_is_named(embeddings4, labels4, error, message):
    with pytest.raises(error, match=f"^{message}"):
        quadruplet_hinge(embeddings4, labels4)


DRAWS = 40_000
draw_losses = jax.jit(functools.partial(sampled_quadruplet_loss, num_quadruplets=DRAWS, margin=0.125, reduction="none"))


@pytest.mark.parametrize("weights", [None, [0, 1, 2, 1, 0.5, 0, 3, 1]])
def test_the_expectation_of_the_sampled_loss_is_the_exact_loss(weights):
    embeddings, labels, _ = random_batch(0)
    weights = np.ones(BATCH, np.float32) if weights is None else np.float32(weights)
    losses = np.asarray(draw_losses(jax.random.key(0), embeddings, labels, weights=weights), float)
    exact = brute_force(embeddings, labels, weights=weights, margin=0.125)[0]
    assert losses.shape == (DRAWS,)
    assert abs(losses.mean() - exact) < 4 * losses.std() / np.sqrt(DRAWS)


def test_the_sampled_loss_draws_every_valid_quadruplet_equally_often():
    embeddings, labels, where = random_batch(3, values=2)
    where = np.arange(BATCH) < 4  # phi of the 6 pairs of the first four examples: quadruplets few enough to count
    embeddings = embeddings * 0.01  # all hinges are positive, and all differ
    expected = np.sort(
        [
            hinge_of_four(embeddings[[*near, *far]], labels[[*near, *far]], 0.125)
            for near, far in itertools.combinations(itertools.combinations(range(4), 2), 2)
            if (labels[near[0]] != labels[near[1]]).sum() != (labels[far[0]] != labels[far[1]]).sum()
        ]
    )
    assert len(expected) > 5
    assert np.diff(expected).min() > 1e-7
    weights = np.ones(BATCH, np.float32)
    losses = draw_losses(jax.random.key(0), embeddings, labels, weights=np.where(where, weights, 0))
    nearest = np.abs(np.subtract.outer(np.asarray(losses, float), expected)).argmin(1)
    assert chisquare(np.bincount(nearest, minlength=len(expected))).pvalue > 1e-3


def test_every_draw_is_valid_where_few_quadruplets_are():
    # One pair of 244,650 agrees: 1 in 244,650 pairs of pairs is a quadruplet. Its members lie farthest apart.
    batch = 700
    labels = np.arange(batch)
    labels[41] = labels[17]
    embeddings = np.zeros((batch, 1), np.float32)
    embeddings[17], embeddings[41] = 1, -1
    draw = jax.jit(functools.partial(sampled_quadruplet_loss, num_quadruplets=1000, has_aux=True))
    loss, stats = draw(jax.random.key(0), embeddings, labels)
    assert (float(stats.valid), float(stats.active)) == (1000, 1000)
    assert loss > 3


def test_the_sampled_loss_masks_and_reduces():
    embeddings, labels, _ = random_batch(0)
    where = np.arange(BATCH) % 3 > 0
    embeddings[~where] = np.nan

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def reduce_in_every_way(embeddings):
        results = {
            reduction: sampled_quadruplet_loss(
                jax.random.key(0),
                embeddings,
                labels,
                num_quadruplets=300,
                margin=0.125,
                where=where,
                reduction=reduction,
                has_aux=True,
            )
            for reduction in ("none", "mean", "sum", "mean_active")
        }
        return results["mean"][0], results

    gradient, results = reduce_in_every_way(embeddings)
    losses = results["none"][0]
    assert np.isfinite(losses).all()
    total, active = losses.sum(), (losses > 0).sum()
    for reduction, expected in (("mean", losses.mean()), ("sum", total), ("mean_active", total / active)):
        np.testing.assert_allclose(results[reduction][0], expected, rtol=1e-5)
    for _, stats in results.values():
        np.testing.assert_allclose(stats, (total, 300, active), rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert gradient[where].any()
    assert not gradient[~where].any()


def test_the_draw_depends_on_the_key():
    embeddings, labels, _ = random_batch(0)
    weights = np.ones(BATCH, np.float32)
    once, again, other = (draw_losses(jax.random.key(key), embeddings, labels, weights=weights) for key in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


@pytest.mark.parametrize("batch", [0, 1, 2, 8])
def test_the_sampled_loss_of_nothing_is_exactly_zero(batch):
    embeddings, labels = jnp.ones((batch, DIM)), jnp.zeros((batch, 3), int)
    draw = functools.partial(sampled_quadruplet_loss, jax.random.key(0), labels=labels, num_quadruplets=5, has_aux=True)
    (loss, stats), gradient = jax.jit(jax.value_and_grad(draw, has_aux=True))(embeddings)
    assert (float(loss), *map(float, stats)) == (0, 0, 0, 0)
    assert not gradient.any()


def test_examples_with_a_missing_label_are_not_drawn():
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(8, 3)).astype(np.float32), rng.integers(0, 3, (8, 2))
    known = np.arange(16).reshape(8, 2) % 5 > 0
    draw = functools.partial(sampled_quadruplet_loss, jax.random.key(0), embeddings, num_quadruplets=50)
    single, whole = draw(labels, where=known), draw(labels, where=known.all(axis=1))
    assert single == whole > 0
    with pytest.raises(ValueError, match=r"where has shape \(8, 3\), expected \(8,\) or \(8, 2\) as labels"):
        draw(labels, where=np.ones((8, 3), bool))
