"""What surrounds the training step: metrics that do not hold it up, a loss that is no number, a wish to stop."""

import os
import signal
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric.parallel import any_process
from jaxmetric.training.state import TrainState

Batch = TypeVar("Batch")
_SOON = 2.0  # seconds within which nobody wonders whether Ctrl-C was heard


class NonFiniteLossError(RuntimeError):
    """The training loss, its gradient, or the state that a step led to, was NaN or infinite."""

    def __init__(self, what: str, step: int):
        super().__init__(f"{what} step {step}")
        self.step = step


def check_finite(state: TrainState) -> None:
    """Raises NonFiniteLossError if a number anywhere in a state is not finite; `save_checkpoint` asks as well.

    Every process must ask alike. A step looks at its loss and gradient only, as looking at all that it wrote costs some
    percent of it.
    """
    if not _all_finite(state):
        raise NonFiniteLossError("the state was not finite after", int(state.step))


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    zeros: dict[Any, jax.Array] = {}  # NaN where a leaf is not finite; one sum for all alike compiles sooner
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            kind = leaf.shape, leaf.dtype
            zeros[kind] = zeros.get(kind, 0) + 0 * leaf
    return jnp.all(jnp.asarray([jnp.isfinite(jnp.sum(each)) for each in zeros.values()]))


class MetricWindow:
    """The metrics of the steps since the last summary, left on the device until they are asked for."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._images = 0
        self._since = time.monotonic()

    def add(self, step: int, metrics: Mapping[str, jax.Array], *, images: int) -> None:
        """Remembers what a step of so many images returned, without waiting for it."""
        self._pending.append((step, metrics))
        self._images += images

    def summary(self) -> dict[str, float]:
        """Returns the means since the last summary and the images per second, and starts anew.

        Raises:
          NonFiniteLossError: if a step was not `"finite"`; it names the first such step.
        """
        pending, self._pending = self._pending, []
        steps = [step for step, _ in pending]
        fetched = jax.device_get([metrics for _, metrics in pending])
        for step, metrics in zip(steps, fetched, strict=True):
            if not metrics["finite"]:
                loss = float(metrics["loss"])
                what = "the gradient was not finite at" if np.isfinite(loss) else f"the loss was {loss} at"
                raise NonFiniteLossError(what, step)
        names = [name for name in fetched[0] if name != "finite"] if fetched else []
        result = {name: float(np.mean([metrics[name] for metrics in fetched])) for name in names}
        result["images_per_second"] = self._images / max(time.monotonic() - self._since, 1e-9)
        self.restart_clock()
        return result

    def restart_clock(self) -> None:
        """Leaves what happened since the last summary out of the images per second."""
        self._images, self._since = 0, time.monotonic()


def profiled(batches: Iterable[Batch], folder: Path | None, *, after: int = 3, steps: int = 5) -> Iterator[Batch]:
    """Passes batches on, and traces some of the steps on them.

    Args:
      batches: what the steps take.
      folder: where the trace is written, for TensorBoard's Profile page, with `perfetto_trace.json.gz` beside it; None
        traces nothing.
      after: steps before the first that is traced, as compiling is no part of it.
      steps: how many are.

    Yields:
      The batches.
    """
    with ExitStack() as trace:
        for number, batch in enumerate(batches):
            if folder and number == after:
                trace.enter_context(jax.profiler.trace(folder, create_perfetto_trace=True))
            if number == after + steps:
                trace.close()
            yield batch


class StopRequest:
    """A wish to stop, which a signal brings: `signal` is its name, None without."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._asked: deque[jax.Array] = deque()
        self._interruptible = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, where nothing is to be saved, Ctrl-C raises KeyboardInterrupt; one that came before does so here."""
        self._interruptible = True
        try:
            if self.signal == "SIGINT":
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def agreed(self) -> bool:
        """Whether to stop after this step; every process must ask after every step.

        Of several processes all get the same answer after the same step: that there was a signal in any of them when
        they asked one step ago, so that nobody has to wait for the step that is under way.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        self._asked.append(any_process(self.signal is not None))
        if len(self._asked) == 1 or not bool(self._asked.popleft()):
            return False
        self.signal = self.signal or "SIGTERM"  # the other process's; a scheduler's, most likely
        return True


@contextmanager
def stop_on_signals(*, grace: float = 25.0) -> Iterator[StopRequest]:
    """Turns Ctrl-C, SIGTERM and SIGHUP, if it is not ignored, into a wish to stop, which the loop reads.

    SIGHUP tells that the terminal is closed: what is printed from then on goes nowhere. A second Ctrl-C interrupts at
    once. A scheduler that sends SIGTERM kills some seconds later: if the context is not left within `grace` seconds, as
    a step or a compilation takes too long, the process ends with exit code 0 all the same; the last checkpoint, if
    there is one, is complete. The former handlers return on exit.
    """
    stop = StopRequest()

    def note(number: int, frame: Any) -> None:
        # SIGTERM may come twice: to all, and from a launcher.
        if number == signal.SIGINT and (stop.signal is not None or stop._interruptible):
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            discard_output(*filter(_is_terminal, (1, 2)))
        stop.signal = stop.signal or signal.Signals(number).name

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    former = {number: signal.signal(number, note) for number in numbers}
    left = threading.Event()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    # Handlers in Python wait for the main thread, which may wait for a compiler; this byte does not.
    former_descriptor = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(receiver, stop, left, grace), daemon=True).start()
    try:
        yield stop
    finally:
        left.set()
        signal.set_wakeup_fd(former_descriptor)
        sender.close()
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's


def discard_output(*descriptors: int) -> None:
    """Lets what is written to these descriptors, which nobody reads any more, go nowhere: it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _is_terminal(descriptor: int) -> bool:
    """Of a terminal that is closed too, which `os.isatty` denies."""
    try:
        return stat.S_ISCHR(os.fstat(descriptor).st_mode)
    except OSError:  # it is not even open
        return False


def _watch(receiver: socket.socket, stop: StopRequest, left: threading.Event, grace: float) -> None:
    with receiver:
        while number := receiver.recv(1):
            if number[0] == signal.SIGINT and not stop._interruptible and not left.wait(_SOON):
                print("stopping after the step under way; Ctrl-C again interrupts it", file=sys.stderr, flush=True)
            if number[0] == signal.SIGTERM and not left.wait(grace):
                print(
                    f"stopped by SIGTERM: what was under way did not end within {grace:g} s; checkpoints stay",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(0)
