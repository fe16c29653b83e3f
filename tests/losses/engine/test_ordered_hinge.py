import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses._engine.ordered_hinge import (
    Constants,
    attach_gradient,
    level_sums,
    near_far_sums,
    ordered_hinge,
    running_sums,
    sums_above,
    sums_by_searching,
    sums_by_sorting,
)


def brute_force(values, lower, upper, near_weights, far_weights, margin):
    """Total, valid, active and the gradient, over all P^2 ordered pairs (a, b), in float64."""
    values = np.asarray(values, np.float64)
    weight = np.where(np.less.outer(upper, lower), np.multiply.outer(near_weights, far_weights), 0.0)
    difference = np.subtract.outer(values, values) + margin
    violated = weight * (difference > 0)
    return (violated * difference).sum(), weight.sum(), violated.sum(), violated.sum(1) - violated.sum(0)


def value_and_gradient(values, *arrays, margin, num_levels):
    """The same four from the engine."""

    def total(values):
        hinge = ordered_hinge(values, *arrays, margin=margin, num_levels=num_levels)
        return hinge.total, hinge

    (_, hinge), gradient = jax.value_and_grad(total, has_aux=True)(values)
    return *hinge, gradient


engine = jax.jit(value_and_gradient, static_argnames="num_levels")


@partial(jax.jit, static_argnames=("way", "num_levels"))
def sums_of(way, values, lower, upper, near_weights, far_weights, *, margin, num_levels):
    return way(values, Constants(lower, upper, near_weights, far_weights, jnp.float32(margin)), num_levels)


WAYS = {"of CPUs": sums_by_searching, "of TPUs": sums_by_sorting}


def quarters(rng, low, high, size):
    """Multiples of 1/4: their sums, differences and products are exact in float32, and they are often tied."""
    return rng.integers(4 * low, 4 * high + 1, size).astype(np.float32) / 4


def random_problem(rng, size, num_levels, *, intervals):
    lower = rng.integers(0, num_levels, size).astype(np.int32)
    upper = rng.integers(lower, num_levels).astype(np.int32) if intervals else lower
    near_weights, far_weights = rng.choice(np.float32([0, 0.25, 1, 1, 3]), (2, size))
    return quarters(rng, -2, 2, size), lower, upper, near_weights, far_weights


@given(
    seed=st.integers(0, 2**32 - 1),
    num_levels=st.integers(1, 6),
    intervals=st.booleans(),
    margin=st.sampled_from([-0.75, 0.0, 0.25, 1.0, 100.0]),
)
def test_equals_all_ordered_pairs_exactly(seed, num_levels, intervals, margin):
    problem = random_problem(np.random.default_rng(seed), 14, num_levels, intervals=intervals)
    result = engine(*problem, margin=margin, num_levels=num_levels)
    for value, expected in zip(result, brute_force(*problem, margin), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("way", WAYS)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_levels=st.integers(1, 6),
    intervals=st.booleans(),
    margin=st.sampled_from([-0.75, 0.0, 0.25, 1.0, 100.0]),
)
def test_the_algorithm_of_each_platform_equals_all_ordered_pairs_exactly(way, seed, num_levels, intervals, margin):
    values, *rest = random_problem(np.random.default_rng(seed), 14, num_levels, intervals=intervals)
    sums = sums_of(WAYS[way], values, *rest, margin=margin, num_levels=num_levels)
    total, _, active, gradient = brute_force(values, *rest, margin)
    for value, expected in zip(sums, (total, active, gradient), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("way", WAYS)
def test_the_algorithm_of_each_platform_equals_all_ordered_pairs_of_real_values(way):
    rng = np.random.default_rng(1)
    _, lower, upper, _, _ = random_problem(rng, 300, 6, intervals=True)
    values, near_weights, far_weights = (rng.random((3, 300)) * [[5], [1], [1]]).astype(np.float32)
    problem = values, lower, upper, near_weights, far_weights
    total, _, active, gradient = brute_force(*problem, 0.3)
    for value, expected in zip(
        sums_of(WAYS[way], *problem, margin=0.3, num_levels=6), (total, active, gradient), strict=True
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_corner_of_the_hinge_is_not_active_at_either_zero(way, zero):
    levels, ones = np.int32([0, 1]), np.ones(2, np.float32)
    sums = sums_of(WAYS[way], np.float32([-0.25, zero]), levels, levels, ones, ones, margin=0.25, num_levels=2)
    assert [x.tolist() for x in sums] == [0, 0, [0, 0]]


@pytest.mark.parametrize(("platform", "sorted_arrays"), [("cpu", [1]), ("cuda", [1]), ("tpu", [2, 4])])
def test_each_platform_compiles_only_its_own_algorithm(platform, sorted_arrays):
    values, levels, ones = np.float32([0, 1, 2]), np.int32([0, 1, 0]), np.ones(3, np.float32)

    def rows(values):
        return jax.vmap(lambda x: ordered_hinge(x, levels, levels, ones, ones, margin=0.1, num_levels=2).total)(values)

    for function in (lambda x: rows(x[None]).sum(), lambda x: rows(jnp.stack([x, x])).sum()):
        program = jax.jit(jax.grad(function)).trace(values).lower(lowering_platforms=(platform,)).as_text()
        sorts = re.findall(r'"stablehlo.sort"\(([^)]*)\)', program)
        assert sorted(operands.count("%") for operands in sorts) == sorted_arrays


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_equals_all_ordered_pairs_of_very_few_values(size):
    for seed in range(5):
        problem = random_problem(np.random.default_rng(seed), size, 2, intervals=True)
        result = engine(*problem, margin=0.25, num_levels=2)
        for value, expected in zip(result, brute_force(*problem, 0.25), strict=True):
            np.testing.assert_array_equal(value, expected)


def test_equals_all_ordered_pairs_of_real_values():
    rng = np.random.default_rng(0)
    _, lower, upper, _, _ = random_problem(rng, 14, 6, intervals=True)
    values, near_weights, far_weights = rng.random((3, 14), np.float32) * [[5], [1], [1]]
    problem = np.float32(values), lower, upper, np.float32(near_weights), np.float32(far_weights)
    result = engine(*problem, margin=0.3, num_levels=6)
    for value, expected in zip(result, brute_force(*problem, 0.3), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def one_pair(near, far, margin):
    ones, levels = np.ones(2, np.float32), np.array([0, 1], np.int32)
    return engine(np.float32([near, far]), levels, levels, ones, ones, margin=margin, num_levels=2)


def test_one_pair_is_the_hinge():
    # relu(2 - 1.5 + 0.25) = 0.75, gradient +1 for the near value and -1 for the far one
    total, valid, active, gradient = one_pair(2.0, 1.5, 0.25)
    assert (total, valid, active, *gradient) == (0.75, 1, 1, 1, -1)


def test_the_corner_of_the_hinge_is_not_active():
    total, valid, active, gradient = one_pair(1.25, 1.5, 0.25)
    assert (total, valid, active, *gradient) == (0, 1, 0, 0, 0)


def test_the_two_zeros_are_equal():
    assert one_pair(0.0, -0.0, 0.0)[2] == one_pair(-0.0, 0.0, 0.0)[2] == 0


def test_pairs_on_one_level_or_on_overlapping_intervals_are_not_compared():
    ones = np.ones(3, np.float32)
    lower, upper = np.int32([[0, 1, 0], [1, 2, 2]])
    assert engine(np.float32([3, 2, 1]), lower, upper, ones, ones, margin=5.0, num_levels=6)[1] == 0
    assert engine(np.float32([3, 2, 1]), upper, upper, ones, ones, margin=5.0, num_levels=1)[1] == 0


def test_the_gradient_of_the_margin_is_the_weight_of_the_violations_and_weights_have_none():
    problem = random_problem(np.random.default_rng(0), 14, 6, intervals=False)

    def total(margin, near_weights, far_weights):
        hinge = ordered_hinge(*problem[:3], near_weights, far_weights, margin=margin, num_levels=6)
        return hinge.total + hinge.valid + hinge.active

    attach_margin_gradient, *of_weights = jax.grad(total, argnums=(0, 1, 2))(0.5, *map(jnp.asarray, problem[3:]))
    values, lower, upper, near, far = map(np.asarray, problem)
    violated = (upper[:, None] < lower[None, :]) & (values[:, None] + 0.5 > values[None, :])
    np.testing.assert_allclose(attach_margin_gradient, np.sum(np.outer(near, far) * violated), rtol=1e-5)
    assert not any(np.any(gradient) for gradient in of_weights)


def test_vmap_equals_one_at_a_time():
    rng = np.random.default_rng(0)
    problems = [random_problem(rng, 14, 6, intervals=True) for _ in range(3)]
    stacked = [np.stack(arrays) for arrays in zip(*problems, strict=True)]
    together = jax.vmap(lambda *arrays: value_and_gradient(*arrays, margin=0.25, num_levels=6))(*stacked)
    for n, problem in enumerate(problems):
        for value, expected in zip(together, brute_force(*problem, 0.25), strict=True):
            np.testing.assert_array_equal(value[n], expected)


def test_float64_gradient_equals_finite_differences():
    rng = np.random.default_rng(0)
    _, lower, upper, near_weights, far_weights = random_problem(rng, 14, 6, intervals=True)
    values = rng.random(14)
    with jax.enable_x64(True):
        *_, gradient = engine(values, lower, upper, near_weights, far_weights, margin=0.3, num_levels=6)
        for n, step in enumerate(1e-6 * np.eye(14)):
            above, below = (
                engine(moved, lower, upper, near_weights, far_weights, margin=0.3, num_levels=6)[0]
                for moved in (values + step, values - step)
            )
            assert above.dtype == jnp.float64
            np.testing.assert_allclose(gradient[n], (above - below) / 2e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_values_that_are_not_finite_stay_visible(bad):
    for at in range(3):
        values = np.float32([1, 2, 3])
        values[at] = bad
        levels, ones = np.int32([0, 1, 1]), np.ones(3, np.float32)
        total, _, _, gradient = engine(values, levels, levels, ones, ones, margin=0.5, num_levels=2)
        assert np.isnan(total)
        assert np.isnan(gradient).all()


def test_finite_values_whose_sum_overflows_give_no_nan():
    levels, ones = np.int32([0, 1, 1]), np.ones(3, np.float32)
    total, _, active, gradient = engine(
        np.float32([2e38, 3e38, 3e38]), levels, levels, ones, ones, margin=1, num_levels=2
    )
    assert (total, active, *gradient) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_without_weight_does_not_matter(bad):
    rng = np.random.default_rng(0)
    values, lower, upper, near_weights, far_weights = random_problem(rng, 14, 6, intervals=True)
    near_weights[:2] = far_weights[:2] = 0
    expected = brute_force(values, lower, upper, near_weights, far_weights, 0.25)
    values[:2] = bad
    result = engine(values, lower, upper, near_weights, far_weights, margin=0.25, num_levels=6)
    for value, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def histogram_brute_force(values, levels, margin, num_levels, resolution):
    """All ordered pairs of the few distinct values, each as often as it occurs: exact for any number of values."""
    places = np.rint(values * resolution).astype(int)
    counts = np.zeros((num_levels, places.max() + 1))
    np.add.at(counts, (levels, places), 1)
    grid = np.arange(counts.shape[1]) / resolution
    hinge = np.maximum(np.subtract.outer(grid, grid) + margin, 0)
    above = counts.sum(0) - np.cumsum(counts, axis=0)
    below = np.cumsum(counts, axis=0) - counts
    violated = (hinge > 0).astype(float)
    gradient = above @ violated.T - below @ violated
    total = sum(counts[level] @ hinge @ above[level] for level in range(num_levels))
    active = sum(counts[level] @ violated @ above[level] for level in range(num_levels))
    return total, (counts.sum(1) * above.sum(1)).sum(), active, gradient[levels, places]


def test_two_hundred_thousand_values_without_overflow_or_loss_of_accuracy():
    size, num_levels, resolution = 200_000, 5, 1024
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 2 * resolution, size) / resolution).astype(np.float32)
    levels = rng.integers(0, num_levels, size).astype(np.int32)
    margin = np.float32(0.1)
    total, valid, active, gradient = histogram_brute_force(values, levels, margin, num_levels, resolution)
    assert active > 2**31
    ones = np.ones(size, np.float32)
    result = engine(values, levels, levels, ones, ones, margin=margin, num_levels=num_levels)
    np.testing.assert_allclose(result[0], total, rtol=1e-5)
    np.testing.assert_allclose(result[1:3], [valid, active], rtol=1e-6)
    np.testing.assert_array_equal(result[3], gradient)


@pytest.mark.parametrize("far_away", [1e7, 1e37])  # beyond 3.4e38 / 1000 the integral up to it overflows
def test_one_distant_value_does_not_reduce_accuracy(far_away):
    rng = np.random.default_rng(0)
    values = np.append(rng.random(999), far_away).astype(np.float32)
    levels = np.append(rng.integers(0, 2, 999), 1).astype(np.int32)
    problem = values, levels, levels, np.ones(1000, np.float32), np.ones(1000, np.float32)
    result = engine(*problem, margin=0.125, num_levels=2)
    np.testing.assert_allclose(result[0], brute_force(*problem, 0.125)[0], rtol=1e-5)


def test_small_hinges_of_large_values_stay_accurate():
    rng = np.random.default_rng(0)
    values = (1e4 + rng.integers(0, 128, 1000) / 1024).astype(np.float32)  # held exactly
    levels = rng.integers(0, 2, 1000).astype(np.int32)
    problem = values, levels, levels, np.ones(1000, np.float32), np.ones(1000, np.float32)
    total, *_ = brute_force(*problem, 1 / 64)
    np.testing.assert_allclose(engine(*problem, margin=1 / 64, num_levels=2)[0], total, rtol=1e-5)


def test_memory_grows_with_the_number_of_values_and_not_of_levels():
    def temporary_bytes(size, num_levels):
        floats, integers = jax.ShapeDtypeStruct((size,), "float32"), jax.ShapeDtypeStruct((size,), "int32")
        lowered = engine.lower(floats, integers, integers, floats, floats, margin=0.1, num_levels=num_levels)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small = temporary_bytes(2000, 3)
    assert small < 100 * 2000
    assert temporary_bytes(32_000, 40) < 20 * small  # not 16 * 16, nor 16 * 40 / 3


def test_level_sums_and_sums_above():
    weights, levels = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([2, 0, 2, 3])
    assert level_sums(weights, levels, 5).tolist() == [2, 0, 5, 8, 0]
    assert sums_above(weights, levels, 5).tolist() == [13, 13, 8, 0, 0]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1024, 1025, 33_000])
@pytest.mark.parametrize("reverse", [False, True])
def test_running_sums(size, reverse):
    turn = slice(None, None, -1 if reverse else 1)
    whole = np.random.default_rng(size).integers(0, 9, size).astype(np.float32)  # summed exactly
    np.testing.assert_array_equal(running_sums(whole, reverse=reverse), np.cumsum(whole[turn])[turn])
    real = np.random.default_rng(size).random((2, size), np.float32)
    expected = np.cumsum(real[:, turn].astype(np.float64), axis=1)[:, turn]
    np.testing.assert_allclose(jax.vmap(partial(running_sums, reverse=reverse))(real), expected, rtol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("large", [[3e38, 3e38], [np.inf, 0.0], [0.0, np.inf]])
def test_a_running_sum_that_overflows_does_not_affect_other_sums(large, reverse):
    turn = slice(None, None, -1 if reverse else 1)
    values = np.ones(5000, np.float32)
    values[4010:4012] = large
    sums = running_sums(values[turn], reverse=reverse)[turn]
    np.testing.assert_array_equal(sums[:4010], np.arange(1, 4011))
    np.testing.assert_array_equal(sums[4011:], np.inf)


@pytest.mark.parametrize(("platform", "products"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_running_sums_are_products_only_on_cpus(platform, products):
    lowered = jax.jit(running_sums).trace(np.ones(100, np.float32)).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in lowered) == products


near_far = jax.jit(near_far_sums)


def near_far_problem(rng, size, num_segments):
    values, is_near = quarters(rng, -2, 2, size), rng.random(size) < 0.5
    weights = rng.choice(np.float32([0, 0.25, 1, 1, 3]), size)
    segments = rng.choice(np.int32([-7, 0, 3, 2**31 - 1, 5])[:num_segments], size)
    return values, np.where(is_near, weights, 0), np.where(is_near, 0, weights), segments


def near_far_brute_force(values, near_weights, far_weights, segments, margin):
    hinge = np.maximum(np.subtract.outer(values, values).astype(np.float64) + margin, 0)
    hinge *= segments[:, None] == segments[None, :]
    violated = hinge > 0
    as_near = (near_weights > 0) * (violated @ far_weights.astype(np.float64))
    return (near_weights > 0) * (hinge @ far_weights), as_near + (far_weights > 0) * (near_weights @ violated)


@given(
    seed=st.integers(0, 2**32 - 1),
    num_segments=st.integers(1, 5),
    margin=st.sampled_from([-0.75, 0.0, 0.25, 1.0, 100.0]),
)
def test_near_and_far_values_of_segments_exactly(seed, num_segments, margin):
    problem = near_far_problem(np.random.default_rng(seed), 16, num_segments)
    used = (problem[1] > 0) | (problem[2] > 0)
    sums = near_far(*problem, margin=margin)
    for value, expected in zip(sums, near_far_brute_force(*problem, margin), strict=True):
        np.testing.assert_array_equal(value[used], expected[used])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_near_and_far_values_that_are_not_finite_stay_visible(bad):
    values, near_weights, far_weights, segments = near_far_problem(np.random.default_rng(0), 16, 2)
    for mine in (near_weights, far_weights):
        spoilt = values.copy()
        spoilt[np.flatnonzero(mine)[0]] = bad
        assert np.isnan(near_far(spoilt, near_weights, far_weights, segments, margin=0.5)[0]).all()
    spoilt = np.where((near_weights > 0) | (far_weights > 0), values, bad)
    assert np.isfinite(near_far(spoilt, near_weights, far_weights, segments, margin=0.5)[0]).all()


def test_small_hinges_in_many_segments_stay_accurate():
    rng = np.random.default_rng(0)
    values = (1e4 + rng.integers(0, 128, 4000) / 1024).astype(np.float32)  # held exactly
    values[:50] += 1e6  # far values which nobody violates
    near_weights = ((np.arange(4000) >= 50) & (np.arange(4000) % 3 == 0)).astype(np.float32)
    problem = values, near_weights, 1 - near_weights, np.arange(4000, dtype=np.int32) % 100
    hinges, violations = near_far(*problem, margin=1 / 64)
    expected_hinges, expected_violations = near_far_brute_force(*problem, 1 / 64)
    np.testing.assert_array_equal(violations, expected_violations)
    np.testing.assert_allclose((near_weights * hinges).sum(), (near_weights * expected_hinges).sum(), rtol=1e-5)
    np.testing.assert_allclose(hinges, expected_hinges, atol=1e-4 * expected_hinges.max())


def test_large_weights_of_unviolated_far_values_do_not_reduce_accuracy():
    values = np.where(np.arange(4000) < 2000, 100, np.arange(4000) % 7).astype(np.float32)
    near_weights = np.where(values < 3, 0.7, 0).astype(np.float32)
    far_weights = np.where(values == 100, 1000.1, np.where(values >= 3, 0.3, 0)).astype(np.float32)
    problem = values, near_weights, far_weights, np.arange(4000, dtype=np.int32) % 50
    sums, expected = near_far(*problem, margin=2), near_far_brute_force(*problem, 2)
    for value, wanted in zip(sums, expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-6 * wanted.sum())


def test_unviolated_values_have_exactly_zero_violations():
    rng = np.random.default_rng(0)
    is_near, segments = rng.random(5000) < 0.5, rng.integers(0, 50, 5000)
    values = np.where(is_near, 0.0, 2.0) + rng.random(5000)
    near_weights, far_weights = np.float32([is_near, ~is_near]) * np.float32(rng.random(5000))
    sums = near_far(np.float32(values), near_weights, far_weights, np.int32(segments), margin=0.5)
    np.testing.assert_array_equal(sums, 0)


def test_the_two_zeros_are_equal_among_near_and_far_values():
    for near, far in ((0.0, -0.0), (-0.0, 0.0)):
        ones, segments = np.float32([1, 0]), np.zeros(2, np.int32)
        violations = near_far(np.float32([near, far]), ones, 1 - ones, segments, margin=0.0).violations
        np.testing.assert_array_equal(violations, 0)


def test_attach_gradient_returns_the_total_with_that_gradient():
    value, gradient = jax.value_and_grad(lambda x: attach_gradient(jnp.sum(x) + 3, x, jnp.array([5.0, -1.0])))(
        jnp.array([1.0, 2.0])
    )
    assert (value, *gradient) == (6, 5, -1)
