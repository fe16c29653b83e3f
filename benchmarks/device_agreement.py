"""Checks that every exported loss gives the same numbers on the CPU and an accelerator, in both matmul precisions.

Each loss runs in float32 on two batches of the same shape and is compared with float64 on the CPU. One is `distinct`.
In the other, `coincident`, embeddings are equal, and so are the centers of each class: TF32 or bfloat16 products make
a squared distance of 0 negative, and its root NaN. The arguments of a loss are derived from its parameter names, so
that new losses need no change here.
"""

import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmetric
from jaxmetric.search import nearest_neighbors

B, D, C, K = 24, 8, 6, 3
TOLERANCE = 1e-4  # a product in TF32 is off by 1e-3, float32 by less than 1e-5 here
DISTINCT, COINCIDENT = "distinct", "coincident"

OUT_OF_TIME = "not measured: the time is over"

LOSSES = tuple(name for name in jaxmetric.__all__ if name.endswith("_loss"))


class Way(NamedTuple):
    """A device and a matmul precision for a loss in float32."""

    device: jax.Device
    precision: str

    @property
    def name(self) -> str:
        """The heading of the columns."""
        return f"{self.device.platform}, {self.precision}"


class Deviation(NamedTuple):
    """The error of a loss in float32, relative to the largest number of each array; NaN if not finite.

    Attributes:
      distinct: the error of the value and the gradients.
      coincident: the error of the value. Gradients need only be finite, since those of ties are not unique.
    """

    distinct: float
    coincident: float


class Agreement(NamedTuple):
    """The comparison of one loss.

    Attributes:
      name: the name of the loss.
      deviations: one for each `Way`; empty if the loss failed.
      error: the error in one line, or "".
    """

    name: str
    deviations: tuple[Deviation, ...]
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether all results of the loss agree."""
        # Written so that a NaN deviation counts as disagreement.
        return not self.error and all(d <= TOLERANCE for each in self.deviations for d in each)


def ways() -> tuple[Way, ...]:
    """Returns the CPU and the accelerator in both precisions; without an accelerator, the CPU in both."""
    default, cpu = jax.devices()[0], jax.devices("cpu")[0]
    both = Way(default, "default"), Way(default, "highest")
    return both if default.platform == "cpu" else (Way(cpu, "default"), *both)


def agreements(names: Sequence[str] = LOSSES, *, deadline: float = math.inf) -> Iterator[Agreement]:
    """Compares the losses, several at a time, and yields the results in order.

    Args:
      names: exported losses.
      deadline: the `time.monotonic()` after which no further loss is started.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(partial(agreement, deadline=deadline), names)


def agreement(name: str, *, deadline: float = math.inf) -> Agreement:
    """Compares one loss."""
    if time.monotonic() > deadline:
        return Agreement(name, (), OUT_OF_TIME)
    try:
        return Agreement(name, _deviations(getattr(jaxmetric, name)))
    except Exception as error:  # one loss must not end the run
        return Agreement(name, (), one_line(error))


def wrong_neighbors(k: int) -> int:
    """Counts wrong indices of exact search among many rows at equal distances.

    Coordinates are small integers, so distances are exact in any precision, and ties go to the lower index.
    """
    rng = np.random.default_rng(0)
    gallery, queries = (rng.integers(0, 3, (size, 4)).astype(np.float32) for size in (3000, 64))
    distances = np.square(queries[:, None] - gallery).sum(axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return int(np.sum(nearest_neighbors(queries, gallery, k)[1] != expected))


def one_line(error: Exception) -> str:
    """Returns the type of an error and the first line of its message, shortened."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:150]


def arguments(loss: Callable[..., Any], batch: str) -> dict[str, Any]:
    """Returns an argument for each parameter without a default.

    Args:
      loss: the loss.
      batch: `DISTINCT` or `COINCIDENT`.

    Raises:
      TypeError: if a parameter has an unknown name.
    """
    parameters = inspect.signature(loss).parameters
    rng = np.random.default_rng(0)

    def rows(*shape: int) -> np.ndarray:
        x = rng.normal(size=(*shape, D))
        x = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
        return x if batch == DISTINCT else np.broadcast_to(x[..., :1, :], x.shape).copy()

    columns = np.stack([np.arange(B) % C, np.arange(B) % 4], axis=1).astype(np.int32)
    # Groups of eight consecutive rows are equal: examples of different classes, and two of one class.
    embeddings = rows(B // 8, 8).reshape(B, D)
    made: dict[str, Callable[[], Any]] = {
        "key": lambda: jax.random.key(0),
        "embeddings": lambda: embeddings,
        "other": lambda: embeddings[::-1] if batch == COINCIDENT else rows(B // 8, 8).reshape(B, D),
        "labels": lambda: columns if "label_weights" in parameters else columns[:, 0],
        "centers": lambda: rows(C, K)[:, 0] if loss is jaxmetric.center_loss else rows(C, K),
        "proxies": lambda: rows(C, 1)[:, 0],
        "beta": lambda: np.linspace(0.8, 1.3, C, dtype=np.float32),
        "num_quadruplets": lambda: 20_000,
        "num_anchors": lambda: B,
    }
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    unknown = [name for name in required if name not in made]
    if unknown:
        raise TypeError(f"takes {', '.join(unknown)}, expected parameters among {', '.join(made)}")
    return {name: made[name]() for name in required}


def _deviations(loss: Callable[..., Any]) -> tuple[Deviation, ...]:
    batches = [arguments(loss, batch) for batch in (DISTINCT, COINCIDENT)]
    reference = Way(jax.devices("cpu")[0], "highest")
    programs = _Programs(loss)
    if "key" in batches[0]:  # random samples differ in float64
        expected = programs.results(reference, batches)
    else:
        with jax.enable_x64(True):
            wide = [{name: _in_float64(argument) for name, argument in batch.items()} for batch in batches]
            expected = _Programs(loss).results(reference, wide)
    found = (programs.results(way, batches) for way in ways())
    return tuple(
        Deviation(deviation(distinct, expected[0]), deviation(coincident, expected[1], value_only=True))
        for distinct, coincident in found
    )


def _in_float64(x: Any) -> Any:
    return x.astype(np.float64) if getattr(x, "dtype", None) == np.float32 else x


class _Programs:
    """The compiled programs of a loss, shared between ways that use the same program."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        self._loss = loss
        self._results: dict[tuple[jax.Device, str], list[Any]] = {}

    def results(self, way: Way, batches: list[dict[str, Any]]) -> list[Any]:
        """Computes the value and the gradients of each batch, on the host."""
        split = [_split(batch) for batch in batches]
        fixed = split[0][2]

        def value(floats: dict[str, Any], integers: dict[str, Any]) -> Any:
            return self._loss(**floats, **integers, **fixed)

        with jax.default_device(way.device), jax.default_matmul_precision(way.precision):
            inputs = [jax.device_put(each[:2], way.device) for each in split]
            lowered = jax.jit(jax.value_and_grad(value)).lower(*inputs[0])
            key = way.device, lowered.as_text()
            if key not in self._results:
                program = lowered.compile()
                self._results[key] = [jax.device_get(program(*each)) for each in inputs]
        return self._results[key]


def _split(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Splits arguments into arrays of floats, arrays of integers, and others, such as keys."""
    groups: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = ({}, {}, {})
    for name, argument in batch.items():
        is_array = isinstance(argument, np.ndarray)
        groups[0 if is_array and argument.dtype.kind == "f" else 1 if is_array else 2][name] = argument
    return groups


def deviation(found: Any, expected: Any, *, value_only: bool = False) -> float:
    """Computes the error of a value and gradients; NaN if one of them is not finite.

    Args:
      found: `(value, gradients)`.
      expected: the same in float64.
      value_only: whether gradients must be finite and may differ.

    Returns:
      The largest difference in an array, divided by the largest number of that array; the maximum over arrays.
    """
    if not all(np.isfinite(x).all() for x in jax.tree.leaves((found, expected))):
        return float("nan")
    pairs = zip(*map(jax.tree.leaves, (found[0], expected[0]) if value_only else (found, expected)), strict=True)
    return max(_relative(*pair) for pair in pairs)


def _relative(found: Any, expected: Any) -> float:
    difference = np.abs(np.asarray(found, np.float64) - expected).max(initial=0)
    return float(difference / (np.abs(expected).max(initial=0) or 1))
