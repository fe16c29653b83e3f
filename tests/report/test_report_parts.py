"""Axes, labels, thumbnails, projection and key figures of the report."""

import base64
import io
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmetric.report.key_figures import _chance, _hits_in_100
from jaxmetric.report.projection import project
from jaxmetric.report.run import compared_with
from jaxmetric.report.svg import Line, agreement_chart, line_chart, log_ticks, nice_ticks, spread
from jaxmetric.report.thumbnails import sprite_sheets

ranges = st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=50, deadline=None)
@given(ranges)
def test_ticks_enclose_the_range_at_even_steps_and_are_few(bounds):
    low, high = bounds
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, -3.0, 2.5])
def test_a_range_of_one_value_still_has_an_axis(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] <= value <= ticks[-1]
    assert len(ticks) >= 2


def test_log_ticks_are_1_2_5_of_every_decade_within_the_range():
    assert log_ticks(2, 300) == [2, 5, 10, 20, 50, 100, 200]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 240), min_size=1, max_size=8))
def test_labels_keep_their_distance_order_and_frame(positions):
    placed = spread(positions, 16, 0, 240)
    order = np.argsort(positions, kind="stable")
    assert np.all(np.diff(np.array(placed)[order]) >= 16 - 1e-6)
    assert min(placed) >= -1e-6
    assert max(placed) <= 240 + 1e-6


def test_higher_values_are_drawn_higher_and_later_steps_further_right():
    svg = line_chart([Line("a", [(1, 0.2), (5, 0.4), (9, 0.9)], "red")], title="t", x_label="step")
    x, y = np.array([point.split(",") for point in re.findall(r'points="(.*?)"', svg)[0].split()], float).T
    assert np.all(np.diff(x) > 0)
    np.testing.assert_allclose(x[1] - x[0], x[2] - x[1], atol=0.11)
    assert np.all(np.diff(y) < 0)
    np.testing.assert_allclose((y[1] - y[2]) / (y[0] - y[1]), 0.5 / 0.2, rtol=0.01)


def test_agreement_chart_leaves_out_levels_without_pairs_and_counts_the_others():
    rows = [
        {"agreement": 0, "pairs": 12345, "mean": 1.5, "p10": 1.0, "p90": 1.9},
        {"agreement": 1, "pairs": 0, "mean": None, "p10": None, "p90": None},
        {"agreement": 2, "pairs": 7, "mean": 0.5, "p10": 0.2, "p90": 0.9},
    ]
    svg = agreement_chart(rows, [], title="t")
    assert svg.count("<circle") == 2
    assert ">12 k<" in svg
    assert ">7<" in svg


def tile(sheets, index, pixels):
    sheet = Image.open(io.BytesIO(base64.b64decode(sheets[index // 256].partition(",")[2])))
    left, top = index % 16 * pixels, index % 256 // 16 * pixels
    return np.asarray(sheet.convert("RGB").crop((left, top, left + pixels, top + pixels)), float)


def test_images_are_on_their_tiles_on_several_sheets():
    colors = np.random.default_rng(0).integers(0, 255, (300, 3))
    images = [np.broadcast_to(color, (32, 32, 3)).astype(np.uint8) for color in colors]
    sheets = sprite_sheets(images)
    assert len(sheets) == 2
    for index in (0, 15, 16, 255, 256, 299):
        np.testing.assert_allclose(tile(sheets, index, 32)[8:24, 8:24].mean((0, 1)), colors[index], atol=12)


def test_images_shrink_until_they_fit_the_budget():
    images = list(np.random.default_rng(0).integers(0, 255, (256, 64, 64, 3), dtype=np.uint8))
    assert sum(map(len, sprite_sheets(images, budget=200_000))) <= 200_000


def test_a_projection_uses_one_thread():
    # The first projection of a process loads the library of t-SNE, so its threads are checked afterward.
    script = textwrap.dedent("""
        import numpy as np
        from threadpoolctl import threadpool_info
        from jaxmetric.report.projection import project

        threads, svd = [], np.linalg.svd

        def watched(*args, **options):
            threads.append({pool["prefix"]: pool["num_threads"] for pool in threadpool_info()})
            return svd(*args, **options)

        np.linalg.svd = watched
        project(np.random.default_rng(0).normal(size=(40, 4)))
        assert "libgomp" in threads[-1], threads
        assert set(threads[-1].values()) == {1}, threads
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (5, 1), (29, 4), (40, 1), (40, 8)])
def test_a_projection_fits_the_unit_square(shape):
    places = project(np.random.default_rng(0).normal(size=shape))
    assert places.shape == (shape[0], 2)
    assert places.min() >= 0
    assert places.max() <= 1


def test_a_collapsed_embedding_is_one_point():
    np.testing.assert_array_equal(project(np.ones((50, 8))), 0)


def test_few_embeddings_keep_their_distances():
    plane = np.random.default_rng(0).normal(size=(10, 2))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0][:2]
    places = project(plane @ rotation)
    before, after = (np.linalg.norm(some[:, None] - some, axis=-1) for some in (plane, places))
    np.testing.assert_allclose(after / after.max(), before / before.max(), atol=1e-6)


def test_separate_clusters_stay_separate_on_the_map():
    centers = np.repeat(10 * np.eye(4), 10, axis=0)
    places = project(centers + np.random.default_rng(0).normal(size=(40, 4)) * 0.1)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    same = np.arange(40)[:, None] // 10 == np.arange(40) // 10
    assert distance[same].max() < distance[~same].min()


def test_chance_is_the_mean_share_of_the_value_of_a_query():
    run = SimpleNamespace(
        columns=[SimpleNamespace(values=("a", "b", "c"))],
        query_labels=np.array([[0], [1], [1], [2], [-1]]),
        gallery_labels=np.array([[0], [0], [0], [1], [-1]]),
        exclude=None,
    )
    # a: 3 of 4 known images; b twice: 1 of 4; c has no match and -1 is unknown, so neither counts.
    assert _chance(run, 0) == pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 3)


def test_chance_does_not_count_excluded_rows():
    labels = np.array([[0], [0], [0], [1], [-1]])
    run = SimpleNamespace(
        columns=[SimpleNamespace(values=("a", "b"))],
        query_labels=labels,
        gallery_labels=labels,
        exclude=np.array([[0, -1], [1, 4], [2, 1], [3, -1], [4, -1]]),
    )
    # Each query excludes itself. a: 2 of the 3 known others, the same, and 1 of 2; b is alone, and -1 is unknown.
    assert _chance(run, 0) == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)


@given(st.data())
def test_compared_with_counts_the_rows_that_are_not_excluded(data):
    gallery, queries = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    left_out = [data.draw(st.sets(st.integers(0, gallery - 1), max_size=3)) for _ in range(queries)]
    exclude = np.array([[*rows, -1, -1, -1][:3] for rows in left_out])
    others = [gallery - len(rows) for rows in left_out]
    expected = str(min(others)) if len(set(others)) == 1 else f"{min(others)} to {max(others)}"
    assert compared_with(exclude, gallery) == expected


def test_hits_in_100_are_0_or_100_only_if_exact():
    assert [_hits_in_100(value) for value in (0.0, 0.001, 0.4, 0.999, 1.0, None)] == ["0", "1", "40", "99", "100", ""]
