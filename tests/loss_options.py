"""Every option of every loss, found in its signature: what the tests of transformations run through."""

import inspect
import re
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from loss_rows import ROWS, B, C, D, T, example, takes

import jaxmetric
from jaxmetric.references import References


class Options(NamedTuple):
    """Keyword arguments of a loss, by what becomes of them where a batch is divided among devices."""

    static: dict[str, Any] = {}
    of_examples: dict[str, Any] = {}  # arrays with a row for each example
    shared: dict[str, Any] = {}  # arrays that are the same for all


def variants(name: str, seed: int = 0) -> dict[str, Options]:
    """Calls of a loss that together use every option it has, and all combinations of its flags and choices."""
    rng = np.random.default_rng(seed)
    keywords = {p.name: p for p in inspect.signature(ROWS[name].loss).parameters.values() if p.kind is p.KEYWORD_ONLY}
    fixed = {"reduction", "has_aux", "distance", "similarity"}
    alternatives = {
        key: (False, True) if isinstance(p.default, bool) else choices(name, key)
        for key, p in keywords.items()
        if isinstance(p.default, (bool, str)) and key not in fixed
    }
    found = {
        " ".join(f"{key}={value}" for key, value in zip(alternatives, values, strict=True)): Options(
            dict(zip(alternatives, values, strict=True))
        )
        for values in product(*alternatives.values())
    }
    for reduction in ("mean_active", "sum", "none") if ROWS[name].unreduced else ("mean_active", "sum"):
        found[reduction] = Options({"reduction": reduction})
    for key in {"distance", "similarity"} & set(keywords):
        for value in choices(name, key):
            found[f"{key}={value}"] = Options({key: value})
        found[f"{key} of one's own"] = Options({key: plain_squared_euclidean if key == "distance" else plain_product})
        if takes(ROWS[name], "pairs"):  # all but that of centroids, which makes its own
            found[f"{key} as a matrix"] = Options(of_examples={key: rng.random((B, B), np.float32)})
    of_examples = {
        "where": rng.random(B) < 0.8,
        "weights": rng.random(B, np.float32),
        "pairs": rng.random((B, B)) < 0.8,
        "references": References(
            rng.normal(size=(B, D)).astype(np.float32),
            rng.integers(0, C, (B, T if "label_weights" in keywords else 1)),
            where=rng.random(B) < 0.8,
            weights=rng.random(B, np.float32),
            own=np.arange(B) - B // 2,
        ),
    }
    shared = {
        "class_weights": rng.random(C, np.float32),
        "histogram": rng.random(16, np.float32),
        "alpha": np.float32(1.3),
    }
    static = {"label_weights": (2.0, 0.5), "ordinal": (0, C), "axis_name": None}
    for key in (key for key, p in keywords.items() if p.default is None):
        if key in of_examples:
            found[key] = Options(of_examples={key: of_examples[key]})
        elif key in shared:
            found[key] = Options(shared={key: shared[key]})
        else:
            found[key] = Options({key: static[key]})
    if "label_weights" in keywords:  # one of several columns
        found["single labels"] = Options(of_examples={"where": rng.random((B, T)) < 0.8})
    given = {key: value for key, value in of_examples.items() if key in keywords and key != "references"}
    found["everything"] = Options(
        {"has_aux": True}, given, {key: value for key, value in shared.items() if key in keywords}
    )
    return found


def numbers(name: str) -> dict[str, np.float32]:
    """The hyper-parameters of a loss that may be traced, at their defaults."""
    keywords = inspect.signature(ROWS[name].loss).parameters.values()
    return {p.name: np.float32(p.default) for p in keywords if isinstance(p.default, float)}


def choices(name: str, option: str) -> list[str]:
    """The names that an option takes, which the error at another name lists."""
    try:
        ROWS[name].call(*example(name), **{option: "nonsense"})
    except ValueError as error:
        listed = re.search(r"expected one of ([\w, -]+)", str(error))
        assert listed, error
        return [each for each in listed.group(1).split(", ") if each not in ("a function or an array", "a function")]
    raise AssertionError(f"{option} of {name} takes any string")


def plain_squared_euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=-1)


def plain_product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.tanh(jaxmetric.pairwise_dot_product(x, y))
