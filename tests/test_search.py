from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmetric import search
from jaxmetric.search import METRICS, nearest_neighbors, same_group_rows


def brute_force(queries, gallery, k, exclude):
    """Sorts all (distance, index) pairs of integer embeddings, whose distances are exact."""
    rows = []
    for query, excluded in zip(queries, exclude, strict=True):
        distances = ((query - gallery) ** 2).sum(1)
        order = sorted((d, i) for i, d in enumerate(distances) if i not in np.ravel(excluded))
        rows.append(order[:k])
    found = np.array(rows, float).reshape(len(queries), k, 2)
    return found[..., 0], found[..., 1]


# Few sizes, to compile few programs; few values, so that most distances are tied.
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.sampled_from([(5, 7, 3), (9, 4, 3), (1, 1, 1), (6, 13, 8)]),
    block_size=st.sampled_from([1, 4, 2048]),
    values=st.sampled_from([2, 1000]),
    excluding=st.sampled_from([None, (), (2,)]),
    long_list=st.sampled_from([0, 1]),
)
def test_equals_brute_force_with_ties_by_lower_index(seed, sizes, block_size, values, excluding, long_list):
    num_queries, num_gallery, k = sizes
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.integers(0, values, (n, 3)) for n in (num_queries, num_gallery))
    exclude = None
    if excluding is not None and k + max(*excluding, 1, 1) <= num_gallery:
        exclude = rng.integers(-1, num_gallery, (num_queries, *excluding))
    with mock.patch.object(search, "_LONG_LIST", long_list):  # above it, all rows are compared on the host
        distances, indices = nearest_neighbors(queries, gallery, k, exclude=exclude, block_size=block_size)
    expected = brute_force(queries, gallery, k, np.full(num_queries, -1) if exclude is None else exclude)
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(indices, expected[1])


def test_rows_that_are_excluded_twice_count_once():
    exclude = np.array([[0, 0, 0], [1, 2, -1], [-1, -1, -1]])
    _, indices = nearest_neighbors(np.zeros((3, 1)), np.arange(4.0)[:, None], 2, exclude=exclude)
    assert indices.tolist() == [[1, 2], [0, 3], [0, 1]]
    with pytest.raises(ValueError, match="k is 3, expected 1 to 2, the rows which the gallery offers every query"):
        nearest_neighbors(np.zeros((3, 1)), np.arange(4.0)[:, None], 3, exclude=exclude)


@given(seed=st.integers(0, 2**32 - 1), columns=st.sampled_from([None, 1, 2]))
def test_same_group_rows_follow_the_definition(seed, columns):
    rng = np.random.default_rng(seed)
    shape = () if columns is None else (columns,)
    queries, gallery = (rng.integers(-1, 3, (rng.integers(0, 7), *shape)) for _ in range(2))
    found = same_group_rows(queries, gallery)
    expected = [
        [g for g, other in enumerate(gallery) if (np.array(other) == query).all() and np.min(query) >= 0]
        for query in queries
    ]
    assert [[row for row in rows if row >= 0] for rows in found.tolist()] == expected
    assert found.shape == (len(queries), max(map(len, expected), default=0))


def test_cosine_distance_of_real_embeddings():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(6, 5)), rng.normal(size=(11, 5))
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    expected = 1 - queries @ gallery.T / lengths
    distances, indices = nearest_neighbors(queries, gallery, 11, metric="cosine", block_size=4)
    np.testing.assert_array_equal(indices, expected.argsort(axis=1))
    np.testing.assert_allclose(distances, np.sort(expected, axis=1), atol=1e-6)


def test_cosine_distance_to_a_zero_vector_is_one():
    distances, _ = nearest_neighbors(np.zeros((1, 3)), np.eye(3), 3, metric="cosine")
    np.testing.assert_array_equal(distances, [[1, 1, 1]])


def clusters(rng, size, distance):
    return rng.normal(size=(size, 8)) + distance * rng.integers(0, 2, (size, 1))


GEOMETRIES = {
    "ordinary": lambda rng, size: rng.normal(size=(size, 8)),
    "offset 200": lambda rng, size: rng.normal(size=(size, 8)) + 200,
    "offset 2,000": lambda rng, size: rng.normal(size=(size, 8)) - 2e3,
    "offset 1,000,000": lambda rng, size: rng.normal(size=(size, 8)) + 1e6,
    "two clusters": lambda rng, size: clusters(rng, size, 2e4),
    "two clusters at the limit of float32": lambda rng, size: clusters(rng, size, 1e6),
    "lengths from 1e-6 to 1e6": lambda rng, size: rng.normal(size=(size, 8)) * 10 ** rng.uniform(-6, 6, (size, 1)),
    "one far row": lambda rng, size: rng.normal(size=(size, 8)) + 1e9 * (np.arange(size) == size // 2)[:, None],
    "tiny": lambda rng, size: 1e-30 * rng.normal(size=(size, 8)),
    "huge": lambda rng, size: 1e17 * rng.normal(size=(size, 8)),
    "repeated rows": lambda rng, size: np.random.default_rng(0).normal(size=(9, 8))[rng.integers(0, 9, size)] + 3,
    "collapsed": lambda rng, size: np.full((size, 8), 0.3),
    "zero rows": lambda rng, size: rng.normal(size=(size, 8)) * rng.integers(0, 2, (size, 1)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("long_list", [0, 1])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_neighbors_equal_those_of_float64(geometry, long_list, dtype, monkeypatch):
    monkeypatch.setattr(search, "_LONG_LIST", long_list)
    rng = np.random.default_rng(3)
    queries, gallery = (GEOMETRIES[geometry](rng, size).astype(dtype) for size in (20, 300))
    squared = ((queries[:, None].astype(float) - gallery[None].astype(float)) ** 2).sum(axis=2)
    expected = np.argsort(squared, axis=1, kind="stable")[:, :10]
    distances, indices = nearest_neighbors(queries, gallery, 10, block_size=128)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, np.take_along_axis(squared, expected, axis=1), rtol=2e-7, atol=1e-38)


@pytest.mark.parametrize("long_list", [0, 1])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_cosine_neighbors_equal_those_of_longer_floats(geometry, long_list, monkeypatch):
    """Rows at equal cosine distance may be ordered by rounding, so distances are compared, not rows."""
    monkeypatch.setattr(search, "_LONG_LIST", long_list)
    rng = np.random.default_rng(3)
    queries, gallery = (GEOMETRIES[geometry](rng, size).astype(np.float32) for size in (20, 300))
    x, y = (each.astype(np.longdouble) / np.maximum(np.abs(each).max(), 1e-30) for each in (queries, gallery))
    x, y = (each / np.where(n > 0, n, 1) for each in (x, y) for n in [np.sqrt((each**2).sum(axis=1, keepdims=True))])
    expected = ((x[:, None] - y[None]) ** 2).sum(axis=2) / 2
    expected = np.where(x.any(axis=1)[:, None] & y.any(axis=1)[None, :], expected, 1)
    distances, indices = nearest_neighbors(queries, gallery, 10, metric="cosine", block_size=128)
    nearest = np.sort(expected, axis=1)[:, :10]
    np.testing.assert_allclose(np.take_along_axis(expected, indices, axis=1), nearest, rtol=1e-7, atol=1e-29)
    np.testing.assert_allclose(distances, nearest, rtol=3e-7, atol=1e-29)


@given(seed=st.integers(0, 2**32 - 1), offset=st.floats(-7, 7), spread=st.floats(-7, 7), long_list=st.integers(0, 1))
def test_neighbors_equal_those_of_float64_at_any_offset(seed, offset, spread, long_list):
    rng = np.random.default_rng(seed)
    x = (10**offset * rng.normal(size=3) + 10**spread * rng.normal(size=(80, 3))).astype(np.float32)
    squared = ((x[:, None].astype(float) - x[None].astype(float)) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    with mock.patch.object(search, "_LONG_LIST", long_list):
        indices = nearest_neighbors(x, x, 7, exclude=np.arange(80))[1]
    np.testing.assert_array_equal(indices, np.argsort(squared, axis=1, kind="stable")[:, :7])


@pytest.mark.parametrize("metric", METRICS)
def test_block_size_does_not_change_the_result(metric, monkeypatch):
    monkeypatch.setattr(search, "_LONG_LIST", 1)
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(50, 16)), rng.normal(size=(101, 16))
    whole = nearest_neighbors(queries, gallery, 9, metric=metric)
    blocks = nearest_neighbors(queries, gallery, 9, metric=metric, block_size=16)
    np.testing.assert_array_equal(whole[1], blocks[1])
    np.testing.assert_array_equal(whole[0], blocks[0])


def test_one_program_serves_every_block(monkeypatch):
    monkeypatch.setattr(search, "_LONG_LIST", 1)
    rng = np.random.default_rng(2)
    search._nearest_candidates.clear_cache()
    nearest_neighbors(rng.normal(size=(23, 6)), rng.normal(size=(31, 6)), 2, block_size=5)
    assert search._nearest_candidates._cache_size() == 1


def test_memory_does_not_grow_with_the_gallery():
    def temporary_bytes(num_blocks, block=64, dim=4):
        arguments = np.zeros((block, dim)), np.zeros((num_blocks, block, dim)), 1, np.zeros((block, 1), np.int32)
        lowered = search._nearest_candidates.lower(*arguments, k=3)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    index_bytes = 4 * 1000
    assert temporary_bytes(1000) <= temporary_bytes(2) + 2 * index_bytes


def test_ordinary_embeddings_are_compared_only_on_the_device(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(search, "nearest_of_all", refuse)
    rng = np.random.default_rng(4)
    nearest_neighbors(rng.normal(size=(20, 64)), rng.normal(size=(1000, 64)), 5)


def test_half_precision_is_compared_in_float32():
    distances, indices = nearest_neighbors(np.array([[0.0]], np.float16), np.array([[300.0], [2.0]], np.float16), 2)
    np.testing.assert_array_equal(distances, [[4, 90_000]])
    np.testing.assert_array_equal(indices, [[1, 0]])


def test_no_queries_find_nothing():
    distances, indices = nearest_neighbors(np.zeros((0, 2)), np.zeros((3, 2)), 2)
    assert distances.shape == indices.shape == (0, 2)


GOOD = {"queries": np.zeros((2, 3)), "gallery": np.zeros((4, 3)), "k": 1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 5}, ValueError, "k is 5, expected 1 to 4"),
        ({"k": 4, "exclude": np.array([0, -1])}, ValueError, "k is 4, expected 1 to 3"),
        ({"k": 0}, ValueError, "k is 0, expected 1 to 4"),
        ({"queries": np.zeros((2, 5))}, ValueError, "queries have 5 dimensions, gallery has 3"),
        ({"queries": np.zeros(3)}, ValueError, r"queries has shape \(3,\), expected \[N, D\]"),
        ({"gallery": np.zeros((4, 0))}, ValueError, r"gallery has shape \(4, 0\), expected \[N, D\]"),
        ({"gallery": np.diag([0, 1, np.nan])}, ValueError, "gallery has 1 rows that are NaN.*the first is row 2"),
        ({"queries": np.full((2, 3), np.inf)}, ValueError, "queries has 2 rows that are NaN.*the first is row 0"),
        (
            {"queries": np.full((2, 3), 1e30)},
            ValueError,
            "queries has 2 rows that are .*too long for float32",
        ),
        ({"metric": "l1"}, ValueError, "metric is 'l1', expected one of squared_euclidean, cosine"),
        ({"block_size": 0}, ValueError, "block_size is 0, expected at least 1"),
        ({"exclude": np.array([1])}, ValueError, r"exclude has shape \(1,\), expected \(2,\) or \(2, E\)"),
        ({"exclude": np.array([[0, 4], [0, 0]])}, ValueError, "exclude goes from 0 to 4, expected -1 to 3"),
        ({"exclude": np.array([0, 4])}, ValueError, "exclude goes from 0 to 4, expected -1 to 3"),
        ({"k": 1.0}, TypeError, "k is 1.0, expected an integer"),
        ({"k": True}, TypeError, "k is True, expected an integer"),
        ({"exclude": np.array([0, 2**32])}, ValueError, "exclude goes from 0 to 4294967296, expected -1 to 3"),
        ({"exclude": [[0], [1, 2]]}, ValueError, "exclude is a list of rows of different lengths"),
        ({"queries": [[0, 1, 2], [3]]}, ValueError, "queries is a list of rows of different lengths, expected"),
        ({"queries": np.full((2, 3), "a")}, TypeError, "queries has dtype <U1, expected real numbers"),
        ({"gallery": np.zeros((4, 3), object)}, TypeError, "gallery has dtype object, expected real numbers"),
        ({"gallery": np.zeros((4, 3), complex)}, TypeError, "gallery has dtype complex128, expected real numbers"),
        ({"metric": None}, ValueError, "metric is None, expected one of squared_euclidean, cosine"),
        ({"exclude": np.array([0.0, 1.0])}, TypeError, "exclude has dtype float64, expected integers"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        nearest_neighbors(**(GOOD | change))


def test_traced_arrays_are_named():
    with pytest.raises(TypeError, match="queries is traced, expected an array: call this function outside of jit"):
        jax.jit(lambda x: nearest_neighbors(x, np.zeros((4, 3)), 1))(np.zeros((2, 3)))


def test_integers_beyond_float32_are_distinguished():
    gallery = np.array([[2**24], [2**24 + 1]])
    assert nearest_neighbors(gallery[1:], gallery, 2)[1].tolist() == [[1, 0]]
