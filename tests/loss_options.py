"""Every option of every loss, found in its signature: what the tests of transformations run through."""

import inspect
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

    static: dict[str, Any]
    of_examples: dict[str, Any]  # arrays with a row for each example
    shared: dict[str, Any]  # arrays that are the same for all


def options(static: Any = (), of_examples: Any = (), shared: Any = ()) -> Options:
    """Options with nothing where nothing is given."""
    return Options(dict(static), dict(of_examples), dict(shared))


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
        " ".join(f"{key}={value}" for key, value in zip(alternatives, values, strict=True)): options(
            dict(zip(alternatives, values, strict=True))
        )
        for values in product(*alternatives.values())
    }
    for reduction in ("mean_active", "sum", "none") if ROWS[name].unreduced else ("mean_active", "sum"):
        found[reduction] = options({"reduction": reduction})
    for key in {"distance", "similarity"} & set(keywords):
        for value in choices(name, key):
            found[f"{key}={value}"] = options({key: value})
        found[f"{key} of one's own"] = options({key: plain_squared_euclidean if key == "distance" else plain_product})
        if takes(ROWS[name], "pairs"):  # all but that of centroids, which makes its own
            found[f"{key} as a matrix"] = options(of_examples={key: rng.random((B, B), np.float32)})
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
    absent = {"triplets"}  # which stand for labels
    for key in (key for key, p in keywords.items() if p.default is None and key not in absent):
        if key in of_examples:
            found[key] = options(of_examples={key: of_examples[key]})
        elif key in shared:
            found[key] = options(shared={key: shared[key]})
        else:
            found[key] = options({key: static[key]})
    if "label_weights" in keywords:  # one of several columns
        found["single labels"] = options(of_examples={"where": rng.random((B, T)) < 0.8})
    given = {key: value for key, value in of_examples.items() if key in keywords and key != "references"}
    found["everything"] = options(
        {"has_aux": True}, given, {key: value for key, value in shared.items() if key in keywords}
    )
    return found


def numbers(name: str) -> dict[str, np.float32]:
    """The hyper-parameters of a loss that may be traced, at their defaults."""
    keywords = inspect.signature(ROWS[name].loss).parameters.values()
    return {
        p.name: np.float32(p.default) for p in keywords if p.kind is p.KEYWORD_ONLY and isinstance(p.default, float)
    }


def choices(name: str, option: str) -> list[str]:
    """The names that an option takes, which the error at another name lists."""
    try:
        ROWS[name].call(*example(name), **{option: "nonsense"})
    except ValueError as error:
        names = str(error).partition("expected one of ")[2].split(", ")
        return [each for each in names if not each.startswith("a function")]
    raise AssertionError(f"{option} of {name} takes any string")


def plain_squared_euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=-1)


def plain_product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.tanh(jaxmetric.pairwise_dot_product(x, y))
