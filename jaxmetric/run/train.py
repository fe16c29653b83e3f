"""Train on labeled images, evaluate on held-out ones, and write a report.

    jaxmetric train [PRESET] [--field value] [--workdir DIR]

A run writes all its files to its working directory: config.json, metrics.jsonl, tensorboard/, checkpoints/,
evaluation.json and report.html. The same command with the same directory continues a stopped run, on any number of
devices and processes. On the same number of devices the result is bit-identical.

`train` is the loop, to read and copy.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import tyro

from jaxmetric.data import Plan, batches, describe
from jaxmetric.data.problems import counted
from jaxmetric.parallel import Driven, placed_ahead
from jaxmetric.run.command_line import parse
from jaxmetric.run.comparable import comparable_plan
from jaxmetric.run.config import CONFIG_FILE, Config, Machine, check_config, check_machine
from jaxmetric.run.console import run_command, say, start_jax
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.evaluate import check_evaluation, evaluate_run, score_of, validation_metrics
from jaxmetric.run.experiment import (
    Experiment,
    check_step,
    check_weights,
    drive_step,
    initial_state,
    load_experiment,
    make_embedder,
    make_embedder_of_activations,
    restorable,
)
from jaxmetric.run.frozen import with_activations
from jaxmetric.run.presets import BUILT_IN, Preset
from jaxmetric.run.processes import follow_launcher, join_processes
from jaxmetric.run.progress import input_speed, report_progress, report_traces
from jaxmetric.run.source import has_own_split
from jaxmetric.run.workdir import CHECKPOINTS, claim_workdir, exclusive_workdir
from jaxmetric.training import (
    MetricWindow,
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
    """Returns the preset's name and its configuration, `Machine` and directory; see `command_line.parse`."""
    return parse(
        argv,
        presets,
        program=program,
        purpose="Train on labeled images, evaluate, and write a report",
        command=_command,
    )


def _command(name: str, preset: Config) -> Callable[..., tuple[Config, Machine, Path]]:
    def command(
        config: tyro.conf.OmitArgPrefixes[Config] = preset,
        machine: tyro.conf.OmitArgPrefixes[Machine] = DEFAULT_MACHINE,
        workdir: str = f"runs/{name}",
    ) -> tuple[Config, Machine, Path]:
        """Collects the arguments of the command line.

        Args:
            config: The run.
            machine: The use of the hardware.
            workdir: The directory of all files of the run. A stopped run continues from its last checkpoint.
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
            plan = comparable_plan(experiment.objective.terms, config, experiment.source)
            check_evaluation(experiment)
            if not (workdir / CONFIG_FILE).exists():
                check_weights(experiment)
            held.enter_context(exclusive_workdir(workdir))
            claim_workdir(experiment.config, experiment.source, workdir)
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
      experiment: the data, the network, the objective and the optimizer.
      plan: the images of the batches.
      workdir: the directory of checkpoints and metrics.
      machine: how the hardware is used.
      stop: a request to stop earlier.

    Returns:
      The state after the last step.

    Raises:
      NonFiniteLossError: if the loss or the parameters are not finite; no more checkpoints are written.
      CheckpointError: if a checkpoint cannot be read or written.
      FeatureStoreError: if the activations of frozen stages cannot be read or written.
      ImageError: if an image can no longer be read.
      InputError: if no batch comes, or a reading process is killed.
    """
    config = experiment.config
    train_step = drive_step(experiment, machine.driver)
    window = MetricWindow()
    with ExitStack() as stack:
        if machine.profile:
            stack.enter_context(report_traces(workdir))
        checkpoints = stack.enter_context(open_checkpoints(workdir / CHECKPOINTS))
        state, input_state = _restore_or_create(experiment, train_step, checkpoints)
        start = int(state.step)
        embed = make_embedder(experiment)
        if config.network.freeze_until and start < config.steps:
            with stop.interruptible():
                experiment = with_activations(experiment, state, machine)
            embed = make_embedder_of_activations(experiment)
        report = stack.enter_context(report_progress(workdir, start, config.steps))
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
        placed = placed_ahead(stream, train_step.place_batch)
        profile = workdir / "tensorboard" if machine.profile else None
        before = None
        for step, batch in enumerate(profiled(placed, profile), start + 1):
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                state, metrics = train_step(state, batch)
            # One step is queued behind the current one; a stop would have to wait for any further ones.
            jax.block_until_ready(before)
            before = metrics
            window.add(step, metrics, images=config.batch.size)

            last = stop.agreed() or step == config.steps
            evaluate = config.evaluate_every and (step == config.steps or not (last or step % config.evaluate_every))
            save = last or evaluate or step % config.checkpoint_every == 0
            if save or step % config.log_every == 0 or step == start + 1:
                report.metrics(step, window.summary() | input_speed(stream), last=last)
            validation = {}
            if evaluate:
                check_finite(state)
                validation = validation_metrics(experiment, state, embed)
            if save:
                # One batch is prefetched beyond the last one used.
                input_state = {**stream.state(), "next_step": step}
                save_checkpoint(checkpoints, state, extra={"input": input_state}, score=score_of(validation))
            if validation:
                report.validation(step, validation)
            if evaluate:
                window.restart_clock()
            if last:
                break
    _warn_of_unreadable(stream.state()["unreadable"])
    return state


def _restore_or_create(
    experiment: Experiment, train_step: Driven[TrainState], checkpoints: Any
) -> tuple[TrainState, Any]:
    """Returns the state to start from, and the state of the input."""
    shapes, resize = restorable(experiment, train_step)
    restored = restore_latest(checkpoints, shapes, resize=resize)
    if restored is None:
        return initial_state(experiment, train_step), 0
    step, steps = int(restored.state.step), experiment.config.steps
    say(f"going on after step {step}" if step < steps else f"all {steps} steps are done; evaluating again")
    return train_step.place_state(restored.state), restored.extra["input"]


def _warn_of_unreadable(names: Sequence[str]) -> None:
    if names:
        who = f"process {jax.process_index()}: " if jax.process_count() > 1 else ""
        replaced = counted(len(names), "image could not be read and was", "images could not be read and were")
        warnings.warn(f"{who}{replaced} replaced, such as {names[0]}", stacklevel=3)


def _describe(experiment: Experiment) -> str:
    config = experiment.config
    devices = f"{jax.device_count()} {jax.default_backend()} device{'s' * (jax.device_count() > 1)}"
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    pretrained = "pretrained " * config.network.starts_pretrained
    network = f"network: {pretrained}{config.network.encoder} on {devices}{processes}, {config.steps} steps"
    unused = config.data.split == "disjoint" and has_own_split(config, experiment.source)
    split = ["split: that of the list; --split disjoint is only for a list without a split column"] * unused
    return "\n".join(f"  {line}" for line in (*describe(experiment.source).splitlines(), *split, network))
