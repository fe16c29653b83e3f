"""The output of a training: a bar on a terminal, lines elsewhere, warnings, and the files of metrics."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from jaxmetric.data import BatchIterator
from jaxmetric.run.console import say
from jaxmetric.training import MetricWriter

_SOME_STEPS = 20  # before a warning that a term had nothing to compare


class Report(NamedTuple):
    """The functions that receive the measurements of the loop.

    Attributes:
      metrics: `(step, summary, last=False)`: writes and shows metrics of steps.
      validation: `(step, metrics)`: writes and shows the metrics of the validation images.
    """

    metrics: Callable[..., None]
    validation: Callable[[int, Mapping[str, float | None]], None]


@contextmanager
def report_progress(workdir: Path, start: int, steps: int) -> Iterator[Report]:
    """Writes metrics to a directory and shows them on the console, in one process of a job.

    Args:
      workdir: the directory of the run.
      start: the step after which the run starts.
      steps: the last step.
    """
    with ExitStack() as stack:
        write = stack.enter_context(MetricWriter(workdir, step=start)).write if jax.process_index() == 0 else _nowhere
        show = stack.enter_context(_bar_or_lines(start, steps))
        watch = watch_comparisons(start)

        def metrics(step: int, summary: dict[str, float], *, last: bool = False) -> None:
            write(step, summary)
            show(step, summary)
            if warning := watch(step, summary, last=last):
                _say_beside_bar(warning)

        def validation(step: int, found: Mapping[str, float | None]) -> None:
            write(step, found)
            _say_beside_bar(f"validation after step {step}: {_validated(found)}")

        yield Report(metrics, validation)


@contextmanager
def _bar_or_lines(start: int, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Yields a function `(step, metrics)` that shows the progress: a bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty() and jax.process_index() == 0:
        doing = "compiling" if start < steps else None
        with tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, postfix=doing) as bar:

            def move(step: int, metrics: dict[str, float]) -> None:
                bar.set_postfix_str(_numbers(metrics), refresh=False)
                if step > start + 1:
                    bar.update(step - bar.n)
                    return
                bar.initial = bar.n = bar.last_print_n = step  # excludes the first step, which compiles
                bar.unpause()
                bar.refresh()

            yield move
        return
    first: list[tuple[int, float]] = []

    def tell(step: int, metrics: dict[str, float]) -> None:
        line = f"step {step}/{steps}, {_numbers(metrics)}"
        if first:
            began_step, began = first[0]
            left = (time.monotonic() - began) / (step - began_step) * (steps - step)
            line += f", {tqdm.format_interval(left)} left"
        else:
            first.append((step, time.monotonic()))
        say(line)

    yield tell


def _nowhere(step: int, metrics: Mapping[str, float | None]) -> None:
    pass


def _say_beside_bar(text: str) -> None:
    with tqdm.external_write_mode():
        say(text)


def _numbers(metrics: Mapping[str, Any]) -> str:
    speed, of_input = metrics["images_per_second"], metrics["input_images_per_second"]
    could = f" (input up to {of_input:,.0f})" if of_input else ""  # 0 if nothing was read since the last line
    return f"loss {metrics['loss']:.4f}, {speed:,.0f} images/s{could}"


def _validated(metrics: Mapping[str, float | None]) -> str:
    values = {name: "undefined" if value is None else f"{value:.3f}" for name, value in metrics.items()}
    return ", ".join(f"{name.removeprefix('validation/')} {value}" for name, value in values.items())


def watch_comparisons(start: int) -> Callable[..., str | None]:
    """Returns `(step, summary, last)`, which warns once if a term had nothing to compare in any batch so far."""
    never: set[str] | None = None
    told = False

    def watch(step: int, summary: Mapping[str, float], *, last: bool) -> str | None:
        nonlocal never, told
        nothing = {name for name, value in summary.items() if name.startswith("valid/") and value == 0}
        never = nothing if never is None else never & nothing
        if told or not never or not (last or step - start >= _SOME_STEPS):
            return None
        told = True
        terms = " and ".join(sorted(name.removeprefix("valid/") for name in never))
        seen = f"in any of the {step - start} batches" if step - start > 1 else "in the one batch"
        return (
            f"warning: nothing to compare for {terms} {seen} so far, so that its loss "
            "was 0; see --classes-per-batch, --images-per-class and the missing labels"
        )

    return watch


def input_speed(stream: BatchIterator) -> dict[str, float]:
    """Returns the images per second that the input could deliver, and the time that the steps waited for it."""
    speed = stream.speed()
    return {
        "input_images_per_second": speed.images_per_second * jax.process_count(),
        "input_wait_seconds": speed.waited_seconds,
    }


@contextmanager
def report_traces(workdir: Path) -> Iterator[None]:
    """Prints, on exit, the path of the trace."""
    folder = workdir / "tensorboard"
    before = set(folder.glob("plugins/profile/*"))
    yield
    if traces := set(folder.glob("plugins/profile/*")) - before:
        say(f"steps were traced, for TensorBoard's Profile page and ui.perfetto.dev, into {max(traces)}")
    else:
        say("no step was traced: tracing begins with the fourth step after a start")
