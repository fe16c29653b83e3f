"""Evaluate a trained run on its held-out pictures and write evaluation.json and report.html.

python -m experiments.evaluate --workdir DIR [--checkpoint best]
"""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from experiments.config import ConfigError, flatten, load_config
from experiments.console import leave, run_command, start_jax
from experiments.setup import (
    CHECKPOINTS,
    Experiment,
    alone_in,
    claim_workdir,
    drive_step,
    evaluated_split,
    load_experiment,
    make_embedder,
    make_state,
    restorable,
)
from jaxmetric.data import LEARNING, SPLITS, VALIDATION
from jaxmetric.metrics import evaluate_embeddings, knn_labels
from jaxmetric.report import Run, write_report
from jaxmetric.report.page import SHOWN_NEIGHBORS
from jaxmetric.search import nearest_neighbors
from jaxmetric.training import (
    CheckpointError,
    Embed,
    TrainState,
    open_checkpoints,
    read_metrics,
    restore_best,
    restore_latest,
    write_atomically,
)
from jaxmetric.training.checkpoints import Restored

EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"


class HeldOut(NamedTuple):
    """Which pictures ask and which answer.

    Where the queries' identities were learnt, the learning pictures answer, as in the quadruplet paper. Where none
    was, the queries answer each other, each leaving itself out, as in the retrieval of unseen classes.
    """

    queries: np.ndarray
    gallery: np.ndarray
    unseen: bool


class Embedded(NamedTuple):
    """A held-out part in numbers."""

    queries: np.ndarray
    gallery: np.ndarray
    evaluation: dict[str, Any]


def held_out(experiment: Experiment, part: int) -> HeldOut:
    """Chooses queries and gallery for the pictures of a split."""
    source = experiment.source
    queries = np.flatnonzero(source.split == part)
    learnt = np.flatnonzero(source.split == LEARNING)
    identities = source.labels[queries, 0]
    unseen = not np.isin(identities[identities >= 0], source.labels[learnt, 0]).any()
    return HeldOut(queries, queries if unseen else learnt, unseen)


def embed_and_evaluate(experiment: Experiment, state: TrainState, embed: Embed, part: HeldOut) -> Embedded:
    """Embeds queries and gallery and computes every metric."""
    source = experiment.source
    queries = embed(state, _Subset(source.images, part.queries))
    gallery = queries if part.unseen else embed(state, _Subset(source.images, part.gallery))
    evaluation = evaluate_embeddings(
        queries,
        source.labels[part.queries],
        gallery,
        source.labels[part.gallery],
        [column.name for column in source.columns],
        exclude_self=part.unseen,
        k=experiment.config.neighbors,
        seed=experiment.config.seed,
    )
    return Embedded(queries, gallery, evaluation)


def validation_metrics(experiment: Experiment, state: TrainState, embed: Embed) -> dict[str, float | None]:
    """What the learning curves show of the validation pictures; nothing if there are none."""
    part = held_out(experiment, VALIDATION)
    if len(part.queries) < 2:
        return {}
    evaluation = embed_and_evaluate(experiment, state, embed, part).evaluation
    return {
        **{f"validation/{name}/recall@1": column["recall"]["1"] for name, column in evaluation["columns"].items()},
        "validation/coherence": evaluation["coherence"]["spearman"],
    }


def score_of(validation: Mapping[str, float | None]) -> float | None:
    """By which the best checkpoint is kept: the mean Recall@1 of all label columns; None if nothing was validated."""
    recalls = [value for name, value in validation.items() if name.endswith("/recall@1") and value is not None]
    return float(np.mean(recalls)) if recalls else None


def evaluate_run(experiment: Experiment, state: TrainState, workdir: Path, *, name: str = "") -> str:
    """Evaluates a state on the held-out pictures, writes evaluation.json and report.html, and returns a summary.

    Args:
      experiment: see `experiments.setup`.
      state: of any step.
      workdir: of the run.
      name: put before the suffix of both files, for a state that is not the last.
    """
    split = evaluated_split(experiment.source)
    part = held_out(experiment, split)
    embed = make_embedder(experiment)
    untrained = embed_and_evaluate(experiment, _untrained(experiment), embed, part).evaluation
    trained = embed_and_evaluate(experiment, state, embed, part)
    facts = {"step": int(state.step), "split": SPLITS[split], "unseen_identities": part.unseen}
    result = {**facts, **trained.evaluation, "untrained": untrained}
    evaluation, report = (_named(workdir / file, name) for file in (EVALUATION_FILE, REPORT_FILE))
    if jax.process_index() == 0:
        write_atomically(evaluation, json.dumps(result, indent=2) + "\n")
        write_report(report, _report(experiment, workdir, part, trained, untrained))
    return _summary(trained.evaluation, untrained, report)


def _untrained(experiment: Experiment) -> TrainState:
    """The network before the first step. Class vectors and moments, which may not fit one device, are never made."""

    def create() -> TrainState:
        state = make_state(experiment)
        return state.replace(params={**state.params, "loss": {}}, opt_state=())

    return jax.jit(create)()


def _named(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}{path.suffix}") if name else path


def _report(
    experiment: Experiment, workdir: Path, part: HeldOut, trained: Embedded, untrained: Mapping[str, Any]
) -> Run:
    source = experiment.source
    itself = np.arange(len(part.queries)) if part.unseen else None
    count = min(max(SHOWN_NEIGHBORS, experiment.config.neighbors), len(part.gallery) - part.unseen)
    distances, neighbors = nearest_neighbors(trained.queries, trained.gallery, count, exclude=itself)
    voters = min(experiment.config.neighbors, count)
    gallery_labels = source.labels[part.gallery]
    return Run(
        name=workdir.name,
        config=flatten(dataclasses.asdict(experiment.config)),
        history=read_metrics(workdir),
        evaluation=trained.evaluation,
        baseline=untrained,
        columns=source.columns,
        query_images=np.stack([source.images[i] for i in part.queries]),
        query_names=[source.names[i] for i in part.queries],
        query_labels=source.labels[part.queries],
        query_embeddings=trained.queries,
        gallery_images=_Subset(source.images, part.gallery),
        gallery_labels=gallery_labels,
        neighbors=np.asarray(neighbors),
        neighbor_distances=np.asarray(distances),
        predictions=knn_labels(distances[:, :voters], neighbors[:, :voters], gallery_labels),
        environment=_environment(),
        gallery_name="the other held-out pictures" if part.unseen else "the learning set",
    )


def _environment() -> dict[str, str]:
    packages = ("jaxmetric", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {name: metadata.version(name) for name in packages}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"python": platform.python_version(), **versions, "devices": devices}


def _summary(evaluation: Mapping[str, Any], untrained: Mapping[str, Any], report: Path) -> str:
    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:9.3f}"

    lines = [
        f"{evaluation['queries']:,} held-out pictures, each compared with {evaluation['gallery']:,} others:",
        f"{'':24s}{'trained':>9s}{'untrained':>12s}",
    ]
    for name, column in evaluation["columns"].items():
        before = untrained["columns"][name]["recall"]["1"]
        lines.append(f"{name + ' Recall@1':24s}{number(column['recall']['1'])}{number(before):>12s}")
    for label, group, key in (("all labels right", "joint", "all_correct"), ("coherence", "coherence", "spearman")):
        lines.append(f"{label:24s}{number(evaluation[group][key])}{number(untrained[group][key]):>12s}")
    return "\n".join([*lines, f"report: {report}"])


class _Subset(Sequence[np.ndarray]):
    """Some of the pictures of a source, in a given order, read when asked for."""

    def __init__(self, images: Sequence[np.ndarray] | np.ndarray, indices: np.ndarray):
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's slices are of no use here
        return self._images[int(self._indices[index])]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""

    def command(workdir: Path, checkpoint: Literal["latest", "best"] = "latest") -> tuple[Path, str]:
        """Evaluates a checkpoint of a run and writes its report anew.

        Args:
            workdir: The run's directory, as given to experiments.train.
            checkpoint: The newest, or the one that did best on the validation pictures (into report-best.html).
        """
        return workdir, checkpoint

    workdir, checkpoint = tyro.cli(command, args=argv, prog="python -m experiments.evaluate")
    return run_command(lambda: _run(workdir, checkpoint))


def _run(workdir: Path, checkpoint: str) -> None:
    config = load_config(workdir)
    start_jax()
    experiment = load_experiment(config)
    claim_workdir(experiment, workdir)
    with alone_in(workdir) as alone:
        restored = _restore(experiment, workdir, checkpoint, alone)
    if restored is None:
        raise ConfigError(
            f"{workdir} holds no checkpoint that was validated; evaluate_every is {config.evaluate_every}"
        )
    print(f"the {checkpoint} checkpoint is that of step {int(restored.state.step)}")
    print(evaluate_run(experiment, restored.state, workdir, name="best" if checkpoint == "best" else ""))


def _restore(experiment: Experiment, workdir: Path, checkpoint: str, alone: bool) -> Restored | None:
    """Restores a checkpoint; a run that is under way may delete it meanwhile, having written another."""
    shapes, resize = restorable(experiment, drive_step(experiment, "shard_map"))
    tries_left = 1 if alone else 10
    while True:
        try:
            with open_checkpoints(workdir / CHECKPOINTS, alone=alone) as checkpoints:
                if checkpoints.latest_step() is None:
                    raise ConfigError(f"{workdir} holds no checkpoint yet")
                if checkpoint == "best":
                    return restore_best(checkpoints, shapes, resize=resize)
                return restore_latest(checkpoints, shapes, resize=resize, alone=alone)
        except CheckpointError:
            tries_left -= 1
            if not tries_left:
                raise


if __name__ == "__main__":
    leave(main)
