"""Every exported loss in one form, one row each: what the conformance suite and the tests on many devices run."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmetric

B, T, D, C, K = 10, 2, 4, 3, 2


class Row(NamedTuple):
    """A loss as `call(parameters, embeddings [B, D], labels [B, T], **options)`."""

    loss: Callable[..., Any]
    call: Callable[..., Any]
    parameters: tuple[int, ...] | None = None  # shape of what it learns beside the embeddings
    class_vectors: bool = False  # whether labels index its parameters
    empty: tuple[str, ...] = ("one class", "all distinct")  # batches in which it has nothing to compare
    unreduced: bool = True  # whether it has reduction="none"
    tolerance: float = 1e-5  # of a sampled loss, relative: two draws of the same expectation
    relabelled: bool = True  # whether the names of the labels are free


def of_columns(loss: Callable[..., Any], *, empty=("one class", "all distinct"), **fixed: Any) -> Row:
    """A loss over `[B, T]` labels."""
    def call(parameters, embeddings, labels, **options):
        return loss(embeddings, labels, **(fixed | options))

    return Row(loss, call, empty=empty)


def of_one_column(loss: Callable[..., Any], *, empty=("one class", "all distinct"), **fixed: Any) -> Row:

    def call(parameters, embeddings, labels, **options):
        return loss(embeddings, labels[:, 0], **(fixed | options))

    return Row(loss, call, empty=empty)


def of_class_vectors(loss: Callable[..., Any], *parameters: int, **fixed: Any) -> Row:
    def call(parameters, embeddings, labels, **options):
        return loss(embeddings, labels[:, 0], parameters, **(fixed | options))

    return Row(loss, call, parameters, class_vectors=True, empty=())


ROWS = {
    "quadruplet": of_columns(jaxmetric.quadruplet_loss)._replace(unreduced=False),
    "sampled quadruplet": Row(
        jaxmetric.sampled_quadruplet_loss,
        lambda parameters, embeddings, labels, **options: jaxmetric.sampled_quadruplet_loss(
            jax.random.key(0), embeddings, labels, num_quadruplets=20_000, **options
        ),
        tolerance=0.05,
    ),
    "triplet, all": of_one_column(jaxmetric.triplet_loss),
    "triplet, semi-hard": of_one_column(jaxmetric.triplet_loss, mining="semi-hard"),
    "triplet, hard": of_one_column(jaxmetric.triplet_loss, mining="hard"),
    "soft triple": of_class_vectors(jaxmetric.soft_triple_loss, C, K, D),
    "normalized softmax": of_class_vectors(jaxmetric.normalized_softmax_loss, C, D),
}


def takes(row: Row, argument: str) -> bool:
    """Whether a loss has this argument."""
    return argument in inspect.signature(row.loss).parameters


def example(name: str, seed: int = 0, batch: int = B) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters (an empty array for a loss without), embeddings and labels: `[B, T]` with values below C."""
    rng = np.random.default_rng(seed)
    parameters = rng.normal(size=ROWS[name].parameters or (0,)).astype(np.float32)
    return parameters, rng.normal(size=(batch, D)).astype(np.float32), rng.integers(0, C, (batch, T))
