"""Where the numbers of a run go: `metrics.jsonl`, one JSON object a line, and TensorBoard's files."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorboardX

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line that a crash cut off is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class MetricWriter:
    """Writes the metrics of a run that starts, or goes on, after `step` steps; drops lines beyond that step."""

    def __init__(self, workdir: Path, *, step: int = 0):
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        path, rewritten = workdir / METRICS_FILE, workdir / f"{METRICS_FILE}.new"
        rewritten.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(rewritten, path)
        self._file = path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Appends the metrics of a step; undefined ones (None) are `null`, and no point of a curve."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                self._tensorboard.add_scalar(name, value, step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._tensorboard.close()
