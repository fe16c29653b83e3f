"""Draws the curves of a run: `learning` over steps, and `ranks_and_coherence` of the evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmetric.report.markup import WHY_UNDEFINED, color, escape
from jaxmetric.report.run import Run
from jaxmetric.report.svg import Line, agreement_chart, line_chart

MOST_POINTS = 240
Points = list[tuple[float, float]]


def learning(run: Run) -> str:
    """Draws validation metrics, the loss and its terms over steps."""
    curves = _curves(run.history)
    coherence = [key for key in curves if key.startswith("validation/") and key.endswith("/coherence")]
    retrieval = [key for key in curves if key.startswith("validation/") and key not in coherence]
    losses = [key for key in curves if key == "loss" or key.startswith("loss/")]
    charts = []
    if retrieval:
        charts.append(_retrieval_chart(run, {key: curves[key] for key in retrieval}))
    charts += [_coherence_chart(curves[key]) for key in coherence]
    charts += [_loss_chart(key, curves[key]) for key in losses]
    if not charts:
        return '<p class="note">No learning curves were recorded.</p>'
    speed = sorted(y for _, y in curves.get("images_per_second", []))
    note = f" Median speed: {speed[len(speed) // 2]:,.0f} images per second." if speed else ""
    return (
        f'<div class="charts">{"".join(charts)}</div><p class="note">Losses: recorded values (pale) and their '
        f"running mean (dark), labeled with the last value.{note}</p>"
    )


def ranks_and_coherence(run: Run) -> str:
    """Draws distances by number of agreeing labels, and cumulative match curves."""
    figures = []
    rows = run.evaluation["coherence"]["by_agreement"]
    if any(row["mean"] is not None for row in rows):
        before = run.baseline["coherence"]["by_agreement"] if run.baseline else []
        compared = f" Filled: trained; hollow: {run.baseline_name}." if before else ""
        figures.append(
            _figure(
                agreement_chart(
                    rows, before, baseline_name=run.baseline_name, title="Mean distance by number of agreeing labels"
                ),
                "Distance by number of agreeing labels",
                f"Coherent if distances decrease. Dot: mean; bar: 10th to 90th percentile.{compared}",
            )
        )
    lines = [_match_curve(run, column.name) for column in run.columns]
    if any(line.points for line in lines):
        chart = line_chart(
            lines,
            title="Cumulative match curves",
            x_label="rank",
            percent=True,
            log_x=True,
            label_start=True,
            dots=True,
        )
        about = "Share of queries with the right value within the first ranks; each value counts once."
        figures.append(_figure(chart, "Cumulative match curves", about))
    if not figures:
        return f'<p class="note">Undefined: {WHY_UNDEFINED["retrieval"]}.</p>'
    return f'<div class="charts">{"".join(figures)}</div>'


def _retrieval_chart(run: Run, curves: Mapping[str, Points]) -> str:
    names = [column.name for column in run.columns]
    lines = []
    for key, points in curves.items():
        label = key.removeprefix("validation/").removesuffix("/recall@1")
        lines.append(Line(label, points, color(run.columns, label), dashed=label not in names))
    chart = line_chart(lines, title="Validation metrics over steps", x_label="step", percent=True, dots=True)
    return _figure(chart, "Recall@1 on validation images", "One line per label.")


def _coherence_chart(points: Points) -> str:
    line = Line("coherence", points, "var(--accent)")
    chart = line_chart([line], title="Validation coherence over steps", x_label="step", dots=True)
    return _figure(chart, "Coherence on validation images", "Rank correlation of distance and label disagreement.")


def _loss_chart(key: str, points: Points) -> str:
    lines = [
        Line("", points, "var(--muted)", faint=True),
        Line(f"{points[-1][1]:.3g}", _running_mean(points), "var(--ink)"),
    ]
    chart = line_chart(lines, title=f"{key} over steps", x_label="step")
    if key == "loss":
        return _figure(chart, "Training loss", "Lower is better.")
    return _figure(chart, escape(key.removeprefix("loss/")), "A term of the loss.")


def _match_curve(run: Run, name: str) -> Line:
    shares = run.evaluation["columns"][name]["cmc"] or []
    # On a logarithmic axis, high ranks are too close to distinguish.
    kept = {round(1.12**i) for i in range(120)} | {len(shares)}
    points = [(float(rank), share) for rank, share in enumerate(shares, 1) if share is not None and rank in kept]
    return Line(name, points, color(run.columns, name))


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Returns finite points by key, in the order of steps. Long curves are reduced to means over neighboring steps."""
    curves: dict[str, Points] = {}
    for record in sorted(history, key=lambda record: record["step"]):
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, []).append((float(record["step"]), float(value)))
    return {key: _thinned(points) for key, points in curves.items()}


def _thinned(points: Points) -> Points:
    if len(points) <= MOST_POINTS:
        return points
    means = [chunk.mean(0) for chunk in np.array_split(np.asarray(points), MOST_POINTS)]
    return [(float(x), float(y)) for x, y in means]


def _running_mean(points: Points) -> Points:
    """Computes a centered mean over about a twelfth of the points."""
    reach = len(points) // 24
    values = [y for _, y in points]
    windows = [values[max(i - reach, 0) : i + reach + 1] for i in range(len(values))]
    return [(x, sum(window) / len(window)) for (x, _), window in zip(points, windows, strict=True)]


def _figure(chart: str, title: str, about: str) -> str:
    return f"<figure><figcaption><h3>{title}</h3><p>{about}</p></figcaption>{chart}</figure>"
