"""Times losses, search and a training step on the current device against a lower bound, and checks them on the CPU.

`python -m benchmarks.accelerator [--small] [section ...]` takes less than 6 minutes on one GPU. Sections are
`agreement`, `quadruplet`, `triplet`, `pairs`, `soft_triple`, `search` and `encoder`. The exit status is 1 if numbers
disagree or a row could not be measured. `--small` takes seconds on a CPU: the same code, tiny sizes, two losses.
"""

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmetric
from benchmarks import class_vectors, losses, quadruplet, triplet
from benchmarks.device_agreement import (
    LOSSES,
    OUT_OF_TIME,
    TOLERANCE,
    Agreement,
    agreements,
    deviation,
    one_line,
    ways,
    wrong_neighbors,
)
from benchmarks.measure import HAVE_PEERS, Candidate, compiled, measure, megabytes, print_versions
from jaxmetric.losses._engine.ordered_hinge import Constants, sums_by_searching, sums_by_sorting
from jaxmetric.search import nearest_neighbors

HIGHEST = jax.lax.Precision.HIGHEST
SECONDS = 330.0  # no row is started after this time


class Sizes(NamedTuple):
    """The sizes of the measurements.

    Attributes:
      quadruplet: batch sizes.
      triplet: batch sizes.
      pairs: batch sizes of the other losses over pairs.
      classes: numbers of classes of `soft_triple_loss`.
      gallery: rows and columns of the gallery.
      queries: number of gallery rows used as queries.
      encoder: a name of `jaxmetric.encoders.ENCODERS`, the side of its images, and the number of images per step.
      product: the side of the square matrices whose product measures the device's matmul speed.
      losses: the losses to compare with the CPU.
      rounds: largest number of runs of a row.
      seconds: time after which a row is not run again.
    """

    quadruplet: tuple[int, ...] = (256, 1024, 4096)
    triplet: tuple[int, ...] = (1024, 4096)
    pairs: tuple[int, ...] = (1024, 8192)
    classes: tuple[int, ...] = (1000, 11_318, 100_000)
    gallery: tuple[int, int] = (60_502, 512)
    queries: int = 6144
    encoder: tuple[str, int, int] = ("resnet50", 224, 128)
    product: int = 4096
    losses: tuple[str, ...] = LOSSES
    rounds: int = 10
    seconds: float = 2.0


SMALL = Sizes(
    quadruplet=(16,),
    triplet=(16,),
    pairs=(16,),
    classes=(10,),
    gallery=(100, 8),
    queries=20,
    encoder=("tiny", 32, 4),
    product=64,
    losses=("soft_triple_loss", "supcon_loss"),
    rounds=2,
    seconds=0.0,
)


class Row(NamedTuple):
    """One line of a table: its name, and a function that compiles and returns its candidate."""

    name: str
    make: Callable[[], Candidate]


class Table(NamedTuple):
    """Rows and their common lower bound.

    Attributes:
      title: the heading.
      limit: a lower bound for the work of the rows.
      rows: the rows to compare with it.
      forms: names of rows that must compute the same numbers; the fastest is named.
    """

    title: str
    limit: Row
    rows: list[Row]
    forms: tuple[str, ...] = ()


def program(name: str, function: Callable[..., Any], *arguments: Any) -> Row:
    """Makes a row that runs one compiled function."""
    return Row(name, partial(compiled, name, function, *arguments))


def gradients(name: str, loss: Callable[..., Any], *arguments: Any, argnums: int | tuple[int, ...] = 0) -> Row:
    """Makes a row that computes a loss and its gradients."""
    return program(name, jax.value_and_grad(loss, argnums=argnums), *arguments)


# --- what is measured -------------------------------------------------------------------------------------------------


def quadruplet_tables(sizes: Sizes) -> Iterator[Table]:
    searching, sorting = "its engine by searching", "its engine by sorting"
    for batch in sizes.quadruplet:
        embeddings, labels = quadruplet.example(batch)
        distances = quadruplet.distances_of(embeddings)
        engine = distances, pair_constants(labels)
        yield Table(
            f"quadruplet_loss, B = {batch:,}, T = {quadruplet.T}",
            program(f"limit: one jnp.sort of its {distances.size:,} distances", jnp.sort, distances),
            [
                program("one sort of their bits, as integers", jax.lax.sort, distances.view(np.int32)),
                gradients("quadruplet_loss", jaxmetric.quadruplet_loss, embeddings, labels),
                program(searching, partial(sums_by_searching, num_levels=quadruplet.T + 1), *engine),
                program(sorting, partial(sums_by_sorting, num_levels=quadruplet.T + 1), *engine),
            ],
            forms=(searching, sorting),
        )


def pair_constants(labels: np.ndarray) -> Constants:
    """Returns the levels and weights of all pairs of a batch, as used by the quadruplet loss."""
    first, second = np.triu_indices(len(labels), 1)
    levels = np.sum(labels[first] != labels[second], axis=1, dtype=np.int32)
    lower, ones = jnp.asarray(levels), jnp.ones(levels.shape)
    return Constants(lower, lower, ones, ones, jnp.asarray(0.1))


def triplet_tables(sizes: Sizes) -> Iterator[Table]:
    for batch in sizes.triplet:
        embeddings, labels = triplet.example(batch)
        distances = np.asarray(jaxmetric.pairwise_squared_euclidean(jnp.asarray(embeddings)))
        rows = [gradients("triplet_loss", jaxmetric.triplet_loss, embeddings, labels)]
        yield Table(
            f"triplet_loss, B = {batch:,}, {triplet.PER_CLASS} images a class",
            program(f"limit: jnp.sort of {batch:,} rows of distances", jnp.sort, distances),
            rows + (peer("triplet_loss", batch) if batch == sizes.triplet[0] else []),
        )


def pair_tables(sizes: Sizes) -> Iterator[Table]:
    names = ("supcon_loss", "ntxent_loss", "siglip_loss", "multi_similarity_loss")
    for batch in sizes.pairs:
        embeddings, labels = losses.example(batch)
        rows = [program("the same products, default precision", partial(products, precision=None), embeddings)]
        for name in names:
            rows.append(gradients(name, getattr(jaxmetric, name), embeddings, labels))
            # PML's NT-Xent enumerates pairs of pairs: at B = 1,024 it needs more than 100 GB.
            if batch == sizes.pairs[0] and name in ("supcon_loss", "multi_similarity_loss"):
                rows += peer(name, batch)
        yield Table(
            f"Losses over pairs, B = {batch:,}, D = {losses.DIM}",
            program("limit: the product and its two gradients", products, embeddings),
            rows,
        )


def products(x: jax.Array, precision: Any = HIGHEST) -> Any:
    """Returns the matrix products needed for all pairwise similarities and their gradient."""
    similarity, pull_back = jax.vjp(lambda x, y: jnp.matmul(x, y.T, precision=precision), x, x)
    return pull_back(similarity)


def soft_triple_tables(sizes: Sizes) -> Iterator[Table]:
    batch, dim, num_centers = 128, 64, 10
    for num_classes in sizes.classes:
        rng = np.random.default_rng(0)
        embeddings = rng.standard_normal((batch, dim), np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        labels = rng.integers(0, num_classes, batch).astype(np.int32)
        centers = np.asarray(jaxmetric.init_centers(jax.random.key(0), num_classes, num_centers, dim))
        rows = [
            gradients(
                f"soft_triple_loss, tau = {tau:g}",
                partial(jaxmetric.soft_triple_loss, tau=tau),
                embeddings,
                labels,
                centers,
                argnums=(0, 2),
            )
            for tau in (0.0, 0.2)
        ]
        if num_classes == sizes.classes[0] and have_peers():
            rival = class_vectors.RIVALS[0]
            of_peer = class_vectors.example(batch, num_classes, rival.num_centers)
            rows.append(
                Row(
                    f"pytorch-metric-learning, tau = 0, D = {class_vectors.DIM}",
                    partial(on_torch_device, partial(class_vectors.in_torch, rival, *of_peer)),
                )
            )
        yield Table(
            f"soft_triple_loss, B = {batch}, C = {num_classes:,}, K = {num_centers}, D = {dim}",
            program("limit: the product with all centers and its two gradients", class_products, embeddings, centers),
            rows,
        )


def class_products(embeddings: jax.Array, centers: jax.Array) -> Any:
    """Returns the matrix products needed for the similarities to all centers and their gradients."""
    rows = centers.reshape(-1, centers.shape[-1])
    similarity, pull_back = jax.vjp(lambda x, w: jnp.matmul(w, x.T, precision=HIGHEST), embeddings, rows)
    return pull_back(similarity)


def search_tables(sizes: Sizes) -> Iterator[Table]:
    size, dim = sizes.gallery
    gallery = np.random.default_rng(0).standard_normal((size, dim), np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries, own = gallery[: sizes.queries], np.arange(sizes.queries)
    k = 10
    name = f"nearest_neighbors, k = {k}, from and to the host"
    search = partial(nearest_neighbors, queries, gallery, k, exclude=own)
    copy = "copying the gallery to the device"
    yield Table(
        f"Exact search, {sizes.queries:,} queries among {size:,} x {dim}",
        program("limit: the product, and the largest of each query", largest_similarities, queries, gallery),
        [
            Row(copy, lambda: Candidate(copy, lambda: jax.block_until_ready(jax.device_put(gallery)))),
            Row(name, lambda: Candidate(name, search)),
        ],
    )


def largest_similarities(queries: jax.Array, gallery: jax.Array) -> jax.Array:
    """Computes the similarity of each query to its nearest neighbor, `[Q]`, in blocks of queries."""

    def of_query(query: jax.Array) -> jax.Array:
        return jnp.max(jnp.matmul(gallery, query, precision=HIGHEST))

    return jax.lax.map(of_query, queries, batch_size=2048)


def encoder_tables(sizes: Sizes) -> Iterator[Table]:
    if importlib.util.find_spec("flax") is None:
        print("\nflax is not installed: no training step of an encoder")
        return
    name, side, batch = sizes.encoder
    step, *arguments = training_step(name, side, batch)
    flops = operations(step, *arguments)
    times = max(1, round(flops / (2 * sizes.product**3)))
    square = np.full((sizes.product, sizes.product), 1 / sizes.product, jnp.bfloat16)  # equal to its own square
    yield Table(
        f"A training step of {name} in bfloat16, {batch} images of {side} pixels: {flops / 1e12:.3g} Tflop",
        program(
            f"limit: as much arithmetic, {times} products of {sizes.product:,} x {sizes.product:,}",
            partial(repeated_product, times=times),
            square,
        ),
        [program(f"{name} and soft_triple_loss, a step of SGD", step, *arguments)],
    )


def training_step(name: str, side: int, batch: int) -> tuple[Any, ...]:
    """Returns a step of SGD, `(variables, images, labels) -> (loss, variables)`, and its arguments."""
    from jaxmetric.encoders import make_encoder

    encoder = make_encoder(name, dtype=jnp.bfloat16)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, side, side, 3), np.float32)
    labels = rng.integers(0, 100, batch).astype(np.int32)
    # Initializing would need a compilation, and the values do not affect the time.
    shapes = jax.eval_shape(partial(encoder.init, train=False), jax.random.key(0), images[:1])
    variables = jax.tree.map(lambda x: np.float32(0.05) * np.abs(rng.standard_normal(x.shape, np.float32)), shapes)
    learned = variables["params"], jaxmetric.init_centers(jax.random.key(1), 100, 10, 128)

    def step(learned: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss_fn(learned: Any) -> Any:
            params, centers = learned
            embeddings, updated = encoder.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            return jaxmetric.soft_triple_loss(embeddings, labels, centers), updated["batch_stats"]

        (loss, batch_stats_after), slopes = jax.value_and_grad(loss_fn, has_aux=True)(learned)
        return loss, jax.tree.map(lambda x, slope: x - 0.01 * slope, learned, slopes), batch_stats_after

    return step, learned, variables["batch_stats"], images, labels


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Counts the arithmetic operations of a function before compilation; a multiply-add counts as two."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    with jax.default_device(jax.devices("cpu")[0]):  # not every accelerator plugin counts operations
        analysis: Any = jax.jit(function).lower(*shapes).cost_analysis()
    return analysis["flops"]


def repeated_product(x: jax.Array, *, times: int) -> jax.Array:
    return jax.lax.fori_loop(0, times, lambda _, y: jnp.matmul(x, y), x)


# --- peers ------------------------------------------------------------------------------------------------------------


def have_peers() -> bool:
    """Returns whether pytorch-metric-learning is installed and can use the device that jax uses."""
    if not HAVE_PEERS:
        return False
    import torch

    return jax.default_backend() == "cpu" or (jax.default_backend() == "gpu" and torch.cuda.is_available())


def peer(name: str, batch: int) -> list[Row]:
    """Returns the loss of the same name in pytorch-metric-learning, if it can run here."""
    make = partial(on_torch_device, partial(losses.in_torch, name, batch))
    return [Row(f"pytorch-metric-learning, {name}", make)] if have_peers() else []


def on_torch_device(make: Callable[[], Candidate]) -> Candidate:
    """Calls `make` with PyTorch's default device set to the device that jax uses."""
    import torch

    with torch.device("cpu" if jax.default_backend() == "cpu" else "cuda"):
        return make()


# --- printing ---------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """The cost of a row: median seconds, bytes, and seconds of compilation; and its result if requested."""

    seconds: float
    peak: int | None
    compilation: float | None
    result: Any


def measured(row: Row, sizes: Sizes, deadline: float, *, keep: bool) -> Measured:
    """Compiles a row and runs it a few times; `keep` requests its result."""
    if time.monotonic() > deadline:
        raise TimeoutError(OUT_OF_TIME)
    candidate, before = row.make(), device_peak()
    took = measure([candidate], rounds=sizes.rounds, seconds=sizes.seconds)[0]
    after, peak = device_peak(), candidate.peak
    if peak is None:
        on_device = after if after > before else None  # only a new maximum is known
        peak = on_device if jax.default_backend() != "cpu" else took.resident
    return Measured(float(np.median(took.seconds)), peak, candidate.compilation, candidate.run() if keep else None)


def device_peak() -> int:
    """Returns the peak memory in bytes on the device since the process started; 0 if unknown."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def print_section(name: str, sizes: Sizes, deadline: float) -> bool:
    """Measures and prints a section; returns whether all of it could be measured and agrees."""
    holds = True
    try:
        if name == "agreement":
            return print_agreement(sizes, deadline)
        for table in SECTIONS[name](sizes):
            holds &= print_table(table, sizes, deadline)
    except Exception as error:  # one section must not end the run
        print(f"\n{name}: {one_line(error)}", flush=True)
        return False
    return holds


def print_table(table: Table, sizes: Sizes, deadline: float) -> bool:
    """Measures and prints the rows; returns whether all could be measured and agree."""
    print(f"\n{table.title}")
    print(f"{'':62}{'median':>13}{'ratio':>9}{'peak':>13}{'compile':>10}")
    limit, forms, holds = math.nan, {}, True
    for row in (table.limit, *table.rows):
        try:
            found = measured(row, sizes, deadline, keep=row.name in table.forms)
        except Exception as error:  # one row must not end the run
            print(f"  {row.name:60}  {one_line(error)}", flush=True)
            holds = False
            continue
        limit = found.seconds if row is table.limit else limit
        if row.name in table.forms:
            forms[row.name] = found
        ratio = "" if math.isnan(limit) else f"{found.seconds / limit:.2f}x"
        compilation = "" if found.compilation is None else f"{found.compilation:.1f} s"
        print(
            f"  {row.name:60}{1e3 * found.seconds:>10.3f} ms{ratio:>9}{megabytes(found.peak):>13}{compilation:>10}",
            flush=True,
        )
    return print_forms(forms) and holds


def print_forms(forms: dict[str, Measured]) -> bool:
    """Prints the fastest form; returns whether all forms have the same result."""
    if len(forms) < 2:
        return True
    fastest, *slower = sorted(forms, key=lambda name: forms[name].seconds)
    first, *others = (jax.device_get(each.result) for each in forms.values())
    apart = max(deviation(other, first) for other in others)
    print(
        f"  faster here: {fastest}, {forms[slower[-1]].seconds / forms[fastest].seconds:.1f} times; results differ by "
        f"{apart:.1e}{'' if apart <= TOLERANCE else ', DISAGREE'}"
    )
    return apart <= TOLERANCE


def print_agreement(sizes: Sizes, deadline: float) -> bool:
    """Compares the losses with the CPU and prints a table; returns whether all agree."""
    try:
        names = [way.name for way in ways()]
    except RuntimeError as error:
        print(f"\nNo comparison with the CPU: {one_line(error)}. Unset JAX_PLATFORMS, or add cpu to it.")
        return False
    print("\nLosses in float32 beside float64 on the CPU: the largest relative difference of value and gradients where")
    print("embeddings are distinct, and of the value where embeddings, and the centers of a class, coincide.")
    print("Losses that draw samples are beside float32 on the CPU, as float64 draws others.")
    print(f"{'':36}" + "".join(f"{name:>22}" for name in names))
    print(f"{'':36}" + f"{'distinct':>11}{'coincident':>11}" * len(names))
    results = []
    for result in agreements(sizes.losses, deadline=deadline):
        results.append(result)
        print(f"  {result.name:34}{_cells(result)}", flush=True)
    wrong = [result.name for result in results if not result.holds]
    print(f"  {len(results) - len(wrong)} of {len(results)} agree to {TOLERANCE:g}")
    return print_neighbors() and not wrong


def print_neighbors() -> bool:
    """Searches among ties and prints the number of wrong neighbors; returns whether it is 0."""
    wrong = {k: wrong_neighbors(k) for k in (10, 40)}  # a GPU has a kernel of its own for a small k
    for k, number in wrong.items():
        print(f"  nearest_neighbors among ties, k = {k}: {number} wrong{', DISAGREES' if number else ''}")
    return not any(wrong.values())


def _cells(result: Agreement) -> str:
    if result.error:
        return f"  {result.error}"
    numbers = "".join(f"{number:>11.1e}" for each in result.deviations for number in each)
    return numbers + ("" if result.holds else "  DISAGREES")


SECTIONS: dict[str, Callable[[Sizes], Iterator[Table]]] = {
    "quadruplet": quadruplet_tables,
    "triplet": triplet_tables,
    "pairs": pair_tables,
    "soft_triple": soft_triple_tables,
    "search": search_tables,
    "encoder": encoder_tables,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables and returns the exit status."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"agreement, {', '.join(SECTIONS)}; all if none")
    parser.add_argument("--small", action="store_true", help="tiny sizes and two losses, for tests")
    arguments = parser.parse_args(argv)
    names = ["agreement", *SECTIONS]
    for section in arguments.sections:
        if section not in names:
            parser.error(f"section is {section!r}, expected one of {', '.join(names)}")
    sizes, deadline = SMALL if arguments.small else Sizes(), began + SECONDS
    command = [*(["--small"] if arguments.small else []), *arguments.sections]
    print(" ".join(["python -m benchmarks.accelerator", *command]))
    print_versions()
    print("Value and gradient, compiled beforehand. ratio: median time divided by that of the first row of the table.")
    print(
        "peak: arguments, results and what the program allocates beside them. A row that is not one program shows how"
    )
    print("much the process grew, or on an accelerator the largest memory in use so far, if this row used it.")
    print("compile: includes tracing.")
    holds = [print_section(name, sizes, deadline) for name in arguments.sections or names]
    print(f"\n{time.monotonic() - began:.0f} seconds in all")
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
