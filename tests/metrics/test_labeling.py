import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from jaxmetric.metrics import cumulative_match_curve, knn_labels, label_ranks
from jaxmetric.search import nearest_neighbors


def ranks_by_definition(queries, gallery, query_labels, gallery_labels, exclude):
    ranks = np.zeros(query_labels.shape, int)
    for q, query in enumerate(queries):
        for t, label in enumerate(query_labels[q]):
            nearest = {}
            for g, row in enumerate(gallery):
                if g != exclude[q] and gallery_labels[g, t] >= 0:
                    distance = ((query - row) ** 2).sum()
                    nearest[gallery_labels[g, t]] = min(distance, nearest.get(gallery_labels[g, t], np.inf))
            if label in nearest:
                others = [value for value in nearest if value != label]
                ranks[q, t] = 1 + sum(nearest[value] <= nearest[label] for value in others)
    return ranks


# Integer embeddings with few values: distances are exact and mostly tied.
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), block_size=st.sampled_from([4, 2048]))
def test_ranks_follow_the_definition(seed, block_size):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.integers(0, 4, (6, 2)), rng.integers(0, 4, (11, 2))
    query_labels = rng.integers(-1, 5, (6, 2))
    # All 4 and 2 values of the columns occur, so that all examples use the same shapes.
    gallery_labels = np.stack([np.r_[0:4, rng.integers(-1, 4, 7)], np.r_[0:2, rng.integers(-1, 2, 9)]], axis=1)
    exclude = rng.integers(-1, 11, 6)
    found = label_ranks(queries, gallery, query_labels, gallery_labels, exclude=exclude, block_size=block_size)
    np.testing.assert_array_equal(
        found.ranks, ranks_by_definition(queries, gallery, query_labels, gallery_labels, exclude)
    )
    assert found.num_values == (4, 2)


def test_ties_count_as_errors():
    gallery = np.array([[1.0], [-1.0], [1.0]])
    found = label_ranks(np.zeros((1, 1)), gallery, np.array([[0]]), np.array([[0], [1], [2]]))
    assert found.ranks.tolist() == [[3]]


def test_columns_without_any_label_are_undefined():
    labels = np.array([[-1, 5], [-1, 6]])
    found = label_ranks(np.eye(2), np.eye(2), labels, labels)
    assert found.num_values == (0, 2)
    assert found.ranks.tolist() == [[0, 1], [0, 1]]
    nothing = label_ranks(np.eye(2), np.eye(2), labels[:, :1], labels[:, :1])
    assert nothing.ranks.tolist() == [[0], [0]]


def test_match_curve_of_a_worked_example():
    # Among four defined queries, two have rank 1, one rank 3 and one rank 4.
    curve = cumulative_match_curve(np.array([1, 3, 0, 1, 4]), 5)
    np.testing.assert_allclose(curve, [2 / 4, 2 / 4, 3 / 4, 1, 1])
    assert cumulative_match_curve(np.array([0, 0]), 5) is None


@pytest.mark.parametrize("weighting", ["distance", "uniform"])
def test_votes_equal_sklearn(weighting):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(60, 4)), rng.normal(size=(80, 4))
    labels = rng.integers(0, 2, (80, 3))
    squared, neighbors = nearest_neighbors(queries, gallery, 5)
    predicted = knn_labels(np.sqrt(squared), neighbors, labels, weighting=weighting)
    # With two values and five voters, no vote is tied.
    expected = KNeighborsClassifier(5, weights=weighting).fit(gallery, labels).predict(queries)
    np.testing.assert_array_equal(predicted, expected)


def test_neighbors_at_distance_zero_outvote_all_others():
    labels = np.array([[0], [1], [1], [1]])
    predicted = knn_labels(np.array([[0.0, 1e-30, 1.0, 2.0]]), np.array([[0, 1, 2, 3]]), labels)
    assert predicted.tolist() == [[0]]


@pytest.mark.parametrize("weighting", ["distance", "uniform"])
def test_missing_labels_do_not_vote_even_at_distance_zero(weighting):
    labels = np.array([[-1, -1], [-1, -1], [-1, -1], [3, -1], [4, -1], [4, -1]])
    distances = np.array([[0, 0, 0.1, 1, 1.5, 1.5]])  # 2 / 1.5 > 1
    predicted = knn_labels(distances, np.arange(6)[None, :], labels, weighting=weighting)
    assert predicted.tolist() == [[4, -1]]


def test_a_tied_vote_goes_to_the_nearest():
    labels = np.array([[7], [2]])
    predicted = knn_labels(np.array([[1.0, 1.1]]), np.array([[0, 1]]), labels, weighting="uniform")
    assert predicted.tolist() == [[7]]


def test_bad_input_is_named():
    embeddings, labels = np.eye(2), np.zeros((2, 1), int)
    with pytest.raises(ValueError, match="query_labels has 2 columns, gallery_labels has 1"):
        label_ranks(embeddings, embeddings, np.zeros((2, 2), int), labels)
    with pytest.raises(ValueError, match=r"gallery_labels has shape \(3, 1\), expected \(2, T\)"):
        label_ranks(embeddings, embeddings, labels, np.zeros((3, 1), int))
    with pytest.raises(ValueError, match="gallery has 1 rows that are NaN"):
        label_ranks(embeddings, np.diag([1, np.nan]), labels, labels)
    with pytest.raises(ValueError, match="weighting is 'cubic', expected one of distance, uniform"):
        knn_labels(np.zeros((1, 1)), np.zeros((1, 1), int), labels, weighting="cubic")
    with pytest.raises(ValueError, match=r"have shapes \(1, 2\) and \(1, 1\), expected both \[Q, k\]"):
        knn_labels(np.zeros((1, 2)), np.zeros((1, 1), int), labels)
