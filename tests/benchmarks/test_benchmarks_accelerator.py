"""The accelerator benchmark: all rows on tiny sizes, and its reports of wrong numbers and failing rows."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmetric
from benchmarks import accelerator, device_agreement
from benchmarks.accelerator import SMALL, Row, Sizes, Table, main, pair_constants, print_agreement, program
from benchmarks.device_agreement import COINCIDENT, DISTINCT, LOSSES, agreement, arguments, deviation
from jaxmetric.numerics import safe_normalize

ROWS = [
    "limit: one jnp.sort of its 120 distances",
    "one sort of their bits, as integers",
    "quadruplet_loss",
    "its engine by searching",
    "its engine by sorting",
    "limit: jnp.sort of 16 rows of distances",
    "triplet_loss",
    "limit: the product and its two gradients",
    "the same products, default precision",
    "supcon_loss",
    "ntxent_loss",
    "siglip_loss",
    "multi_similarity_loss",
    "limit: the product with all centers and its two gradients",
    "soft_triple_loss, tau = 0",
    "soft_triple_loss, tau = 0.2",
    "limit: the product, and the largest of each query",
    "copying the gallery to the device",
    "nearest_neighbors, k = 10, from and to the host",
    "limit: as much arithmetic, ",
    "tiny and soft_triple_loss, a step of SGD",
]


@pytest.fixture
def no_search(monkeypatch):
    monkeypatch.setattr(accelerator, "print_neighbors", lambda: True)


@pytest.fixture
def no_peers(monkeypatch):
    monkeypatch.setattr(accelerator, "HAVE_PEERS", False)


def rows_of(output):
    return [line.strip() for line in output.splitlines() if " ms" in line]


def test_the_small_run_prints_every_row(no_peers, capsys):
    pytest.importorskip("flax")
    assert main(["--small"]) == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    assert len(rows) == len(ROWS)
    for row, name in zip(rows, ROWS, strict=True):
        assert re.match(rf"{re.escape(name)}.* \d+\.\d+ ms +\d+\.\d\dx", row), row
    for name in SMALL.losses:
        assert re.search(rf"^  {name} +(\d\.\de-\d\d *){{4}}$", output, re.MULTILINE), name
    assert "2 of 2 agree" in output
    assert "faster here: its engine by" in output


@pytest.mark.parity
@pytest.mark.slow
def test_installed_peers_have_rows(capsys):
    pytest.importorskip("pytorch_metric_learning")
    assert main(["--small", "triplet", "pairs", "soft_triple"]) == 0
    names = [row.split("  ")[0] for row in rows_of(capsys.readouterr().out) if row.startswith("pytorch")]
    assert names == [
        "pytorch-metric-learning, triplet_loss",
        "pytorch-metric-learning, supcon_loss",
        "pytorch-metric-learning, multi_similarity_loss",
        "pytorch-metric-learning, tau = 0, D = 128",
    ]


def test_without_flax_there_is_no_training_step(no_peers, monkeypatch, capsys):
    monkeypatch.setattr(accelerator.importlib.util, "find_spec", lambda name: None)
    assert main(["--small", "encoder"]) == 0
    assert "flax is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("batch", [DISTINCT, COINCIDENT])
@pytest.mark.parametrize("name", LOSSES)
def test_every_exported_loss_gets_its_arguments(name, batch):
    parameters = inspect.signature(getattr(jaxmetric, name)).parameters.values()
    made = arguments(getattr(jaxmetric, name), batch)
    assert list(made) == [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def test_a_full_run_compares_every_exported_loss():
    assert sorted(Sizes().losses) == sorted(name for name in jaxmetric.__all__ if name.endswith("_loss"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_agrees_and_is_not_trivially_0(name):
    assert agreement(name).holds
    made = arguments(getattr(jaxmetric, name), DISTINCT)
    floats = {key: x for key, x in made.items() if getattr(x, "dtype", None) == np.float32}
    rest = {key: x for key, x in made.items() if key not in floats}
    result = jax.value_and_grad(lambda floats: getattr(jaxmetric, name)(**floats, **rest))(floats)
    assert all(np.any(x != 0) for x in jax.tree.leaves(result))


def test_coincident_batches_coincide_within_and_across_classes():
    made = arguments(jaxmetric.soft_triple_loss, COINCIDENT)
    embeddings, labels, centers = made["embeddings"], made["labels"], made["centers"]
    np.testing.assert_array_equal(centers, np.broadcast_to(centers[:, :1], centers.shape))
    equal = (embeddings[:, None] == embeddings).all(axis=2) & ~np.eye(len(embeddings), dtype=bool)
    same = labels[:, None] == labels
    for group in (same, ~same):
        assert (equal & group).any()
        assert (~equal & group).any()


def in_tf32(x):
    """Rounds the operand of a float32 product as a GPU does."""
    return jax.lax.reduce_precision(x, 8, 10) if x.dtype == jnp.float32 else x


def mean_square_similarity(embeddings, labels):
    return jnp.mean(jnp.square(jnp.matmul(embeddings, embeddings.T, precision="highest")))


def mean_square_similarity_in_tf32(embeddings, labels):
    embeddings = in_tf32(embeddings)
    return mean_square_similarity(embeddings, labels)


def mean_distance_of_centers_in_tf32(embeddings, labels, centers):
    """Computes the formula of the authors of SoftTriple, except for the precision."""
    centers = in_tf32(safe_normalize(centers))
    cosines = jnp.einsum("cd,cd->c", centers[:, 0], centers[:, 1], precision="highest")
    return jnp.mean(jnp.sqrt(2 + 1e-5 - 2 * cosines)) + jnp.mean(embeddings**2)


def compare_alone(monkeypatch, loss):
    """Replaces an exported loss and compares only that one."""
    monkeypatch.setattr(jaxmetric, "supcon_loss", loss)
    return print_agreement(SMALL._replace(losses=("supcon_loss",)), math.inf)


def test_a_loss_in_too_low_a_precision_disagrees(no_search, monkeypatch, capsys):
    assert compare_alone(monkeypatch, mean_square_similarity)
    assert "1 of 1 agree" in capsys.readouterr().out
    assert not compare_alone(monkeypatch, mean_square_similarity_in_tf32)
    assert re.search(r"supcon_loss .*  DISAGREES\n  0 of 1 agree", capsys.readouterr().out)


def test_coincident_centers_show_a_nan(no_search, monkeypatch, capsys):
    assert not compare_alone(monkeypatch, mean_distance_of_centers_in_tf32)
    assert re.search(r"supcon_loss +\S+ +nan .*DISAGREES", capsys.readouterr().out)


def test_the_exit_status_shows_disagreement(no_search, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "SMALL", SMALL._replace(losses=("supcon_loss",)))
    monkeypatch.setattr(jaxmetric, "supcon_loss", mean_square_similarity_in_tf32)
    assert main(["--small", "agreement"]) == 1
    capsys.readouterr()


def test_a_difference_in_gradients_alone_is_a_deviation():
    expected = np.float64(2), {"x": np.array([4.0, 0.0])}
    assert deviation((np.float32(2), {"x": np.float32([4, 0])}), expected) == 0
    assert deviation((np.float32(2), {"x": np.float32([4, 1])}), expected) == 0.25
    assert deviation((np.float32(2), {"x": np.float32([4, 1])}), expected, value_only=True) == 0
    assert math.isnan(deviation((np.float32(2), {"x": np.float32([4, np.nan])}), expected, value_only=True))
    assert math.isnan(deviation((np.float32(np.inf), {"x": np.float32([4, 0])}), expected))


def test_a_loss_that_fails_does_not_end_the_run(no_search, monkeypatch, capsys):
    def takes_more(embeddings, labels, teacher):
        return jnp.sum(embeddings)

    def fails(embeddings, labels):
        raise ValueError("a message\nof two lines")

    monkeypatch.setattr(jaxmetric, "ntxent_loss", takes_more)
    monkeypatch.setattr(jaxmetric, "siglip_loss", fails)
    monkeypatch.setattr(jaxmetric, "supcon_loss", mean_square_similarity)
    assert not print_agreement(SMALL._replace(losses=("ntxent_loss", "siglip_loss", "supcon_loss")), math.inf)
    output = capsys.readouterr().out
    assert "ntxent_loss" in output
    assert "TypeError: takes teacher, expected parameters among key, embeddings," in output
    assert re.search(r"siglip_loss +ValueError: a message\n  supcon_loss +\d.*\n  1 of 3 agree", output)


def test_a_row_or_section_that_fails_does_not_end_the_run(monkeypatch, capsys):
    def out_of_memory():
        raise MemoryError("too much\nby far")

    def tables(sizes):
        good = program("a sum", jnp.sum, np.ones(3, np.float32))
        yield Table("Title", Row("limit: nothing", out_of_memory), [good])
        yield Table("Another", good, [Row("worse", out_of_memory), good])
        raise ValueError("no third table")

    monkeypatch.setattr(accelerator, "SECTIONS", {"triplet": tables, "search": lambda sizes: iter([])})
    assert main(["--small", "triplet", "search"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if "MemoryError: too much" in line] == ["much", "much"]
    sums = [line for line in lines if line.startswith("  a sum")]
    assert [("x" in line) for line in sums] == [False, True, True]  # a ratio, if there is a limit
    assert "triplet: ValueError: no third table" in lines
    monkeypatch.setattr(accelerator, "print_agreement", lambda *arguments: out_of_memory())
    assert main(["--small", "agreement", "search"]) == 1
    assert main(["--small", "search"]) == 0


def test_search_that_gives_ties_to_a_higher_index_disagrees(monkeypatch, capsys):
    assert accelerator.print_neighbors()

    def highest_first(queries, gallery, k):
        distances = np.square(queries[:, None] - gallery).sum(axis=2)
        order = len(gallery) - 1 - np.argsort(distances[:, ::-1], axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, order, axis=1), order

    monkeypatch.setattr(device_agreement, "nearest_neighbors", highest_first)
    assert not accelerator.print_neighbors()
    assert re.search(r"k = 40: [1-9]\d* wrong, DISAGREES", capsys.readouterr().out)


def test_forms_with_different_results_disagree(capsys):
    forms = {name: accelerator.Measured(1.0, None, None, (np.float32(x),)) for name, x in (("a", 1), ("b", 1.001))}
    assert not accelerator.print_forms(forms)
    assert "DISAGREE" in capsys.readouterr().out
    assert accelerator.print_forms({"a": forms["a"], "c": forms["a"]})


def test_the_engine_gets_the_levels_of_the_loss():
    labels = np.array([[0, 0], [0, 1], [1, 1]])
    assert pair_constants(labels).lower.tolist() == [1, 2, 1]  # of the pairs (0, 1), (0, 2) and (1, 2)


def test_sections_beyond_the_time_limit_are_named(no_peers, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "SECONDS", -1.0)
    assert main(["--small", "agreement", "search"]) == 1
    output = capsys.readouterr().out
    assert output.count(device_agreement.OUT_OF_TIME) == len(SMALL.losses) + 3


def test_an_unknown_section_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["sorting"])
    assert "section is 'sorting', expected one of agreement, quadruplet" in capsys.readouterr().err
