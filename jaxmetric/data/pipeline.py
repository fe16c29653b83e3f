"""Batches in the order of a plan, read ahead in threads or in worker processes: `batches`.

Batch number `step` depends on the plan and `step` alone, so a run that stops and starts again at any step goes
on with the same batches, whatever the threads, workers and processes did before; its state is a step number.

grain reads ahead. One further thread asks it for batches, so that the consumer waits on a queue and can stop
waiting: for a file that never comes (a hung mount), or for a worker that was killed. All threads are daemons and
workers end with their parent, so that nothing which hangs keeps the program from ending.
"""

import gc
import multiprocessing
import os
import queue
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.shared_memory import ShareableList
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import grain
import numpy as np

from jaxmetric.data.plans import Plan, batch_indices, plan_fingerprint
from jaxmetric.data.reading import read_batch, rows_of
from jaxmetric.data.sources import ImageError, InputError, InputTimeoutError, LabeledImages

_PATIENCE = 5.0  # seconds that workers may take to end before they are killed
_START_SECONDS = 120.0  # that workers may take to start, besides the timeout
_LIMIT = 60.0  # seconds that ending takes at most; grain waits for 25 before it kills a worker by itself
_UNLINK_SECONDS = 0.2
_NAMED = 3  # images that the message of a timeout names
_EXIT_HINTS = {
    -9: "killed, as the kernel does when memory runs out",
    -7: "a bus error, as when /dev/shm is full",
    1: "it could not start; a script that uses workers keeps its work under if __name__ == '__main__'",
}


class InputSpeed(NamedTuple):
    """How fast batches came.

    Attributes:
      waited_seconds: how long the consumer waited for them.
      images_per_second: images that the pipeline could deliver per second to a consumer that never paused; 0 before
        the first batch. For n images, read by R readers (threads, those of all workers together) which took b
        seconds for it and computed in c of them, on M cores: n / max(b / R, c / M).
    """

    waited_seconds: float
    images_per_second: float


def batches(
    source: LabeledImages,
    plan: Plan,
    start: int | Mapping[str, Any],
    stop: int,
    *,
    on_bad: Callable[[ImageError], object] | None = None,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 8,
    process_index: int = 0,
    process_count: int = 1,
    timeout: float | None = None,
) -> "BatchIterator":
    """The batches of steps `start` to `stop` (excluded).

    Args:
      source: the images and labels.
      plan: which images each batch takes.
      start: the first step, from 0; or what `BatchIterator.state` returned, to go on from there.
      stop: the step after the last.
      on_bad: called each time that an image cannot be read, by the consumer's own thread, before it gets the batch
        that is concerned; another image of the class takes its place. By default the error ends the iteration.
      workers: processes that read; 0 reads in threads of this process, and so does a source in memory, of which
        workers would only make copies. They are spawned: a script keeps its work under `if __name__ == "__main__"`.
      threads: how many batches this process, or each worker, reads at the same time.
      prefetch: how many batches may lie ready; each worker holds up to four more in passing.
      process_index: p, such as `jax.process_index()`.
      process_count: n, such as `jax.process_count()`; process p reads rows `[p B / n, (p + 1) B / n)` of every
        batch of B, and the rows of all processes together are the batch that one process would read.
      timeout: seconds to wait for a batch (for the first from workers 120 more, as they have to start); None waits for
        ever.

    Returns:
      An iterator of batches: "image" uint8 `[B / n, S, S, 3]`, "label" int32 `[B / n, T]`, "index" int32 `[B / n]`.

    Raises:
      ValueError: if the steps do not run forwards from 0, a number is out of range, n processes cannot share the batch
        evenly, the plan draws images that the source lacks, or the state belongs to another plan.
      ImageError: while iterating, if an image cannot be read (or, with `on_bad`, none of its class can).
      InputTimeoutError: while iterating, if no batch came in time.
      InputError: while iterating, if a worker died, or reading failed in another way than `ImageError`.
    """
    for name, value, least in (("workers", workers, 0), ("threads", threads, 1), ("prefetch", prefetch, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be a number of seconds above 0, or None, got {timeout}")
    fingerprint = plan_fingerprint(plan)
    first, unreadable = _resume(start, fingerprint) if isinstance(start, Mapping) else (start, [])
    if not 0 <= first <= stop:
        raise ValueError(f"steps must satisfy 0 <= start <= stop, got {first} and {stop}")
    highest = max(int(group[-1]) for group in plan.groups)
    if highest >= len(source):
        raise ValueError(f"the plan draws image {highest}, but the source has only {len(source)} images")
    rows = rows_of(plan, process_index, process_count)
    if isinstance(source.images, np.ndarray):
        workers = 0
    workers = min(workers, stop - first)
    ahead = max(1, prefetch // max(1, workers))
    threads = min(threads, ahead)
    around = on_bad is not None

    def read(step: int) -> _Reading:
        return _attempt(source, plan, int(step), around, process_index, process_count)

    def names(step: int) -> list[str]:
        return [source.names[i] for i in batch_indices(plan, step)[rows.start : rows.stop]]

    return BatchIterator(
        lambda: _Feed(read, first, stop, workers=workers, threads=threads, ahead=ahead),
        first,
        stop,
        readers=threads * max(1, workers),
        fingerprint=fingerprint,
        unreadable=unreadable,
        names=names,
        on_bad=on_bad,
        timeout=timeout,
    )


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """What `batches` returns: an iterator that can be saved, timed and closed.

    Its state is its own and not grain's, which describes the buffers of one number of workers: the next step says as
    much, and any number of workers, threads and processes can go on from it.
    """

    def __init__(
        self,
        start_feed: Callable[[], "_Feed"],
        start: int,
        stop: int,
        *,
        readers: int,
        fingerprint: str,
        unreadable: Sequence[str],
        names: Callable[[int], list[str]],
        on_bad: Callable[[ImageError], object] | None,
        timeout: float | None,
    ) -> None:
        self._start_feed, self._step, self._stop = start_feed, start, stop
        self._readers, self._names, self._on_bad, self._timeout = readers, names, on_bad, timeout
        self._fingerprint, self._unreadable = fingerprint, set(unreadable)
        self._feed: _Feed | None = None
        self._closed = False
        self._restart_clocks()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed or self._step == self._stop:
            raise StopIteration
        if self._feed is None:
            self._feed = self._start_feed()
        reading = self._wait_for(self._feed)
        if reading.error is not None or reading.batch is None:
            self.close()
            raise reading.error or InputError(f"step {self._step} was read without a result")
        self._step += 1
        self._busy_seconds += reading.seconds
        self._cpu_seconds += reading.cpu_seconds
        self._images += len(reading.batch["index"])
        self._unreadable.update(reading.unreadable)
        if self._on_bad is not None:
            for message in reading.unreadable:
                self._on_bad(ImageError(message))
        return reading.batch

    def state(self) -> dict[str, Any]:
        """What to save in order to go on after the last batch that was handed over.

        Returns:
          A dictionary for JSON: "next_step"; "unreadable", the distinct messages of the images that this process
          could not read up to here; "plan", a fingerprint. As `start` of other `batches` of the same plan it gives the
          batches that are left, bit for bit, whatever the workers, threads and processes were and are.
        """
        return {"next_step": self._step, "unreadable": sorted(self._unreadable), "plan": self._fingerprint}

    def speed(self) -> InputSpeed:
        """How fast batches came since this was last asked."""
        seconds = max(self._busy_seconds / self._readers, self._cpu_seconds / _cores())
        speed = InputSpeed(self._waited_seconds, self._images / seconds if seconds else 0.0)
        self._restart_clocks()
        return speed

    def close(self) -> None:
        """Ends reading and the workers, as an error and letting go of the iterator do."""
        self._closed = True
        if self._feed is not None:
            self._feed.close()

    def _restart_clocks(self) -> None:
        self._waited_seconds = self._busy_seconds = self._cpu_seconds = 0.0
        self._images = 0

    def _wait_for(self, feed: "_Feed") -> "_Reading":
        began = time.perf_counter()
        try:
            return feed.take(self._timeout)
        except queue.Empty:
            feed.abandon(self._step)
            self._closed = True
            raise InputTimeoutError(
                f"no batch came in {self._timeout:g} s: step {self._step} waits for one of "
                f"{_first_of(self._names(self._step))}"
            ) from None
        finally:
            self._waited_seconds += time.perf_counter() - began


class _Reading(NamedTuple):
    """What reading one step came to, in a form that can be sent from a worker."""

    batch: dict[str, np.ndarray] | None
    unreadable: tuple[str, ...]
    error: Exception | None
    seconds: float
    cpu_seconds: float


def _attempt(
    source: LabeledImages, plan: Plan, step: int, around: bool, process_index: int, process_count: int
) -> _Reading:
    """Reads one step; an error becomes a value, so that it arrives the same from a thread and from a worker."""
    unreadable: list[str] = []
    batch: dict[str, np.ndarray] | None = None
    error: Exception | None = None
    began, computed = time.perf_counter(), time.thread_time()
    try:
        batch = read_batch(
            source,
            plan,
            step,
            on_bad=(lambda bad: unreadable.append(str(bad))) if around else None,
            process_index=process_index,
            process_count=process_count,
        )
    except ImageError as caught:
        error = ImageError(str(caught))
    except Exception as caught:
        error = _in_one_line(caught, f"step {step} cannot be read")
    seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - computed
    return _Reading(batch, tuple(unreadable), error, seconds, cpu_seconds)


class _Feed:
    """A thread that takes readings from grain, one ahead of those asked for.

    Only that thread meets grain: it may hang there, it holds no reference to the iterator, and it blocks the signals
    that a terminal sends to all processes, which the workers started from it inherit. A worker then neither prints a
    traceback nor ends before its parent has saved.
    """

    def __init__(
        self, read: Callable[[int], _Reading], start: int, stop: int, *, workers: int, threads: int, ahead: int
    ) -> None:
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Reading] = queue.SimpleQueue()
        self._start = start
        self._start_seconds = _START_SECONDS if workers else 0.0
        ended = threading.Event()
        # Making it also starts Python's resource tracker, which would unblock the signals of the thread it starts from.
        self._roster = ShareableList([0] * workers) if workers else None
        dataset = partial(_dataset, read, start, stop, threads, ahead, workers, self._roster)
        threading.Thread(
            target=_feed, args=(dataset, workers > 0, self._asked, self._ready, ended), daemon=True
        ).start()
        self._asked.put(True)
        # At exit this comes before grain's own finalizers, which would wait for a worker that hangs.
        self.close = Finalize(self, _end, args=(self._asked, ended, self._roster), exitpriority=100)

    def take(self, timeout: float | None) -> _Reading:
        """The next reading; raises `queue.Empty` after `timeout` seconds, or longer while workers start."""
        self._asked.put(True)
        reading = self._ready.get(timeout=timeout if timeout is None else timeout + self._start_seconds)
        self._start_seconds = 0.0
        return reading

    def abandon(self, step: int) -> None:
        """Ends a feed in which a step hangs."""
        if self._roster is None:
            self.close.cancel()
            return
        _kill([self._roster[(step - self._start) % len(self._roster)]])
        self.close()


def _feed(
    make_dataset: Callable[[], Any],
    spawns: bool,
    asked: "queue.SimpleQueue[bool]",
    ready: "queue.SimpleQueue[_Reading]",
    ended: threading.Event,
) -> None:
    if spawns and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        _hand_over(iter(make_dataset()), asked, ready)
    except StopIteration:  # asked for one after the last
        pass
    except Exception as error:
        ready.put(_Reading(None, (), _explained(error), 0.0, 0.0))
    if spawns:
        gc.collect()  # cycles of frames and tracebacks hold the workers' last batches in shared memory,
        time.sleep(_UNLINK_SECONDS)  # which a thread of grain's removes, or else Python warns of it at exit
    ended.set()


def _hand_over(readings: Any, asked: "queue.SimpleQueue[bool]", ready: "queue.SimpleQueue[_Reading]") -> None:
    while asked.get():
        ready.put(_owned(next(readings)))
    readings.close()


def _owned(reading: _Reading) -> _Reading:
    """Copies a batch out of shared memory, of which a consumer that keeps batches would run short."""
    if reading.batch is None:
        return reading
    return reading._replace(batch={key: np.array(value) for key, value in reading.batch.items()})


def _dataset(
    read: Callable[[int], _Reading],
    start: int,
    stop: int,
    threads: int,
    ahead: int,
    workers: int,
    roster: ShareableList[int] | None,
) -> Any:
    """The grain pipeline, which gives readings in the order of their steps."""
    steps = grain.MapDataset.range(start, stop).map(read)
    if roster is None:
        # A thread of grain's usual pool that hangs would keep the program from ending; these are daemons.
        in_order = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return grain.experimental.multithread_prefetch(in_order, num_threads=threads, buffer_size=ahead // threads)
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain 0.2.18 asks for a flag of its own all the same (google/grain issue 1355)
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return steps.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers), partial(_enter_worker, roster.shm.name)
    )


def _enter_worker(roster: str, index: int, count: int) -> None:
    """What a worker does first: it tells its id, ends when its parent does, and leaves the devices alone."""
    pids = ShareableList[int](name=roster)
    pids[index] = os.getpid()
    pids.shm.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import jax

    jax.config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end(asked: "queue.SimpleQueue[bool]", ended: threading.Event, roster: ShareableList[int] | None) -> None:
    """Tells a feed to stop; if it does not in time its workers are killed, and a thread that hangs is left behind."""
    asked.put(False)
    stopped = ended.wait(_PATIENCE)
    if roster is None:
        return
    limit = time.monotonic() + _LIMIT
    while not stopped and time.monotonic() < limit:  # a worker that is still starting signs in late
        _kill([roster[i] for i in range(len(roster))])
        stopped = ended.wait(0.1)
    roster.shm.close()
    roster.shm.unlink()


def _kill(pids: Sequence[int]) -> None:
    for child in multiprocessing.active_children():
        if child.pid in pids:
            child.kill()


def _explained(error: Exception) -> InputError:
    """What grain failed with: a worker that died, or else something unforeseen."""
    died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if died is None:
        return _in_one_line(error, "reading ahead failed")
    hint = _EXIT_HINTS.get(int(died[1]))
    return InputError(f"a worker process ended with exit code {died[1]}{f' ({hint})' if hint else ''}")


def _in_one_line(error: Exception, what: str) -> InputError:
    """An error whose traceback, which would keep batches alive and cannot be sent from a worker, is kept as text."""
    short = InputError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}")
    short.add_note("".join(traceback.format_exception(error)))
    return short


def _resume(state: Mapping[str, Any], fingerprint: str) -> tuple[int, list[str]]:
    if {"next_step", "unreadable", "plan"} - set(state):
        raise ValueError(f"the state of an input pipeline has next_step, unreadable and plan, got {sorted(state)}")
    if state["plan"] != fingerprint:
        raise ValueError(
            f"the state belongs to another plan ({state['plan']}) than this one ({fingerprint}): "
            "images, batch size or seed have changed"
        )
    return int(state["next_step"]), list(state["unreadable"])


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
