"""Writes the metrics of a run to `metrics.jsonl`, one JSON object per line, and to TensorBoard files."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

METRICS_FILE = "metrics.jsonl"


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file atomically: afterward it has the whole new text, or is unchanged."""
    aside = path.with_name(f"{path.name}.new")
    try:
        aside.write_text(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: if the file is damaged; the message names it.
    """
    return _parsed(path.read_text(errors="replace"), str(path))


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads the lines of a run's `metrics.jsonl`, without a last line that a crash truncated.

    Raises:
      ValueError: if another line is damaged; the message names the file and the line.
    """
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").split("\n")
    # Text after the last line break was truncated, even if it is valid JSON.
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1) if line]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: damaged, as it is not JSON ({error})") from error


class MetricWriter:
    """Writes the metrics of a run that starts or resumes after `step` steps; drops lines of later steps."""

    def __init__(self, workdir: Path, *, step: int = 0):
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        path = workdir / METRICS_FILE
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        # tensorboardX's SummaryWriter has a thread that dies if the disk is full, and waiting for it hangs.
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Appends the metrics of a step. None and values that are not finite become `null` and no point of a curve."""
        defined = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **dict.fromkeys(metrics), **defined}) + "\n")
        self._file.flush()
        for name, value in defined.items():
            self._add_event(Event(step=step, summary=scalar(name, value)))
        self._tensorboard.flush()

    def _add_event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._tensorboard.write_event(event)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        finally:
            self._tensorboard.close()
