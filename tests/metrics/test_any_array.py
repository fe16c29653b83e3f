"""Search and metrics accept any array and need no implicit promotion: tests over all public functions."""

import inspect

import jax
import numpy as np
import pytest

from jaxmetric import metrics, search

RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(size=(16, 8)).astype(np.float32)
GALLERY = RNG.normal(size=(800, 8)).astype(np.float32)  # long enough for a search on the device
LABELS = RNG.integers(0, 3, (16, 2))
NEIGHBORS = RNG.integers(0, 16, (16, 4))
DISTANCES = np.sort(RNG.random((16, 4)), axis=1)
FOUND = metrics.relevance(NEIGHBORS, LABELS[:, 0], LABELS[:, 0])
FOUND = FOUND._replace(counts=np.minimum(FOUND.counts, 4))
SCORE = metrics.recall_at_k(FOUND, 2)

CALLS = {
    "nearest_neighbors": (lambda x, y: search.nearest_neighbors(x, y, 3), EMBEDDINGS, GALLERY),
    "nearest_neighbors by cosine": (
        lambda x, y, rows: search.nearest_neighbors(x, y, 3, metric="cosine", exclude=rows),
        EMBEDDINGS,
        GALLERY,
        NEIGHBORS,
    ),
    "same_group_rows": (search.same_group_rows, LABELS, LABELS),
    "evaluate_embeddings": (
        lambda x, labels, rows: metrics.evaluate_embeddings(
            x, labels, x, labels, ("a", "b"), exclude_self=True, exclude=rows
        ),
        EMBEDDINGS,
        LABELS,
        NEIGHBORS,
    ),
    "label_ranks": (lambda x, labels: metrics.label_ranks(x, x, labels, labels), EMBEDDINGS, LABELS),
    "cumulative_match_curve": (lambda ranks: metrics.cumulative_match_curve(ranks, 16), NEIGHBORS[:, 0]),
    "knn_labels": (metrics.knn_labels, DISTANCES, NEIGHBORS, LABELS),
    "relevance": (
        lambda rows, labels: metrics.relevance(rows, labels[:, 0], labels[:, 0], exclude=rows),
        NEIGHBORS,
        LABELS,
    ),
    "recall_at_k": (lambda *found: metrics.recall_at_k(metrics.Relevance(*found), 2), *FOUND),
    "precision_at_k": (lambda *found: metrics.precision_at_k(metrics.Relevance(*found), 2), *FOUND),
    "r_precision": (lambda *found: metrics.r_precision(metrics.Relevance(*found)), *FOUND),
    "map_at_r": (lambda *found: metrics.map_at_r(metrics.Relevance(*found)), *FOUND),
    "join_scores": (lambda *score: metrics.join_scores([metrics.Score(*score)] * 2), *SCORE),
    "semantic_coherence": (metrics.semantic_coherence, EMBEDDINGS, LABELS),
    "semantic_coherence of some pairs": (
        lambda x, labels: metrics.semantic_coherence(x, labels, max_pairs=50),
        EMBEDDINGS,
        LABELS,
    ),
    "spearman": (metrics.spearman, DISTANCES[:, 0], DISTANCES[:, 1]),
}
RESULTS = {"LabelRanks", "Relevance", "Score"}
HELPERS = {  # of the metrics
    *("nearest_rows", "stack_blocks", "number_blocks", "query_blocks", "offered_rows", "host_array"),
    *("host_integers", "check_count", "check_embeddings", "check_pair", "check_exclude"),
}


def check_equal(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)


def test_all_public_functions_are_covered():
    public = {
        name
        for name, each in inspect.getmembers(search, inspect.isfunction)
        if each.__module__ == search.__name__ and not name.startswith("_")
    }
    assert {*metrics.__all__, *public} - RESULTS - HELPERS == {name for name in CALLS if " " not in name}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_promoted_implicitly(name):
    function, *arrays = CALLS[name]
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        function(*arrays)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shape", [(8,), (4, 2)])
def test_explicit_mesh_axes_give_the_same_results_as_host_arrays(name, shape):
    function, *arrays = CALLS[name]
    mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)])
    rows = jax.NamedSharding(mesh, jax.P("data"))
    placed = [jax.device_put(array, rows) for array in arrays]
    expected = function(*arrays)
    check_equal(function(*placed), expected)
    with jax.set_mesh(mesh):
        check_equal(function(*placed), expected)


@pytest.mark.parametrize("name", CALLS)
def test_lists_are_accepted_as_arrays(name):
    function, *arrays = CALLS[name]
    if name != "relevance":  # its call takes a single column of labels
        check_equal(function(*(array.tolist() for array in arrays)), function(*arrays))


LABELED = ("same_group_rows", "evaluate_embeddings", "label_ranks", "semantic_coherence", "knn_labels")


@pytest.mark.parametrize("name", LABELED)
def test_labels_that_agree_in_their_low_bits_are_distinguished(name):
    """For example, identities built from a time and a counter, which 32 bits or float64 would merge."""
    function, *arrays = CALLS[name]
    expected = function(*arrays)
    wide = {
        "int64": LABELS.astype(np.int64) << 33,
        "beyond float64": LABELS.astype(np.int64) + 2**60,
        "uint64": LABELS.astype(np.uint64) + 2**60,
    }
    for values in wide.values():
        found = function(*(values if array is LABELS else array for array in arrays))
        wanted = np.take(np.unique(values), expected) if name == "knn_labels" else expected
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("name", LABELED)
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.full((16, 2), "a"), id="text"),
        pytest.param(LABELS.astype(object), id="objects"),
        pytest.param(LABELS.astype(float), id="floats"),
        pytest.param(np.where(LABELS > 0, LABELS, np.nan), id="NaN"),
        pytest.param(LABELS > 0, id="booleans"),
        pytest.param(np.full((16, 2), 2**63, np.uint64), id="too large"),
        pytest.param([[1, 2], [3]], id="ragged"),
    ],
)
def test_labels_that_are_not_integers_are_named(name, labels):
    function, *arrays = CALLS[name]
    arrays = [labels if array is LABELS else array for array in arrays]
    with pytest.raises((TypeError, ValueError), match=r"^\w*(labels|groups) (has|is) .*expected") as error:
        function(*arrays)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CALLS)
def test_traced_arrays_are_named(name):
    function, *arrays = CALLS[name]
    if name == "join_scores":
        return
    with pytest.raises(TypeError, match=r"^\w+ is traced, expected an array"):
        jax.jit(function)(*arrays)
