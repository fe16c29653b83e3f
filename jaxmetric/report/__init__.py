"""The report: one self-contained HTML file that shows what a run learned.

`Run` gathers what a run left behind and `write_report` turns it into a page that opens offline, without a
single request. `figures` draws charts as SVG, `thumbnails` packs images into sprite sheets, `projection` lays
embeddings out in the plane, and `page` joins them with `page.html`, `page.css` and `page.js`.
Needs Pillow and scikit-learn (the extra `train`).
"""

from jaxmetric._extras import require

require(__name__, "PIL", "threadpoolctl")

from jaxmetric.report.page import write_report
from jaxmetric.report.run import Run

__all__ = ["Run", "write_report"]
