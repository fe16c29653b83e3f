import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmetric import search
from jaxmetric.search import METRICS, nearest_neighbors, same_group_rows


def brute_force(queries, gallery, k, exclude):
    """Sorts every (distance, index) of integer embeddings, whose distances are exact."""
    rows = []
    for query, excluded in zip(queries, exclude, strict=True):
        distances = ((query - gallery) ** 2).sum(1)
        order = sorted((d, i) for i, d in enumerate(distances) if i not in np.ravel(excluded))
        rows.append(order[:k])
    found = np.array(rows, float).reshape(len(queries), k, 2)
    return found[..., 0], found[..., 1]


# Few sizes, so that few programs are compiled; few values, so that most distances are tied.
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.sampled_from([(5, 7, 3), (9, 4, 3), (1, 1, 1), (6, 13, 8)]),
    block_size=st.sampled_from([1, 4, 2048]),
    values=st.sampled_from([2, 1000]),
    excluding=st.sampled_from([None, (), (2,)]),
)
def test_equals_brute_force_with_ties_by_lower_index(seed, sizes, block_size, values, excluding):
    num_queries, num_gallery, k = sizes
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.integers(0, values, (n, 3)) for n in (num_queries, num_gallery))
    exclude = None
    if excluding is not None and k + max(*excluding, 1, 1) <= num_gallery:
        exclude = rng.integers(-1, num_gallery, (num_queries, *excluding))
    distances, indices = nearest_neighbors(queries, gallery, k, exclude=exclude, block_size=block_size)
    expected = brute_force(queries, gallery, k, np.full(num_queries, -1) if exclude is None else exclude)
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(indices, expected[1])


def test_rows_that_are_left_out_twice_count_once():
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


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_do_not_change_the_answer(metric):
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(50, 16)), rng.normal(size=(101, 16))
    whole = nearest_neighbors(queries, gallery, 9, metric=metric)
    blocks = nearest_neighbors(queries, gallery, 9, metric=metric, block_size=16)
    np.testing.assert_array_equal(whole[1], blocks[1])
    np.testing.assert_allclose(whole[0], blocks[0], rtol=1e-5, atol=1e-6)


def test_one_program_serves_every_block():
    rng = np.random.default_rng(2)
    search._search_block.clear_cache()
    nearest_neighbors(rng.normal(size=(23, 6)), rng.normal(size=(31, 6)), 2, block_size=5)
    assert search._search_block._cache_size() == 1


def test_memory_does_not_grow_with_the_gallery():
    def temporary_bytes(num_blocks, block=64, dim=4):
        arguments = np.zeros((block, dim)), np.zeros((num_blocks, block, dim)), 1, np.zeros((block, 1), np.int32)
        lowered = search._search_block.lower(*arguments, k=3, metric="squared_euclidean")
        return lowered.compile().memory_analysis().temp_size_in_bytes

    index_bytes = 4 * 1000
    assert temporary_bytes(1000) <= temporary_bytes(2) + 2 * index_bytes


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
        ({"exclude": np.array([0.0, 1.0])}, TypeError, "exclude has dtype float64, expected integers"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        nearest_neighbors(**(GOOD | change))
