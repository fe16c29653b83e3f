"""Train on pictures with labels, evaluate on held-out ones, and write a report.

    python -m experiments.train [PRESET] [--field value] [--workdir DIR]

Everything of a run is written into its working directory: config.json, metrics.jsonl, tensorboard/, checkpoints/,
evaluation.json and report.html. The same command on the same directory goes on where the run was stopped.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import tyro
from tqdm import tqdm

from experiments.config import Config, ConfigError, check_config, parse
from experiments.console import run_command
from experiments.evaluate import CHECKPOINTS, evaluate_run, validation_metrics
from experiments.presets import ABOUT, DEFAULT, PRESETS
from experiments.setup import (
    Experiment,
    claim_workdir,
    learning_rate,
    load_experiment,
    make_batch_plan,
    make_embedder,
    make_state,
    make_step,
)
from jaxmetric import parallel
from jaxmetric.data import SPLITS, PictureError, Plan, batches
from jaxmetric.training import (
    MetricWindow,
    MetricWriter,
    NonFiniteLossError,
    TrainState,
    open_checkpoints,
    restore_latest,
    save_checkpoint,
    stop_on_signals,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    name, (config, workdir) = read_command_line(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(name, config, workdir))


def read_command_line(argv: Sequence[str]) -> tuple[str, tuple[Config, Path]]:
    """The preset's name, the resolved configuration and the working directory; see `experiments.config.parse`."""
    return parse(
        PRESETS,
        ABOUT,
        DEFAULT,
        argv,
        program="experiments.train",
        purpose="Train on pictures with labels, evaluate, and write a report",
        command=_command,
    )


def _command(name: str, preset: Config) -> Callable[..., tuple[Config, Path]]:
    def command(
        config: tyro.conf.OmitArgPrefixes[Config] = preset, workdir: Path = Path(f"runs/{name}")
    ) -> tuple[Config, Path]:
        """Collects what the command line says.

        Args:
            config: The run.
            workdir: Where everything of the run is written. A run that was stopped goes on from its last checkpoint.
        """
        return config, workdir

    return command


def _run(name: str, config: Config, workdir: Path) -> int:
    check_config(config)
    experiment = load_experiment(config)
    plan = make_batch_plan(config.batch, experiment.source, seed=config.seed)
    claim_workdir(experiment, workdir)
    print(f"{name} -> {workdir}\n{_describe(experiment)}", flush=True)
    try:
        state, signal = train(experiment, plan, workdir)
    except NonFiniteLossError as error:
        raise ConfigError(f"{error}; the last good checkpoint is kept in {workdir / CHECKPOINTS}") from error
    if signal:
        print(f"stopped by {signal} after step {int(state.step)}; the same command goes on from there")
        return 130 if signal == "SIGINT" else 0
    print(evaluate_run(experiment, state, workdir))
    return 0


def train(experiment: Experiment, plan: Plan, workdir: Path) -> tuple[TrainState, str | None]:
    """Trains from the last checkpoint, or from the start, to the last step.

    Args:
      experiment: see `experiments.setup`.
      plan: the batches.
      workdir: where checkpoints and metrics are written.

    Returns:
      The state, and the name of the signal that stopped the run early, or None.

    Raises:
      NonFiniteLossError: if the loss or the parameters are not finite; no checkpoint is written from then on.
      CheckpointError: if a checkpoint cannot be read or written.
      PictureError: if a picture cannot be read any more.
    """
    config = experiment.config
    state = make_state(experiment)
    step_fn = parallel.drive_pmap(make_step(experiment))
    embed, rate = make_embedder(experiment), learning_rate(config)
    unreadable: list[PictureError] = []
    on_bad = unreadable.append if config.data.skip_bad else None
    with open_checkpoints(workdir / CHECKPOINTS) as checkpoints, stop_on_signals() as stop:
        state = parallel.replicate(restore_latest(checkpoints, state) or state)
        start = int(state.step)
        if start:
            print(f"going on after step {start}", flush=True)
        window = MetricWindow()
        with MetricWriter(workdir, step=start) as writer, _progress(start, config.steps) as show:
            stream = batches(experiment.source, plan, start, config.steps, on_bad=on_bad)
            for step, batch in enumerate(stream, start + 1):
                state, metrics = step_fn(state, batch)
                window.add(step, metrics, pictures=len(batch["image"]))
                last = step == config.steps or stop["signal"] is not None
                save = last or step % config.checkpoint_every == 0
                evaluate = config.evaluate_every and (step == config.steps or step % config.evaluate_every == 0)
                if save or evaluate or step % config.log_every == 0 or step == start + 1:
                    summary = window.summary()  # raises if anything was not finite, so that no such state is saved
                    writer.write(step, {**summary, "learning_rate": float(rate(step - 1))})
                    show(step, summary)
                if save:
                    save_checkpoint(checkpoints, state)
                if evaluate:
                    writer.write(step, validation_metrics(experiment, state, embed))
                    window.restart_clock()
                if last:
                    break
    if unreadable:
        distinct = sorted({str(error) for error in unreadable})
        print(f"warning: {len(distinct)} pictures could not be read and were replaced, such as {distinct[0]}")
    return state, stop["signal"] if int(state.step) < config.steps else None


def _describe(experiment: Experiment) -> str:
    source, config = experiment.source, experiment.config
    counts = ", ".join(f"{(source.split == code).sum():,} {name}" for code, name in enumerate(SPLITS))
    labels = ", ".join(f"{column.name} ({len(column.values)})" for column in source.columns)
    devices = f"{jax.local_device_count()} {jax.default_backend()} device{'s' * (jax.local_device_count() > 1)}"
    network = f"{config.network.encoder} on {devices}, {config.steps} steps"
    return f"  pictures: {counts}\n  labels: {labels}\n  network: {network}"


@contextmanager
def _progress(start: int, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function `(step, metrics)` that shows where the run is: a bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty():
        with tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True) as bar:

            def move(step: int, metrics: dict[str, float]) -> None:
                bar.set_postfix_str(_numbers(metrics), refresh=False)
                bar.update(step - bar.n)

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
        print(line, flush=True)

    yield tell


def _numbers(metrics: dict[str, float]) -> str:
    return f"loss {metrics['loss']:.4f}, {metrics['images_per_second']:.0f} images/s"


if __name__ == "__main__":
    sys.exit(main())
