import json
from functools import partial

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from jaxmetric.metrics import evaluate_embeddings, evaluation, semantic_coherence
from jaxmetric.search import same_group_rows

NAMES = ("identity", "gender")


def random_sets(seed=0, queries=17, gallery=31):
    rng = np.random.default_rng(seed)

    def draw(size):
        labels = np.stack([rng.integers(0, 5, size), rng.integers(0, 2, size)], axis=1)
        return rng.normal(size=(size, 3)) + labels.sum(axis=1, keepdims=True), labels

    return *draw(queries), *draw(gallery)


def recall_and_map_by_loops(queries, query_labels, gallery, gallery_labels, k, excluded):
    """Computes Recall@k and MAP@R of one column by loops over the sorted gallery."""
    recalls, precisions = [], []
    for q, query in enumerate(queries):
        others = [g for g in range(len(gallery)) if not (excluded and g == q)]
        others.sort(key=lambda g: ((query - gallery[g]) ** 2).sum())
        hits = [gallery_labels[g] == query_labels[q] for g in others]
        total = sum(hits)
        if query_labels[q] >= 0 and total:
            recalls.append(any(hits[:k]))
            precisions.append(sum(sum(hits[: i + 1]) / (i + 1) for i in range(total) if hits[i]) / total)
    return np.mean(recalls), np.mean(precisions), len(recalls)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("neighbors_at_a_time", [40, 2**22])
def test_retrieval_equals_loops_with_and_without_blocks(monkeypatch, exclude_self, neighbors_at_a_time):
    monkeypatch.setattr(evaluation, "_NEIGHBORS_AT_A_TIME", neighbors_at_a_time)
    queries, query_labels, gallery, gallery_labels = random_sets()
    if exclude_self:
        queries, query_labels = gallery, gallery_labels
    query_labels = query_labels.copy()
    query_labels[:3, 0] = -1
    result = evaluate_embeddings(
        queries, query_labels, gallery, gallery_labels, NAMES, ks=(1, 4), exclude_self=exclude_self
    )
    for t, name in enumerate(NAMES):
        column = result["columns"][name]
        for k in (1, 4):
            recall, mean_precision, defined = recall_and_map_by_loops(
                queries, query_labels[:, t], gallery, gallery_labels[:, t], k, exclude_self
            )
            assert column["recall"][str(k)] == pytest.approx(recall)
        assert column["map_at_r"] == pytest.approx(mean_precision)
        assert (column["queries"], column["undefined"]) == (defined, len(queries) - defined)
        assert column["rank1"] == column["cmc"][0] == column["recall"]["1"]
        assert column["cmc_area"] == pytest.approx(np.mean(column["cmc"]))
        assert len(column["cmc"]) == column["values"] == (5, 2)[t]
        assert column["cmc"][-1] == 1


@pytest.mark.parametrize("exclude_self", [False, True])
def test_rows_of_the_same_identity_and_camera_are_excluded(exclude_self):
    """In the re-identification protocol, queries may have nothing left to find."""
    rng = np.random.default_rng(5)
    identities, cameras = rng.integers(0, 8, 30), rng.integers(0, 2, 30)
    identities[:3] = 8  # all from one camera, so nothing is left for these
    cameras[:3] = 0
    embeddings = rng.normal(size=(30, 3)) + 0.3 * identities[:, None]
    labels, groups = identities[:, None], np.stack([identities, cameras], axis=1)
    exclude = same_group_rows(groups, groups)
    result = evaluate_embeddings(
        embeddings, labels, embeddings, labels, ("identity",), exclude=exclude, exclude_self=exclude_self, ks=(1, 3)
    )
    recalls, precisions, ranks = {1: [], 3: []}, [], []
    for q in range(30):
        offered = [g for g in range(30) if (identities[g], cameras[g]) != (identities[q], cameras[q])]
        offered.sort(key=lambda g: ((embeddings[q] - embeddings[g]) ** 2).sum())
        hits = [identities[g] == identities[q] for g in offered]
        if not any(hits):
            continue
        for k in (1, 3):
            recalls[k].append(any(hits[:k]))
        precisions.append(sum(sum(hits[: i + 1]) / (i + 1) for i in range(sum(hits)) if hits[i]) / sum(hits))
        ranks.append(len({identities[g] for g in offered[: hits.index(True) + 1]}))
    column = result["columns"]["identity"]
    assert column["recall"] == {str(k): pytest.approx(np.mean(recalls[k])) for k in (1, 3)}
    assert column["map_at_r"] == pytest.approx(np.mean(precisions))
    assert column["cmc"] == pytest.approx([np.mean(np.array(ranks) <= r) for r in range(1, 10)])
    assert column["undefined"] == 30 - len(precisions) >= 3


def test_a_query_without_gallery_rows_is_undefined():
    embeddings, labels = np.arange(3.0)[:, None], np.array([[4], [4], [4]])
    exclude = np.array([[0, 1, 2], [1, -1, -1], [2, 1, -1]])
    result = evaluate_embeddings(embeddings, labels, embeddings, labels, ("identity",), exclude=exclude)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    column = result["columns"]["identity"]
    assert (column["queries"], column["undefined"], column["map_at_r"]) == (2, 1, 1)
    assert result["joint"] == {"k": 2, "all_correct": 1.0, "mean_correct": 1.0, "queries": 2}


def test_joint_inference_equals_sklearn():
    queries, query_labels, gallery, gallery_labels = random_sets(1, queries=80)
    np.random.default_rng(0).shuffle(gallery_labels)
    result = evaluate_embeddings(queries, query_labels, gallery, gallery_labels, NAMES, k=3)
    classifier = KNeighborsClassifier(3, weights=lambda distances: 1 / distances**2)
    predicted = classifier.fit(gallery, gallery_labels).predict(queries)
    for t, name in enumerate(NAMES):
        accuracy = accuracy_score(query_labels[:, t], predicted[:, t])
        assert result["columns"][name]["knn_accuracy"] == pytest.approx(accuracy)
    correct = predicted == query_labels
    assert result["joint"] == {
        "k": 3,
        "all_correct": pytest.approx(correct.all(axis=1).mean()),
        "mean_correct": pytest.approx(correct.mean()),
        "queries": len(queries),
    }


def test_coherence_is_computed_among_queries():
    queries, query_labels, gallery, gallery_labels = random_sets(2)
    result = evaluate_embeddings(queries, query_labels, gallery, gallery_labels, NAMES)
    first, second = np.triu_indices(len(queries), 1)
    distances = ((queries[first] - queries[second]) ** 2).sum(axis=1)
    disagreement = (query_labels[first] != query_labels[second]).sum(axis=1)
    expected = scipy.stats.spearmanr(distances, disagreement).statistic
    assert result["coherence"]["spearman"] == pytest.approx(expected, abs=1e-6)


def test_the_seed_selects_the_pairs_of_the_coherence(monkeypatch):
    monkeypatch.setattr(evaluation, "semantic_coherence", partial(semantic_coherence, max_pairs=50))
    sets = random_sets(2)
    first, again, other = (evaluate_embeddings(*sets, NAMES, seed=seed)["coherence"] for seed in (1, 1, 2))
    assert first == again != other


def test_joint_counts_the_queries_defined_in_every_column():
    embeddings = np.arange(4.0)[:, None]
    labels = np.array([[0, 0], [0, -1], [0, 1], [7, 1]])
    gallery_labels = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    result = evaluate_embeddings(embeddings, labels, embeddings, gallery_labels, NAMES, k=1)
    # Query 1 has no gender, and the gallery has no image of identity 7.
    assert result["joint"] == {"k": 1, "all_correct": 1.0, "mean_correct": 1.0, "queries": 2}
    assert [result["columns"][name]["undefined"] for name in NAMES] == [1, 1]


def test_an_undefined_result_is_json_without_nan():
    labels = np.full((3, 2), -1)
    result = evaluate_embeddings(np.eye(3), labels, np.eye(3), labels, NAMES)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["columns"]["gender"] == {
        "recall": dict.fromkeys(("1", "2", "4", "8")),
        "map_at_r": None,
        "rank1": None,
        "cmc": [],
        "cmc_area": None,
        "knn_accuracy": None,
        "values": 0,
        "queries": 0,
        "undefined": 3,
    }
    assert result["joint"] == {"k": 3, "all_correct": None, "mean_correct": None, "queries": 0}


GOOD = {
    "query_embeddings": np.eye(3),
    "query_labels": np.zeros((3, 2), int),
    "gallery_embeddings": np.eye(3),
    "gallery_labels": np.zeros((3, 2), int),
    "column_names": NAMES,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_embeddings": np.diag([1, np.nan, 1])}, "queries has 1 rows that are NaN.*the first is row 1"),
        ({"column_names": ("a",)}, r"column_names is \('a',\), expected 2 distinct names"),
        ({"column_names": ("a", "a")}, r"column_names is \('a', 'a'\), expected 2 distinct names"),
        ({"gallery_labels": np.zeros((3, 1), int)}, "query_labels has 2 columns, gallery_labels has 1"),
        ({"query_labels": np.zeros((2, 2), int)}, r"query_labels has shape \(2, 2\), expected \(3, T\)"),
        ({"ks": ()}, "ks is empty, expected at least one"),
        ({"k": 0}, "k is 0, expected at least 1"),
        (
            {"gallery_embeddings": np.eye(4)[:, :3], "gallery_labels": np.zeros((4, 2), int), "exclude_self": True},
            r"expected equal shapes, got \(3, 3\) and \(4, 3\)",
        ),
        (
            {"gallery_embeddings": np.zeros((0, 3)), "gallery_labels": np.zeros((0, 2), int)},
            "3 queries have 0 gallery rows to find, expected at least 1 of each",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(**(GOOD | change))
