"""Writes the page of a report: `write_report` combines key figures, charts, tables, map and gallery in one HTML file.

Python renders figures, charts and tables, which need no JavaScript. `page.js` renders the map and the gallery from the
JSON of `_data`.
"""

import json
import os
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from jaxmetric.report import charts, key_figures, tables
from jaxmetric.report.markup import escape
from jaxmetric.report.projection import project
from jaxmetric.report.run import Run, check_run
from jaxmetric.report.thumbnails import sprite_sheets

SHOWN_QUERIES = 400
SHOWN_NEIGHBORS = 8


def write_report(path: str | os.PathLike[str], run: Run) -> None:
    """Write the report of a run as one self-contained HTML file.

    The file is written to a temporary name and renamed, so that a report is always complete. The map and the gallery
    show at most 400 queries, chosen at random with a fixed seed, and 8 neighbors each; figures and tables use all.

    Args:
        path: the file to write; its folder must exist.
        run: the results of the run.

    Raises:
        ValueError: if the parts of `run` do not fit together.
        OSError: if the file cannot be written; an existing report is kept.
    """
    check_run(run)
    page = _page(run)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # File names may hold bytes that are not valid text; the report is written all the same.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _page(run: Run) -> str:
    # Shuffled even if all are shown: data sets are often sorted by class, and the first cards should show several.
    shown = np.random.default_rng(0).permutation(len(run.query_images))[:SHOWN_QUERIES]
    data, images = _data(run, shown)
    sections = {
        "Learning": charts.learning(run),
        "Metrics": tables.metrics(run),
        "Coherence": charts.ranks_and_coherence(run),
        "Map": _map(run, len(shown)),
        "Gallery": _gallery(run, len(shown)),
        "Configuration": tables.configuration(run),
    }
    sheets = sprite_sheets(images)
    return Template(_asset("page.html")).substitute(
        title=escape(run.name),
        style=_asset("page.css"),
        sheets="\n".join(f".s{i}{{background-image:url({sheet})}}" for i, sheet in enumerate(sheets)),
        lead=key_figures.lead(run),
        keys="".join(
            key_figures.render(figure, baseline_name=run.baseline_name) for figure in key_figures.key_figures(run)
        ),
        nav="".join(f'<a href="#{title.lower()}">{title}</a>' for title in sections),
        sections="".join(
            f'<section id="{title.lower()}"><h2>{title}</h2>{body}</section>' for title, body in sections.items()
        ),
        # The data must not end the script element or open a comment in it.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        script=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return resources.files("jaxmetric.report").joinpath(name).read_text(encoding="utf-8")


def _data(run: Run, shown: np.ndarray) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns the data of `page.js`, and the images in the order of their tiles: queries, then shown neighbors."""
    neighbors = np.asarray(run.neighbors)[shown, :SHOWN_NEIGHBORS]
    distances = np.asarray(run.neighbor_distances)[shown, :SHOWN_NEIGHBORS]
    gallery = np.unique(neighbors[neighbors >= 0])
    tile = {int(row): i for i, row in enumerate(gallery)}
    places = project(np.asarray(run.query_embeddings)[shown])
    queries = [
        {
            "name": str(run.query_names[query]),
            "labels": np.asarray(run.query_labels)[query].tolist(),
            "predicted": np.asarray(run.predictions)[query].tolist(),
            "place": [round(float(at), 4) for at in place],
            "neighbors": [
                [tile[int(row)], round(float(distance), 3)]
                for row, distance in zip(rows, row_distances, strict=True)
                if row >= 0
            ],
        }
        for query, place, rows, row_distances in zip(shown, places, neighbors, distances, strict=True)
    ]
    columns = [
        {"name": column.name, "values": list(column.values), "ordinal": bool(getattr(column, "ordinal", False))}
        for column in run.columns
    ]
    data = {
        "columns": columns,
        "queries": queries,
        "gallery": np.asarray(run.gallery_labels)[gallery].tolist(),
        "height": round(float(places[:, 1].max()), 4),
    }
    images = [np.asarray(run.query_images[query]) for query in shown]
    return data, images + [np.asarray(run.gallery_images[int(row)]) for row in gallery]


def _map(run: Run, shown: int) -> str:
    return f"""<p class="note">{_which(run, shown)} Images that are close here are close in the embedding.
The axes have no unit. Point at an image to see its neighbors, or focus the map and use the arrow keys.</p>
<div class="controls" id="map-controls"></div>
<div class="atlas">
<div id="plane" tabindex="0" role="group" aria-label="Map of the embeddings; arrow keys move between images"></div>
<aside><div id="legend"></div><div id="detail" aria-live="polite"></div></aside>
</div>
<noscript><p>The map and the gallery need JavaScript; the rest of this page does not.</p></noscript>"""


def _gallery(run: Run, shown: int) -> str:
    names = ", ".join(escape(column.name) for column in run.columns)
    return f"""<p class="note">{_which(run, shown)} Large image: the query, with the labels predicted by its neighbors.
Row: the nearest images of {escape(run.gallery_name)} and their distances. The dots below an image are its
labels ({names}): filled if they agree, dotted if one is unknown.</p>
<div class="controls" id="gallery-controls"></div>
<div id="cards"></div>
<p><button type="button" id="more">Show more</button></p>"""


def _which(run: Run, shown: int) -> str:
    queries = len(run.query_images)
    return f"{shown:,} of {queries:,} queries, chosen at random." if shown < queries else f"{shown:,} queries."
