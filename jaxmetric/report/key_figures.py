"""Writes the top of the page: a summary of the run, and four to six key figures with explanations.

Under each figure, a bar from 0 to 1 compares it with the network before training and with chance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from jaxmetric.data.problems import counted
from jaxmetric.report.markup import WHY_UNDEFINED, color, escape, percent
from jaxmetric.report.run import Run, compared_with, excluded_rows

MOST_SOFT_LABELS = 3


@dataclass(frozen=True)
class KeyFigure:
    """A number in [0, 1] (a correlation may be negative), with its meaning.

    `title` and `meaning` are markup, `before` (that of the network before training) and `chance` are values for
    comparison, and `undefined` is the reason if `value` is None.
    """

    title: str
    kind: str
    value: float | None
    meaning: str
    color: str
    undefined: str
    before: float | None = None
    chance: float | None = None
    is_percent: bool = True


def lead(run: Run) -> str:
    """Summarizes the comparison, the effect of training, and whether distances follow label agreement."""
    evaluation, identity = run.evaluation, run.columns[0].name
    noun = ("query", "queries") if run.gallery_name == "the gallery" else ("held-out image", "held-out images")
    sentences = [
        f"{counted(evaluation['queries'], *noun)}, each compared with "
        f"{compared_with(excluded_rows(run), evaluation['gallery'])} of {escape(run.gallery_name)}."
    ]
    now, before = (_recall_at_1(result, identity) for result in (evaluation, run.baseline))
    if now is not None and before is not None:
        if percent(now) == percent(before):
            change = f"left Recall@1 of <b>{escape(identity)}</b> at {percent(now)}"
        else:
            verb = "raised" if now > before else "lowered"
            change = f"{verb} Recall@1 of <b>{escape(identity)}</b> from {percent(before)} to {percent(now)}"
        sentences.append(f"Training {change}.")
    means = [row["mean"] for row in evaluation["coherence"]["by_agreement"] if row["mean"] is not None]
    if len(means) > 1:
        coherent = all(far > near for far, near in pairwise(means))
        sentences.append(
            "The more labels two images share, the closer they are on average."
            if coherent
            else "Images that share more labels are not always closer on average."
        )
    return " ".join(sentences)


def key_figures(run: Run) -> list[KeyFigure]:
    """Returns four to six figures: identity, soft labels, all labels at once, coherence."""
    identity, *soft = (column.name for column in run.columns)
    chance = {column.name: _chance(run, t) for t, column in enumerate(run.columns)}
    figures = [_identity(run, identity, chance[identity])]
    if not soft:
        figures.append(_mean_average_precision(run, identity))
    elif len(soft) <= MOST_SOFT_LABELS:
        figures += [_soft_label(run, name, chance[name]) for name in soft]
    else:
        figures.append(_soft_labels(run, soft, _mean(chance[name] for name in soft)))
    return [*figures, _all_labels(run), _coherence(run)]


def render(figure: KeyFigure, *, baseline_name: str) -> str:
    """Renders a key figure as markup; `baseline_name` is that of the network before training."""

    def number(value: float) -> str:
        return f"{100 * value:.1f}" if figure.is_percent else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")

    unit = "%" if figure.is_percent else ""
    if figure.value is None:
        big, meaning = '<p class="big none">undefined</p>', f"Undefined: {figure.undefined}."
    else:
        big, meaning = f'<p class="big">{number(figure.value)}<small>{unit}</small></p>', figure.meaning
    marks = notes = ""
    for kind, name, value in (("before", baseline_name, figure.before), ("luck", "by chance", figure.chance)):
        if value is not None:
            marks += f'<i class="{kind}" style="left:{_clipped(value):.1f}%"></i>'
            notes += f'<span class="{kind}">{name} {number(value)} {unit}</span>'
    return (
        f'<div class="key" style="--color:{figure.color}"><h3>{figure.title} <small>{figure.kind}</small></h3>'
        f'{big}<div class="track" aria-hidden="true"><b style="width:{_clipped(figure.value or 0.0):.1f}%"></b>'
        f'{marks}</div><p class="notes">{notes}</p><p class="meaning">{meaning}</p></div>'
    )


def _identity(run: Run, name: str, chance: float | None) -> KeyFigure:
    value = _recall_at_1(run.evaluation, name)
    return KeyFigure(
        title=escape(name),
        kind="Recall@1",
        value=value,
        meaning=f"For {_hits_in_100(value)} of 100 images, the nearest other image has the same {escape(name)}.",
        color=color(run.columns, name),
        undefined=WHY_UNDEFINED["retrieval"],
        before=_recall_at_1(run.baseline, name),
        chance=chance,
    )


def _mean_average_precision(run: Run, name: str) -> KeyFigure:
    return KeyFigure(
        title=escape(name),
        kind="MAP@R",
        value=_column(run.evaluation, name, "map_at_r"),
        meaning="Mean precision over the R nearest images, if R images have the same value. 100 % is perfect.",
        color=color(run.columns, name),
        undefined=WHY_UNDEFINED["retrieval"],
        before=_column(run.baseline, name, "map_at_r"),
    )


def _soft_label(run: Run, name: str, chance: float | None) -> KeyFigure:
    value = _column(run.evaluation, name, "rank1")
    return KeyFigure(
        title=escape(name),
        kind="rank-1",
        value=value,
        meaning=f"For {_hits_in_100(value)} of 100 images, the nearest image has the same {escape(name)}.",
        color=color(run.columns, name),
        undefined=WHY_UNDEFINED["retrieval"],
        before=_column(run.baseline, name, "rank1"),
        chance=chance,
    )


def _soft_labels(run: Run, names: Sequence[str], chance: float | None) -> KeyFigure:
    each = ", ".join(f"{escape(name)} {percent(_column(run.evaluation, name, 'rank1'))}" for name in names)
    return KeyFigure(
        title=f"{len(names)} soft labels",
        kind="mean rank-1",
        value=_mean(_column(run.evaluation, name, "rank1") for name in names),
        meaning=f"Share of images whose nearest image has the same value: {each}.",
        color="var(--c1)",
        undefined=WHY_UNDEFINED["retrieval"],
        before=_mean(_column(run.baseline, name, "rank1") for name in names),
        chance=chance,
    )


def _all_labels(run: Run) -> KeyFigure:
    joint = run.evaluation["joint"]
    return KeyFigure(
        title="All labels",
        kind="right together",
        value=joint["all_correct"],
        meaning=f"Share of images for which the vote of the {joint['k']} nearest images is right for every label.",
        color="var(--ink)",
        undefined=WHY_UNDEFINED["joint"],
        before=run.baseline["joint"]["all_correct"] if run.baseline else None,
    )


def _coherence(run: Run) -> KeyFigure:
    return KeyFigure(
        title="Coherence",
        kind="Spearman",
        value=run.evaluation["coherence"]["spearman"],
        meaning="Correlation of distance and label disagreement: 1 is perfect order, 0 is no relation.",
        color="var(--accent)",
        undefined=WHY_UNDEFINED["coherence"],
        before=run.baseline["coherence"]["spearman"] if run.baseline else None,
        is_percent=False,
    )


def _column(result: Mapping[str, Any] | None, name: str, key: str) -> Any:
    return result["columns"][name][key] if result else None


def _recall_at_1(result: Mapping[str, Any] | None, name: str) -> float | None:
    return (_column(result, name, "recall") or {}).get("1")


def _chance(run: Run, column: int) -> float | None:
    """Computes the share of gallery images with the query's value, averaged over queries with a match."""
    queries, gallery = (np.asarray(labels)[:, column] for labels in (run.query_labels, run.gallery_labels))
    rows = excluded_rows(run)
    left_out = np.where(rows >= 0, gallery[rows], -1)
    matches = np.bincount(gallery[gallery >= 0], minlength=max(len(run.columns[column].values), 1))[queries]
    matches = np.where(queries >= 0, matches - (left_out == queries[:, None]).sum(axis=1), 0)
    offered = (gallery >= 0).sum() - (left_out >= 0).sum(axis=1)
    found = matches > 0
    return float((matches[found] / offered[found]).mean()) if found.any() else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _hits_in_100(value: float | None) -> str:
    """Formats a share as hits in 100; "100" and "0" only if exact."""
    if value is None:
        return ""
    if 0 < value < 1:
        return str(min(max(round(100 * value), 1), 99))
    return f"{100 * value:.0f}"


def _clipped(value: float) -> float:
    return 100 * min(max(value, 0.0), 1.0)
