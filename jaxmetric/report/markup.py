"""What every part of the page shares: escaping, how numbers are written, why one is undefined, colors of columns."""

import html
from collections.abc import Sequence

from jaxmetric.report.run import Column

COLORS = 6  # --c0 ... --c5 in page.css
WHY_UNDEFINED = {
    "retrieval": "no query has an image of its own value to be found",
    "joint": "no query has every label known",
    "coherence": "all pairs agree on equally many labels, or all distances are equal",
}


def escape(value: object) -> str:
    """Text for an element or a quoted attribute."""
    return html.escape(str(value))


def percent(value: float | None) -> str:
    """A share as percent that does not break over lines; None as "undefined"."""
    return "undefined" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def undefined(kind: str) -> str:
    """The word "undefined", which tells its reason when pointed at or focused."""
    return f'<abbr tabindex="0" title="Undefined: {WHY_UNDEFINED[kind]}">undefined</abbr>'


def color(columns: Sequence[Column], name: str) -> str:
    """The color that a label column has on the whole page; ink for a name that is none."""
    names = [column.name for column in columns]
    return f"var(--c{names.index(name) % COLORS})" if name in names else "var(--ink)"
