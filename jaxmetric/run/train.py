"""Train on pictures with labels, evaluate on held-out ones, and write a report.

    jaxmetric train [PRESET] [--field value] [--workdir DIR]

Everything of a run is written into its working directory: config.json, metrics.jsonl, tensorboard/, checkpoints/,
evaluation.json and report.html. The same command on the same directory goes on where the run was stopped, on any number
of devices and processes; on the same number of devices to the same bits.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tyro
from tqdm import tqdm

from jaxmetric.data import BatchIterator, Plan, batches, describe
from jaxmetric.data.problems import counted
from jaxmetric.parallel import Driven, placed_ahead
from jaxmetric.run.command_line import parse
from jaxmetric.run.comparable import comparable_plan
from jaxmetric.run.config import Config, ConfigError, Machine, check_config, check_machine
from jaxmetric.run.console import run_command, say, start_jax
from jaxmetric.run.evaluate import check_evaluation, evaluate_run, score_of, validation_metrics
from jaxmetric.run.presets import BUILT_IN, Preset
from jaxmetric.run.processes import follow_launcher, join_processes
from jaxmetric.run.setup import (
    CHECKPOINTS,
    Experiment,
    check_step,
    claim_workdir,
    drive_step,
    has_own_split,
    load_experiment,
    make_embedder,
    make_state,
    restorable,
    sole_run,
)
from jaxmetric.training import (
    MetricWindow,
    MetricWriter,
    NonFiniteLossError,
    StopRequest,
    TrainState,
    check_finite,
    open_checkpoints,
    profiled,
    restore_latest,
    save_checkpoint,
    stop_on_signals,
)

DEFAULT_MACHINE = Machine()
_SOME_STEPS = 20  # after which it is told that no batch had anything to compare


def main(
    argv: Sequence[str] | None = None,
    *,
    program: str = "jaxmetric train",
    presets: Mapping[str, Preset] = BUILT_IN,
) -> int:
    """Runs the command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    name, (config, machine, workdir) = read_command_line(words, program=program, presets=presets)
    return run_command(lambda: _run(name, config, machine, workdir))


def read_command_line(
    argv: Sequence[str], *, program: str = "jaxmetric train", presets: Mapping[str, Preset] = BUILT_IN
) -> tuple[str, tuple[Config, Machine, Path]]:
    """The preset's name, the configuration and the working directory; see `jaxmetric.run.command_line.parse`."""
    return parse(
        argv,
        presets,
        program=program,
        purpose="Train on pictures with labels, evaluate, and write a report",
        command=_command,
    )


def _command(name: str, preset: Config) -> Callable[..., tuple[Config, Machine, Path]]:
    def command(
        config: tyro.conf.OmitArgPrefixes[Config] = preset,
        machine: tyro.conf.OmitArgPrefixes[Machine] = DEFAULT_MACHINE,
        workdir: str = f"runs/{name}",
    ) -> tuple[Config, Machine, Path]:
        """Collects what the command line says.

        Args:
            config: The run.
            machine: What it runs on.
            workdir: Where everything of the run is written. A run that was stopped goes on from its last checkpoint.
        """
        if not workdir:
            sys.exit("error: workdir is empty, expected a directory")
        return config, machine, Path(workdir)

    return command


def _run(name: str, config: Config, machine: Machine, workdir: Path) -> int:
    check_config(config)
    check_machine(machine, config)
    if machine.distributed:
        follow_launcher()
        join_processes()
    with stop_on_signals() as stop, ExitStack() as held:
        with stop.interruptible():
            start_jax()
            experiment = load_experiment(config)
            check_step(experiment)
            plan = comparable_plan(config, experiment.source)
            check_evaluation(experiment)
            held.enter_context(sole_run(workdir))
            claim_workdir(experiment, workdir)
        say(f"{name} -> {workdir}\n{_describe(experiment)}")
        try:
            state = train(experiment, plan, workdir, machine, stop)
        except NonFiniteLossError as error:
            kept = f"kept in {workdir / CHECKPOINTS}, if there is one"
            raise ConfigError(f"{error}; the last good checkpoint is {kept}") from error
        if int(state.step) < config.steps:
            say(f"stopped by {stop.signal} after step {int(state.step)}; the same command goes on from there")
            return 130 if stop.signal == "SIGINT" else 0
        with stop.interruptible():
            say(evaluate_run(experiment, state, workdir))
    return 0


def train(experiment: Experiment, plan: Plan, workdir: Path, machine: Machine, stop: StopRequest) -> TrainState:
    """Trains from the last checkpoint, or from the start, to the last step.

    Args:
      experiment: see `jaxmetric.run.setup`.
      plan: the batches.
      workdir: where checkpoints and metrics are written.
      machine: what runs the step, and what reads the pictures.
      stop: a wish to stop earlier.

    Returns:
      The state.

    Raises:
      NonFiniteLossError: if the loss or the parameters are not finite; no checkpoint is written from then on.
      CheckpointError: if a checkpoint cannot be read or written.
      PictureError: if a picture cannot be read any more.
      InputError: if no batch comes, or a process that reads is killed.
    """
    config = experiment.config
    driven = drive_step(experiment, machine.driver)
    embed, window = make_embedder(experiment), MetricWindow()
    older_traces = _traces(workdir)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(workdir / CHECKPOINTS))
        state, input_state = _begin(experiment, driven, checkpoints)
        start = int(state.step)
        write = _metric_writer(stack, workdir, start)
        show = stack.enter_context(_progress(start, config.steps))
        watch = _watch_comparisons(start)
        stream = batches(
            experiment.source,
            plan,
            input_state,
            config.steps,
            on_bad=(lambda _: None) if config.data.skip_bad else None,
            workers=machine.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            timeout=machine.input_timeout,
        )
        stack.enter_context(closing(stream))
        before = None
        placed = placed_ahead(stream, driven.place_batch)
        for step, batch in enumerate(profiled(placed, workdir / "tensorboard" if machine.profile else None), start + 1):
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                state, metrics = driven(state, batch)
            # The next step is ready to begin when this one ends; more would have to end too before the run can stop.
            jax.block_until_ready(before)
            before = metrics
            window.add(step, metrics, pictures=config.batch.size)
            last = stop.agreed() or step == config.steps
            evaluate = config.evaluate_every and (step == config.steps or not (last or step % config.evaluate_every))
            save = last or evaluate or step % config.checkpoint_every == 0
            if save or step % config.log_every == 0 or step == start + 1:
                summary = window.summary() | _input_speed(stream)
                write(step, summary)
                show(step, summary)
                if warning := watch(step, summary, last=last):
                    _say_beside_bar(warning)
            if evaluate:
                check_finite(state)
            validation = validation_metrics(experiment, state, embed) if evaluate else {}
            if save:
                # One batch more than were used lies ready.
                extra = {"input": {**stream.state(), "next_step": step}}
                save_checkpoint(checkpoints, state, extra=extra, score=score_of(validation))
            if validation:
                write(step, validation)
                _say_beside_bar(f"validation after step {step}: {_validated(validation)}")
            if evaluate:
                window.restart_clock()
            if last:
                break
    if machine.profile:
        say(_where_traced(_traces(workdir) - older_traces))
    if bad := stream.state()["unreadable"]:
        who = f"process {jax.process_index()}: " if jax.process_count() > 1 else ""
        replaced = counted(len(bad), "image could not be read and was", "images could not be read and were")
        warnings.warn(f"{who}{replaced} replaced, such as {bad[0]}", stacklevel=2)
    return state


def _begin(
    experiment: Experiment, driven: Driven[TrainState], checkpoints: ocp.CheckpointManager
) -> tuple[TrainState, Any]:
    """The state of the run, and that of its input, to go on from."""
    shapes, resize = restorable(experiment, driven)
    restored = restore_latest(checkpoints, shapes, resize=resize)
    if restored is None:
        return driven.create_state(lambda: make_state(experiment)), 0
    step, steps = int(restored.state.step), experiment.config.steps
    say(f"going on after step {step}" if step < steps else f"all {steps} steps are done; evaluating again")
    return driven.place_state(restored.state), restored.extra["input"]


def _watch_comparisons(start: int) -> Callable[..., str | None]:
    """A function `(step, summary, last)` that returns a warning, once, if a term found nothing in any batch so far."""
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
            "was 0; see --classes-per-batch, --pictures-per-class and the missing labels"
        )

    return watch


def _input_speed(stream: BatchIterator) -> dict[str, float]:
    """What the input could give to a step that took no time, and how long the steps waited for it."""
    speed = stream.speed()
    return {
        "input_images_per_second": speed.images_per_second * jax.process_count(),
        "input_wait_seconds": speed.waited_seconds,
    }


def _traces(workdir: Path) -> set[Path]:
    return set((workdir / "tensorboard").glob("plugins/profile/*"))


def _where_traced(traces: set[Path]) -> str:
    if not traces:
        return "no step was traced: tracing begins with the fourth step after a start"
    return f"steps were traced, for TensorBoard's Profile page and ui.perfetto.dev, into {max(traces)}"


def _metric_writer(stack: ExitStack, workdir: Path, start: int) -> Callable[[int, Mapping[str, float | None]], None]:
    """Writes metrics in one of the processes."""
    if jax.process_index():
        return lambda step, metrics: None
    return stack.enter_context(MetricWriter(workdir, step=start)).write


def _describe(experiment: Experiment) -> str:
    config = experiment.config
    devices = f"{jax.device_count()} {jax.default_backend()} device{'s' * (jax.device_count() > 1)}"
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    network = f"network: {config.network.encoder} on {devices}{processes}, {config.steps} steps"
    unused = config.data.split == "disjoint" and has_own_split(config, experiment.source)
    split = ["split: that of the list; --split disjoint is only for a list without a split column"] * unused
    return "\n".join(f"  {line}" for line in (*describe(experiment.source).splitlines(), *split, network))


@contextmanager
def _progress(start: int, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function `(step, metrics)` that shows where the run is: a bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty() and jax.process_index() == 0:
        doing = "compiling" if start < steps else None
        with tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, postfix=doing) as bar:

            def move(step: int, metrics: dict[str, float]) -> None:
                bar.set_postfix_str(_numbers(metrics), refresh=False)
                if step > start + 1:
                    bar.update(step - bar.n)
                    return
                bar.initial = bar.n = bar.last_print_n = step  # which was compiled: time is counted from its end
                bar.unpause()
                bar.refresh()

            yield move
        return
    first: list[tuple[int, float]] = []  # the first step compiles, so that time is counted from its end

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


def _say_beside_bar(text: str) -> None:
    with tqdm.external_write_mode():
        say(text)


def _numbers(metrics: Mapping[str, Any]) -> str:
    speed, of_input = metrics["images_per_second"], metrics["input_images_per_second"]
    could = f" (input up to {of_input:,.0f})" if of_input else ""  # nothing was read since the last line
    return f"loss {metrics['loss']:.4f}, {speed:,.0f} images/s{could}"


def _validated(metrics: Mapping[str, float | None]) -> str:
    values = {name: "undefined" if value is None else f"{value:.3f}" for name, value in metrics.items()}
    return ", ".join(f"{name.removeprefix('validation/')} {value}" for name, value in values.items())
