"""What surrounds the training step: metrics that do not hold it up, a loss that is no number, a wish to stop."""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np


class NonFiniteLossError(RuntimeError):
    """The training loss, or the state that a step led to, was NaN or infinite."""

    def __init__(self, step: int, loss: float):
        what = "the parameters were not finite after" if np.isfinite(loss) else f"the loss was {loss} at"
        super().__init__(f"{what} step {step}")
        self.step = step


class MetricWindow:
    """The metrics of the steps since the last summary, left on the device until they are asked for."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._pictures = 0
        self._since = time.monotonic()

    def add(self, step: int, metrics: Mapping[str, jax.Array], *, pictures: int) -> None:
        """Remembers what a step of so many pictures returned, without waiting for it."""
        self._pending.append((step, metrics))
        self._pictures += pictures

    def summary(self) -> dict[str, float]:
        """Returns the means since the last summary and the pictures per second, and starts anew.

        Raises:
          NonFiniteLossError: if a step was not `"finite"`; it names the first such step.
        """
        pending, self._pending = self._pending, []
        steps = [step for step, _ in pending]
        fetched = jax.device_get([metrics for _, metrics in pending])
        for step, metrics in zip(steps, fetched, strict=True):
            if not metrics["finite"]:
                raise NonFiniteLossError(step, float(metrics["loss"]))
        names = [name for name in fetched[0] if name != "finite"] if fetched else []
        result = {name: float(np.mean([metrics[name] for metrics in fetched])) for name in names}
        result["images_per_second"] = self._pictures / max(time.monotonic() - self._since, 1e-9)
        self.restart_clock()
        return result

    def restart_clock(self) -> None:
        """Leaves what happened since the last summary out of the pictures per second."""
        self._pictures, self._since = 0, time.monotonic()


@contextmanager
def stop_on_signals() -> Iterator[Mapping[str, Any]]:
    """Turns Ctrl-C and SIGTERM into a wish that the loop reads: `stop["signal"]` is the signal's name, else None.

    A second Ctrl-C interrupts at once. The former handlers return on exit.
    """
    stop: dict[str, Any] = {"signal": None}

    def note(number: int, frame: Any) -> None:
        if stop["signal"] is not None:
            raise KeyboardInterrupt
        stop["signal"] = signal.Signals(number).name

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
