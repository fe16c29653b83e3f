"""The options of every public function that takes some, by kind: what the tests of their checks run through."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from loss_rows import ONE_OF_EACH_ENGINE, ROWS, example

import jaxmetric
from jaxmetric import mining

_KEY = jax.random.key(0)
_DISTANCES = np.float32([[0.2, 0.5, 0.4, 0.7]])
_POSITIVES, _NEGATIVES = np.array([[1, 1, 0, 0]], bool), np.array([[0, 0, 1, 1]], bool)
_POINTS = example("contrastive")[1]
_SAME = np.arange(len(_POINTS))[:, None] % 2 == np.arange(len(_POINTS))[None, :] % 2

_MASKED = {"distances": _DISTANCES, "positives": _POSITIVES, "negatives": _NEGATIVES}
_MINERS = {
    name: partial(getattr(mining, name), **_MASKED)
    for name in ("batch_easy_hard", "triplet_margin", "semi_hard", "multi_similarity", "pair_margin", "hard_aware")
}
_MINERS["distance_weighted"] = partial(mining.distance_weighted, _KEY, dim=4, **_MASKED)
_MINERS["uniform_histogram"] = partial(mining.uniform_histogram, _KEY, **_MASKED)
_MINERS["angular"] = partial(mining.angular, _POINTS, _SAME, ~_SAME)

# Every call takes options only; what it needs beside them is given.
CALLS: dict[str, Callable[..., Any]] = {
    **{row.loss.__name__: partial(row.call, *example(name)) for name, row in reversed(ROWS.items())},
    "sampled_quadruplet_loss": partial(
        jaxmetric.sampled_quadruplet_loss, _KEY, _POINTS, np.arange(len(_POINTS)) // 2, num_quadruplets=9
    ),
    "anchored_quadruplet_loss": partial(
        jaxmetric.anchored_quadruplet_loss, _KEY, _POINTS, np.arange(len(_POINTS)) // 2, num_anchors=2
    ),
    **_MINERS,
    "quadruplet_hinge": partial(jaxmetric.quadruplet_hinge, _POINTS[:4], np.arange(4)),
    "effective_centers": partial(jaxmetric.effective_centers, np.ones((2, 3, 4), np.float32)),
    "lp_regularizer": partial(jaxmetric.lp_regularizer, _POINTS),
    "pairwise_lp": partial(jaxmetric.pairwise_lp, _POINTS, p=2),
    "init_centers": partial(jaxmetric.init_centers, _KEY, num_classes=4, centers_per_class=2, dim=3),
    "sample_classes": partial(jaxmetric.sample_classes, _KEY, np.arange(1), num_classes=8, num_sampled=1),
    "self_supervised": lambda **options: jaxmetric.views.self_supervised(jaxmetric.supcon_loss, **options)(
        _POINTS, _POINTS
    ),
    "view_labels": partial(jaxmetric.views.view_labels, batch=3, num_views=2),
    "label_agreement": partial(jaxmetric.label_agreement, example("contrastive")[2]),
    "memory.init": partial(jaxmetric.memory.init, size=4, dim=3),
}


def signature(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a function of `CALLS` by name."""
    if name == "self_supervised":
        return dict(inspect.signature(jaxmetric.views.self_supervised).parameters)
    function = next((row.loss for row in ROWS.values() if row.loss.__name__ == name), None)
    function = function or getattr(CALLS[name], "func", CALLS[name])
    return dict(inspect.signature(function).parameters)


# Arguments that are no options, and options that an engine checks for all of its losses.
_ARRAYS = {"embeddings", "embeddings4", "labels", "labels4", "other", "key", "centers", "proxies", "beta", "loss"}
_ARRAYS |= {"distances", "positives", "negatives", "x", "y"}
_SHARED = {"where", "weights", "class_weights", "reduction", "has_aux", "pairs", "references", "label_weights"}
_SHARED |= {"similarity", "distance"}


def every_option() -> list[Any]:
    """Returns parameters of a test: the functions and all of their options, some of them slow."""
    tested = {ROWS[name].loss.__name__ for name in ONE_OF_EACH_ENGINE if name in ROWS}
    return [
        pytest.param(name, option, marks=pytest.mark.slow)
        if name.endswith("_loss") and name not in tested and option in _SHARED
        else (name, option)
        for name in CALLS
        for option in signature(name)
        if option not in _ARRAYS
    ]
