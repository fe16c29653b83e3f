"""Renders tables: the metrics of each label, and the configuration and environment of the run."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxmetric.report.markup import color, escape, percent, undefined
from jaxmetric.report.run import Run, compared_with, excluded_rows
from jaxmetric.report.svg import compact

SHARES = {"map_at_r": "MAP@R", "rank1": "rank-1", "cmc_area": "CMC area", "knn_accuracy": "kNN"}
COUNTS = ("values", "queries", "undefined")
GLOSSARY = """<p class="note"><b>Recall@k</b>: one of the k nearest images has the same value.
<b>MAP@R</b>: mean precision over the R nearest images, if R images have the same value.
<b>rank-1</b>: no other value is as near as the right one.
<b>CMC area</b>: the mean of the cumulative match curve.
<b>kNN</b>: the vote of the nearest images is right.
Queries whose value is unknown, or absent from the images to find, are <b>undefined</b>:
they are counted but excluded from means.</p>"""


def metrics(run: Run) -> str:
    """Renders the evaluation and a glossary."""
    title = f"Held-out images against {run.gallery_name}"
    return _evaluation(run, run.evaluation, run.baseline, title) + GLOSSARY


def configuration(run: Run) -> str:
    """Renders the configuration and the environment, collapsed."""
    return _entries("Configuration", run.config) + _entries("Environment", run.environment)


def _evaluation(run: Run, evaluation: Mapping[str, Any], baseline: Mapping[str, Any] | None, title: str) -> str:
    recalls = sorted({k for result in evaluation["columns"].values() for k in result["recall"]}, key=int)
    heads = ["label", *(f"Recall@{k}" for k in recalls), *SHARES.values(), *COUNTS]
    rows = []
    for name, result in evaluation["columns"].items():
        before = baseline["columns"][name] if baseline else None
        cells = [_cell(result["recall"].get(k), before and before["recall"].get(k)) for k in recalls]
        cells += [_cell(result[key], before and before[key]) for key in SHARES]
        cells += [f"<td>{result[key]:,}</td>" for key in COUNTS]
        style = f'style="--color:{color(run.columns, name)}"'
        rows.append(f'<tr {style}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    compared = f" Small: the {run.baseline_name} network." if baseline else ""
    return (
        f'<p class="caption"><b>{escape(title)}</b> in %: {evaluation["queries"]:,} queries, '
        f"{compared_with(excluded_rows(run), evaluation['gallery'])} images to find.{compared}</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{_summary(evaluation)}"
    )


def _cell(now: float | None, before: float | None) -> str:
    shown = undefined("retrieval") if now is None else f"{100 * now:.1f}"
    return f"<td>{shown}{'' if before is None else f'<small>{100 * before:.1f}</small>'}</td>"


def _summary(evaluation: Mapping[str, Any]) -> str:
    joint, coherence = evaluation["joint"], evaluation["coherence"]

    def share(value: float | None) -> str:
        return undefined("joint") if value is None else f"<b>{percent(value)}</b>"

    def correlation(value: float | None) -> str:
        return undefined("coherence") if value is None else f"<b>{value:.3f}</b>"

    return (
        f'<p class="note">All labels at once, from {joint["k"]} neighbors: {share(joint["all_correct"])} of '
        f"{joint['queries']:,} queries with every label right, {share(joint['mean_correct'])} of all labels right. "
        f"Coherence: {correlation(coherence['spearman'])} over {compact(coherence['pairs'])} pairs, "
        f"{correlation(coherence['centroid_spearman'])} for class centroids and their descriptions.</p>"
    )


def _entries(title: str, entries: Mapping[str, Any]) -> str:
    flat = list(_flatten(entries))
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in flat)
    return (
        f"<details><summary>{title} <small>{len(flat)} entries</small></summary>"
        f'<dl class="entries">{rows}</dl></details>'
    )


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in entries.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
