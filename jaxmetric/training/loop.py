"""Parts of the training loop: metrics without waiting for the device, checks for finite values, requests to stop."""

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
from typing import Any, TextIO, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric.parallel import any_process
from jaxmetric.training.state import TrainState

Batch = TypeVar("Batch")
_SOON = 2.0  # seconds after Ctrl-C without a message


class NonFiniteLossError(RuntimeError):
    """Raised if the training loss, its gradient, or the new state of a step is NaN or infinite."""

    def __init__(self, what: str, step: int):
        super().__init__(f"{what} step {step}")
        self.step = step


def check_finite(state: TrainState) -> None:
    """Raises NonFiniteLossError if any number in a state is not finite; `save_checkpoint` checks this too.

    Every process must call it. A training step itself checks only its loss and gradient, since checking the whole
    state would take a few percent of its time.
    """
    if not _all_finite(state):
        raise NonFiniteLossError("the state was not finite after", int(state.step))


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    zeros: dict[Any, jax.Array] = {}  # NaN where a leaf is not finite; one sum per shape and dtype compiles faster
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            kind = leaf.shape, leaf.dtype
            zeros[kind] = zeros.get(kind, 0) + 0 * leaf
    return jnp.all(jnp.asarray([jnp.isfinite(jnp.sum(each)) for each in zeros.values()]))


class MetricWindow:
    """Collects the metrics of steps, and leaves them on the device until a summary is requested."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._images = 0
        self._since = time.monotonic()

    def add(self, step: int, metrics: Mapping[str, jax.Array], *, images: int) -> None:
        """Adds the metrics of a step over a number of images, without waiting for them."""
        self._pending.append((step, metrics))
        self._images += images

    def summary(self) -> dict[str, float]:
        """Returns the means and the images per second since the last summary, and resets.

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
        """Excludes the time and images since the last summary from the images per second."""
        self._images, self._since = 0, time.monotonic()


def profiled(batches: Iterable[Batch], folder: Path | None, *, after: int = 3, steps: int = 5) -> Iterator[Batch]:
    """Yields batches and traces some of the steps that use them.

    Args:
      batches: the batches of the steps.
      folder: the folder of the trace, for TensorBoard's Profile page, with a `perfetto_trace.json.gz`. None does not
        trace.
      after: number of steps before the trace, to exclude compilation.
      steps: number of traced steps.

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
    """A request to stop. `signal` is the name of the signal that asked for it, or None."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._asked: deque[jax.Array] = deque()
        self._interruptible = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Makes Ctrl-C raise KeyboardInterrupt inside the context, where nothing must be saved; also an earlier one."""
        self._interruptible = True
        try:
            if self.signal == "SIGINT":
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def agreed(self) -> bool:
        """Returns whether to stop after this step; every process must call it after every step.

        All processes get the same answer after the same step: whether any of them had a signal at the call one step
        earlier. Therefore no process has to wait for the current step.
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
    """Converts Ctrl-C, SIGTERM and SIGHUP (unless ignored) into a request to stop, which the loop reads.

    SIGHUP means that the terminal was closed, and output is discarded from then on. A second Ctrl-C interrupts at
    once. Schedulers kill a process some seconds after SIGTERM. If a step or a compilation keeps the context from being
    left within `grace` seconds, the process therefore ends with exit code 0; the last checkpoint, if any, is complete.
    The previous handlers are restored on exit.
    """
    stop = StopRequest()

    def note(number: int, frame: Any) -> None:
        # SIGTERM may arrive twice: sent to all processes, and from a launcher.
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
    # Python's signal handlers run in the main thread, which may be compiling. The wakeup byte arrives at once.
    former_descriptor = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(receiver, stop, left, grace), daemon=True).start()
    try:
        yield stop
    finally:
        left.set()
        signal.set_wakeup_fd(former_descriptor)
        sender.close()
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed by Python


def tell(text: str, file: TextIO | None = None) -> None:
    """Prints a line, to stderr unless told otherwise, in one piece: threads of the runtime write there too."""
    file = file or sys.stderr
    file.write(f"{text}\n")
    file.flush()


def discard_output(*descriptors: int) -> None:
    """Redirects descriptors without a reader to /dev/null, since writing to them would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _is_terminal(descriptor: int) -> bool:
    """Returns whether a descriptor is a terminal, even a closed one, for which `os.isatty` returns False."""
    try:
        return stat.S_ISCHR(os.fstat(descriptor).st_mode)
    except OSError:  # not open
        return False


def _watch(receiver: socket.socket, stop: StopRequest, left: threading.Event, grace: float) -> None:
    with receiver:
        while number := receiver.recv(1):
            if number[0] == signal.SIGINT and not stop._interruptible and not left.wait(_SOON):
                tell("stopping after the current step; press Ctrl-C again to interrupt it")
            if number[0] == signal.SIGTERM and not left.wait(grace):
                tell(f"stopped by SIGTERM: the run did not stop within {grace:g} s; checkpoints are kept")
                os._exit(0)
