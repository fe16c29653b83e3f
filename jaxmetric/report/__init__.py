"""The report: one self-contained HTML file with the results of a run.

`Run` holds the results of a run, and `write_report` writes them to a page that works offline and makes no
requests. `figures` draws charts as SVG, `thumbnails` packs images into sprite sheets, `projection` maps
embeddings to the plane, and `page` combines them with `page.html`, `page.css` and `page.js`.
Needs Pillow and scikit-learn (the extra `train`).
"""

from jaxmetric.report.page import write_report
from jaxmetric.report.run import Run

__all__ = ["Run", "write_report"]
