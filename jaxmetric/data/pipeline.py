"""Reads the batches of a plan ahead, in threads or in worker processes: `batches`.

A batch depends only on the plan and the step number. A run that resumes at any step therefore gets the same
batches for any number of threads, workers and processes, and its state is a step number.

grain reads ahead. One more thread asks it for batches, so that the consumer waits on a queue and can stop
waiting for a file that never arrives (a hung mount) or a worker that was killed. All threads are daemons and
workers end with their parent, so that a hung read cannot keep the program from ending.
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

from jaxmetric.data.batch_plans import Plan, batch_indices, plan_fingerprint
from jaxmetric.data.labeled_images import ImageError, InputError, InputTimeoutError, LabeledImages
from jaxmetric.data.reading import read_batch, rows_of

_PATIENCE = 5.0  # seconds before workers that have not ended are killed
_START_SECONDS = 120.0  # added to the timeout while workers start
_LIMIT = 60.0  # most seconds to wait while ending; grain itself kills a worker after 25
_UNLINK_SECONDS = 0.2
_NAMED = 3  # images named in the message of a timeout
_EXIT_HINTS = {
    -9: "killed, as the kernel does when memory runs out",
    -7: "a bus error, as when /dev/shm is full",
    1: "it could not start; a script that uses workers keeps its work under if __name__ == '__main__'",
}


class InputSpeed(NamedTuple):
    """The speed of the input pipeline.

    Attributes:
      waited_seconds: time that the consumer waited for batches.
      images_per_second: the rate that the pipeline could deliver to a consumer that never pauses; 0 before the first
        batch. It is n / max(b / R, c / M) for n images, read by R readers (the threads of all workers together) in
        b seconds with c seconds of CPU time, on M cores.
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
    """Iterates over the batches of steps `start` to `stop` (excluded), reading ahead.

    Args:
      source: the images and labels.
      plan: the images of each batch.
      start: the first step, from 0, or the result of `BatchIterator.state`, to resume from there.
      stop: the step after the last.
      on_bad: called for each image that cannot be read, in the consumer's thread, before the batch is returned.
        Another image of the class replaces it. By default the error ends the iteration.
      workers: number of reading processes; 0 reads in threads of this process. A source in memory uses none, since
        workers would only copy it. Workers are spawned: guard a script's work by `if __name__ == "__main__"`.
      threads: number of batches that this process, or each worker, reads at the same time.
      prefetch: largest number of prefetched batches; each worker holds up to four more in transit.
      process_index: p, such as `jax.process_index()`.
      process_count: n, such as `jax.process_count()`. Process p reads rows `[p B / n, (p + 1) B / n)` of every
        batch of B. Together, the processes read the same batch as a single process.
      timeout: seconds to wait for a batch (120 more for the first one from workers, which have to start). None waits
        forever.

    Returns:
      An iterator of batches: "image" `[B / n, S, S, 3]` with the dtype of the source, "label" int32 `[B / n, T]`,
      "index" int32 `[B / n]`.

    Raises:
      ValueError: unless 0 <= start <= stop, or if a number is out of range, n processes cannot share the batch
        evenly, the plan has images that the source lacks, or the state belongs to another plan.
      ImageError: while iterating, if an image cannot be read (or, with `on_bad`, no image of its class).
      InputTimeoutError: while iterating, if no batch came in time.
      InputError: while iterating, if a worker died, or reading failed for another reason.
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
    """The iterator of `batches`, which can be saved, timed and closed.

    Its state is the next step rather than grain's state, which describes the buffers of a fixed number of workers.
    Any number of workers, threads and processes can resume from a step.
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
        """Returns the state needed to resume after the last returned batch.

        Returns:
          A dictionary for JSON: "next_step"; "unreadable", the distinct messages of the images that this process
          could not read so far; "plan", a fingerprint. Pass it as `start` to `batches` with the same plan to get the
          remaining batches, bit for bit, with any number of workers, threads and processes.
        """
        return {"next_step": self._step, "unreadable": sorted(self._unreadable), "plan": self._fingerprint}

    def speed(self) -> InputSpeed:
        """Returns the speed since the last call."""
        seconds = max(self._busy_seconds / self._readers, self._cpu_seconds / _cores())
        speed = InputSpeed(self._waited_seconds, self._images / seconds if seconds else 0.0)
        self._restart_clocks()
        return speed

    def close(self) -> None:
        """Stops reading and ends the workers. An error and deleting the iterator do the same."""
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
                f"{_some_names(self._names(self._step))}"
            ) from None
        finally:
            self._waited_seconds += time.perf_counter() - began


class _Reading(NamedTuple):
    """The result of reading one step, in a form that a worker can send."""

    batch: dict[str, np.ndarray] | None
    unreadable: tuple[str, ...]
    error: Exception | None
    seconds: float
    cpu_seconds: float


def _attempt(
    source: LabeledImages, plan: Plan, step: int, around: bool, process_index: int, process_count: int
) -> _Reading:
    """Reads one step and returns an error as a value, so that threads and workers report it in the same way."""
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

    Only this thread calls grain, where it may hang. It holds no reference to the iterator. It blocks the signals
    that a terminal sends to all processes, and the workers that it starts inherit that, so that they neither print a
    traceback nor end before their parent has saved.
    """

    def __init__(
        self, read: Callable[[int], _Reading], start: int, stop: int, *, workers: int, threads: int, ahead: int
    ) -> None:
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Reading] = queue.SimpleQueue()
        self._start = start
        self._start_seconds = _START_SECONDS if workers else 0.0
        ended = threading.Event()
        # This also starts Python's resource tracker, which would unblock the signals of the thread that starts it.
        self._roster = ShareableList([0] * workers) if workers else None
        dataset = partial(_dataset, read, start, stop, threads, ahead, workers, self._roster)
        threading.Thread(
            target=_feed, args=(dataset, workers > 0, self._asked, self._ready, ended), daemon=True
        ).start()
        self._asked.put(True)
        # At exit this runs before grain's own finalizers, which would wait for a hung worker.
        self.close = Finalize(self, _end, args=(self._asked, ended, self._roster), exitpriority=100)

    def take(self, timeout: float | None) -> _Reading:
        """Returns the next reading; raises `queue.Empty` after `timeout` seconds, or later while workers start."""
        self._asked.put(True)
        reading = self._ready.get(timeout=timeout if timeout is None else timeout + self._start_seconds)
        self._start_seconds = 0.0
        return reading

    def abandon(self, step: int) -> None:
        """Ends the feed while the reading of a step hangs."""
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
        gc.collect()  # cycles of frames and tracebacks keep the workers' last batches in shared memory
        time.sleep(_UNLINK_SECONDS)  # for grain's thread that removes it; otherwise Python warns about it at exit
    ended.set()


def _hand_over(readings: Any, asked: "queue.SimpleQueue[bool]", ready: "queue.SimpleQueue[_Reading]") -> None:
    while asked.get():
        ready.put(_owned(next(readings)))
    readings.close()


def _owned(reading: _Reading) -> _Reading:
    """Copies a batch out of shared memory, which would run out if the consumer kept batches."""
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
    """Makes the grain pipeline, which yields readings in the order of their steps."""
    steps = grain.MapDataset.range(start, stop).map(read)
    if roster is None:
        # A hung thread of grain's default pool would keep the program from ending; these threads are daemons.
        in_order = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return grain.experimental.multithread_prefetch(in_order, num_threads=threads, buffer_size=ahead // threads)
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain 0.2.18 reads a flag even so (google/grain issue 1355)
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return steps.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers), partial(_enter_worker, roster.shm.name)
    )


def _enter_worker(roster: str, index: int, count: int) -> None:
    """Initializes a worker: registers its id, ends it with its parent, and keeps it off the devices."""
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
    """Stops a feed. If it does not stop in time, its workers are killed and a hung thread is abandoned."""
    asked.put(False)
    stopped = ended.wait(_PATIENCE)
    if roster is None:
        return
    limit = time.monotonic() + _LIMIT
    while not stopped and time.monotonic() < limit:  # a worker that is still starting registers late
        _kill([roster[i] for i in range(len(roster))])
        stopped = ended.wait(0.1)
    roster.shm.close()
    roster.shm.unlink()


def _kill(pids: Sequence[int]) -> None:
    for child in multiprocessing.active_children():
        if child.pid in pids:
            child.kill()


def _explained(error: Exception) -> InputError:
    """Converts an error of grain: the death of a worker, or something unexpected."""
    died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if died is None:
        return _in_one_line(error, "reading ahead failed")
    hint = _EXIT_HINTS.get(int(died[1]))
    return InputError(f"a worker process ended with exit code {died[1]}{f' ({hint})' if hint else ''}")


def _in_one_line(error: Exception, what: str) -> InputError:
    """Returns a one-line error with the traceback as text. A traceback cannot be sent and keeps batches alive."""
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


def _some_names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
