"""Shared parts of the page: escaping, formatting of numbers, reasons for undefined numbers, colors of columns."""

import html
from collections.abc import Sequence

from jaxmetric.report.run import Column

COLORS = 6  # --c0 ... --c5 in page.css
WHY_UNDEFINED = {
    "retrieval": "no query has another image with its value",
    "joint": "no query has every label known",
    "coherence": "all pairs agree on the same number of labels, or all distances are equal",
}


def escape(value: object) -> str:
    """Escapes text for an element or a quoted attribute."""
    return html.escape(str(value))


def percent(value: float | None) -> str:
    """Formats a share in percent, without a line break; None becomes "undefined"."""
    return "undefined" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def undefined(kind: str) -> str:
    """Returns the word "undefined", with the reason as a tooltip."""
    return f'<abbr tabindex="0" title="Undefined: {WHY_UNDEFINED[kind]}">undefined</abbr>'


def color(columns: Sequence[Column], name: str) -> str:
    """Returns the color of a label column on the whole page, or ink for another name."""
    names = [column.name for column in columns]
    return f"var(--c{names.index(name) % COLORS})" if name in names else "var(--ink)"
