"""Evaluate a trained run on its held-out images, or on another list, and write evaluation.json and report.html.

jaxmetric evaluate --workdir DIR [--checkpoint best] [--csv LIST.csv] [--exclude-same camera]
"""

import dataclasses
import hashlib
import json
import platform
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from jaxmetric.data import GALLERY, LEARNING, QUERY, SPLITS, VALIDATION, LabeledImages, describe
from jaxmetric.data.problems import ManifestError, counted
from jaxmetric.metrics import evaluate_embeddings, knn_labels
from jaxmetric.metrics.retrieval import relevant_counts
from jaxmetric.report import Run, write_report
from jaxmetric.report.page import SHOWN_NEIGHBORS
from jaxmetric.report.run import compared_with
from jaxmetric.run.config import Config, absolute_path, check_paths, flatten, is_same_path, load_config
from jaxmetric.run.console import run_command, start_jax
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.experiment import (
    Experiment,
    drive_step,
    load_experiment,
    make_embedder,
    make_state,
    restorable,
    with_pretrained_trunk,
)
from jaxmetric.run.new_list import load_new_list, warn_of_learned
from jaxmetric.run.source import described_splits, evaluated_split, load_labels
from jaxmetric.run.workdir import CHECKPOINTS, claim_workdir, no_run_in
from jaxmetric.search import check_exclude, check_pair, nearest_rows, offered_rows, same_group_rows
from jaxmetric.training import (
    CheckpointError,
    Embed,
    TrainState,
    open_checkpoints,
    read_json,
    read_metrics,
    restore_best,
    restore_latest,
    write_atomically,
)
from jaxmetric.training.checkpoints import Restored

EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"
GALLERY_NAME = "the gallery"
_ROWS_SHOWN = 10


class HeldOut(NamedTuple):
    """The images that are queries, the gallery, and the gallery images that each query excludes.

    If the list has queries and a gallery, these are compared. Otherwise, if an identity of the queries was learned, the
    gallery is the learning images, as in the quadruplet paper. If none was learned, the gallery is the queries, and
    each query excludes itself, as in retrieval of unseen classes.

    Attributes:
      queries: indices `[Q]` of images.
      gallery: indices `[G]` of images.
      exclude: `[Q, E]` rows of the gallery that each query excludes, -1 for none.
      unseen: whether no identity of the queries was learned.
      gallery_name: the name of the gallery.
    """

    queries: np.ndarray
    gallery: np.ndarray
    exclude: np.ndarray
    unseen: bool
    gallery_name: str


class Embedded(NamedTuple):
    """Embeddings of a held-out part, and its evaluation."""

    queries: np.ndarray
    gallery: np.ndarray
    evaluation: dict[str, Any]


def held_out(experiment: Experiment, part: int) -> HeldOut:
    """Chooses the queries and the gallery of a split."""
    source, groups = experiment.source, experiment.groups
    queries, learned = np.flatnonzero(source.split == part), np.flatnonzero(source.split == LEARNING)
    identities = source.labels[queries, 0]
    unseen = not np.isin(identities[identities >= 0], source.labels[learned, 0]).any()
    exclude = []
    if part == QUERY:
        gallery, name = np.flatnonzero(source.split == GALLERY), GALLERY_NAME
    elif unseen:
        gallery, name = queries, "the other held-out images"
        exclude.append(np.arange(len(queries))[:, None])
    else:
        gallery, name = learned, "the learning set"
    if groups is not None:
        exclude.append(same_group_rows(groups[queries], groups[gallery]))
    rows = np.concatenate(exclude, axis=1) if exclude else np.zeros((len(queries), 0), int)
    return HeldOut(queries, gallery, check_exclude(rows, len(queries), len(gallery)), unseen, name)


def embed_and_evaluate(experiment: Experiment, state: TrainState, embed: Embed, part: HeldOut) -> Embedded:
    """Embeds queries and gallery and computes every metric."""
    source = experiment.source
    queries = embed(state, _Subset(source.images, part.queries))
    gallery = queries if part.gallery is part.queries else embed(state, _Subset(source.images, part.gallery))
    evaluation = evaluate_embeddings(
        queries,
        source.labels[part.queries],
        gallery,
        source.labels[part.gallery],
        [column.name for column in source.columns],
        exclude=part.exclude,
        k=experiment.config.neighbors,
        seed=experiment.config.seed,
    )
    return Embedded(queries, gallery, evaluation)


def check_evaluation(experiment: Experiment) -> None:
    """Warns of figures that will be undefined in the evaluation, or in the validation during training.

    Raises:
      ConfigError: see `check_answers`.
    """
    source, evaluated = experiment.source, evaluated_split(experiment.source)
    check_answers(experiment, evaluated)
    if not experiment.config.evaluate_every or evaluated == VALIDATION:
        return
    if _is_validated(experiment):
        warn_of_undefined(experiment, VALIDATION)
    else:
        warnings.warn(
            f"fewer than two validation images ({described_splits(source)}): nothing is validated during training, "
            "and no checkpoint is the best",
            stacklevel=2,
        )


def check_answers(experiment: Experiment, split: int) -> None:
    """Warns of label columns in which no query of a split has a match.

    Raises:
      ConfigError: if no column has a match, so that every figure would be undefined.
    """
    source, part = experiment.source, held_out(experiment, split)
    if len(_without_answer(source, part)) < len(source.columns):
        warn_of_undefined(experiment, split)
        return
    cure = f"give at least two images of one {source.columns[0].name}"
    if experiment.groups is not None:
        with_all = held_out(dataclasses.replace(experiment, groups=None), split)
        if len(_without_answer(source, with_all)) < len(source.columns):
            name = experiment.config.data.exclude_same
            cure = (
                f"--exclude-same {name} leaves out all that could be found: name a column that differs within "
                f'{source.columns[0].name}, or give --exclude-same "" to leave out none'
            )
    raise ConfigError(f"{_nothing_to_find(source, part, split)}: every figure would be undefined; {cure}")


def warn_of_undefined(experiment: Experiment, split: int) -> None:
    """Warns of label columns in which no query of a split has a match."""
    source, part = experiment.source, held_out(experiment, split)
    if _without_answer(source, part):
        warnings.warn(
            f"{_nothing_to_find(source, part, split)}: figures of that will be undefined",
            stacklevel=2,
        )


def _without_answer(source: LabeledImages, part: HeldOut) -> list[str]:
    labels, gallery_labels = source.labels[part.queries], source.labels[part.gallery]
    return [
        column.name
        for t, column in enumerate(source.columns)
        if not relevant_counts(labels[:, t], gallery_labels[:, t], part.exclude).any()
    ]


def _nothing_to_find(source: LabeledImages, part: HeldOut, split: int) -> str:
    names = " or its ".join(_without_answer(source, part))
    return f"no {SPLITS[split]} image has another of its {names} to find among {part.gallery_name}"


def _is_validated(experiment: Experiment) -> bool:
    return bool((experiment.source.split == VALIDATION).sum() > 1)


def validation_metrics(experiment: Experiment, state: TrainState, embed: Embed) -> dict[str, float | None]:
    """Returns the figures of the validation images for the learning curves; empty if there are no such images."""
    if not _is_validated(experiment):
        return {}
    part = held_out(experiment, VALIDATION)
    evaluation = embed_and_evaluate(experiment, state, embed, part).evaluation
    return {
        **{f"validation/{name}/recall@1": column["recall"]["1"] for name, column in evaluation["columns"].items()},
        "validation/coherence": evaluation["coherence"]["spearman"],
    }


def score_of(validation: Mapping[str, float | None]) -> float | None:
    """Returns the mean Recall@1 over label columns, which ranks checkpoints; None without a validation."""
    recalls = [value for name, value in validation.items() if name.endswith("/recall@1") and value is not None]
    return float(np.mean(recalls)) if recalls else None


def evaluate_run(
    experiment: Experiment, state: TrainState, workdir: Path, *, name: str = "", new_list: str = ""
) -> str:
    """Evaluates a state on the held-out images, writes evaluation.json and report.html, and returns a summary.

    Args:
      experiment: see `jaxmetric.run.experiment`.
      state: the state of any step.
      workdir: the directory of the run.
      name: added before the suffix of both files, for a state that is not the last, or for another list.
      new_list: the CSV file of the images, if these are not the run's own.

    Raises:
      ConfigError: if the file would overwrite the evaluation of another list.
    """
    evaluation, report = (named_file(workdir, file, name) for file in (EVALUATION_FILE, REPORT_FILE))
    check_not_of_another_list(evaluation, new_list)
    split = evaluated_split(experiment.source)
    part = held_out(experiment, split)
    embed = make_embedder(experiment)
    untrained = embed_and_evaluate(experiment, _untrained(experiment), embed, part).evaluation
    trained = embed_and_evaluate(experiment, state, embed, part)
    facts = {"step": int(state.step), "split": SPLITS[split], "unseen_identities": part.unseen}
    if new_list:
        facts = {"csv": new_list, "csv_digest": _digest(new_list), **facts}
    if experiment.groups is not None:
        facts["exclude_same"] = experiment.config.data.exclude_same
    result = {**facts, **trained.evaluation, "untrained": untrained}
    if jax.process_index() == 0:
        write_atomically(evaluation, json.dumps(result, indent=2) + "\n")
        title = f"{workdir.name} on {Path(new_list).name}" if new_list else workdir.name
        write_report(report, _report(experiment, workdir, title, part, trained, untrained))
    return _summary(trained.evaluation, untrained, _baseline_name(experiment), part, report)


def check_not_of_another_list(path: Path, new_list: str) -> None:
    """Raises ConfigError if the evaluation file there belongs to another list ("" for the run's own images).

    A list that has moved is recognized by its bytes, if its former path no longer exists.
    """
    if not path.exists():
        return
    evaluation = read_json(path)
    there = evaluation.get("csv", "")
    moved = there and new_list and not Path(there).exists() and evaluation.get("csv_digest") == _digest(new_list)
    if not (moved or is_same_path(there, new_list)):
        raise ConfigError(
            f"{path} holds the evaluation of {there or 'images of the run itself'}; move it away, or rename the list"
        )


def _digest(file: str) -> str | None:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else None


def _untrained(experiment: Experiment) -> TrainState:
    """Returns the state before the first step, pretrained or not.

    It has no class vectors and no moments, which may not fit one device.
    """

    def create() -> TrainState:
        state = make_state(experiment)
        return state.replace(params={**state.params, "loss": {}}, opt_state=())

    return jax.device_put(with_pretrained_trunk(experiment, jax.jit(create)()))


def _baseline_name(experiment: Experiment) -> str:
    """Returns what the network before the first step is called. Its projection is random, even if it is pretrained."""
    return "pretrained" if experiment.config.network.starts_pretrained else "untrained"


def named_file(workdir: Path, file: str, name: str) -> Path:
    """Returns a file of the run's directory with a name before its suffix, such as `evaluation-best.json`."""
    path = workdir / file
    return path.with_name(f"{path.stem}-{name}{path.suffix}") if name else path


def _report(
    experiment: Experiment, workdir: Path, title: str, part: HeldOut, trained: Embedded, untrained: Mapping[str, Any]
) -> Run:
    source = experiment.source
    count = min(max(SHOWN_NEIGHBORS, experiment.config.neighbors), _most_offered(part))
    blocks = nearest_rows(*check_pair(trained.queries, trained.gallery, part.exclude), count)
    distances, neighbors = map(np.concatenate, zip(*(found for _, *found in blocks), strict=True))
    voters = min(experiment.config.neighbors, count)
    gallery_labels = source.labels[part.gallery]
    return Run(
        name=title,
        config=flatten(dataclasses.asdict(experiment.config)),
        history=read_metrics(workdir),
        evaluation=trained.evaluation,
        baseline=untrained,
        baseline_name=_baseline_name(experiment),
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
        exclude=part.exclude,
        gallery_name=part.gallery_name,
    )


def _environment() -> dict[str, str]:
    packages = ("jaxmetric", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {name: metadata.version(name) for name in packages}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"python": platform.python_version(), **versions, "devices": devices}


def _most_offered(part: HeldOut) -> int:
    return int(offered_rows(part.exclude, len(part.gallery)).max())


def _summary(
    evaluation: Mapping[str, Any], untrained: Mapping[str, Any], baseline_name: str, part: HeldOut, report: Path
) -> str:
    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:9.3f}"

    others = f"{compared_with(part.exclude, len(part.gallery))} of {part.gallery_name}"
    lines = [
        f"{_counted_queries(part)}, each compared with {others}:",
        f"{'':24s}{'trained':>9s}{baseline_name:>12s}",
    ]
    for name, column in evaluation["columns"].items():
        before = untrained["columns"][name]["recall"]["1"]
        lines.append(f"{name + ' Recall@1':24s}{number(column['recall']['1'])}{number(before):>12s}")
    for label, group, key in (("all labels right", "joint", "all_correct"), ("coherence", "coherence", "spearman")):
        lines.append(f"{label:24s}{number(evaluation[group][key])}{number(untrained[group][key]):>12s}")
    return "\n".join([*lines, f"report: {report}"])


def _counted_queries(part: HeldOut) -> str:
    noun = ("query", "queries") if part.gallery_name == GALLERY_NAME else ("held-out image", "held-out images")
    return counted(len(part.queries), *noun)


class _Subset(Sequence[np.ndarray]):
    """Some images of a source in a given order, read when they are accessed."""

    def __init__(self, images: Sequence[np.ndarray] | np.ndarray, indices: np.ndarray):
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's slices are of no use here
        return self._images[int(self._indices[index])]


def main(argv: Sequence[str] | None = None, *, program: str = "jaxmetric evaluate") -> int:
    """Runs the command line; returns the exit code."""

    def command(
        workdir: Path,
        checkpoint: Literal["latest", "best"] = "latest",
        csv: str = "",
        image_root: str = "",
        skip_bad: bool = False,
        exclude_same: str | None = None,
    ) -> Evaluated:
        """Evaluates a checkpoint of a run and rewrites its report.

        Args:
            workdir: The run's directory, as given to jaxmetric train.
            checkpoint: The newest, or the best on the validation images (into report-best.html).
            csv: Another list of images to evaluate on, into evaluation-LIST.json and report-LIST.html. Its query and
                gallery images are compared, or its test images, or all if it has no split.
            image_root: The folder that image names of that list are relative to (the list's own if empty).
            skip_bad: Skip rows and images of that list that cannot be used, and count them, instead of stopping.
            exclude_same: A column, such as camera: no query finds images of its identity with the same value in it; ""
              is none. It is part of the file names. As in the run if not given.
        """
        return Evaluated(workdir, checkpoint, absolute_path(csv), absolute_path(image_root), skip_bad, exclude_same)

    return run_command(partial(_run, tyro.cli(command, args=argv, prog=program)))


class Evaluated(NamedTuple):
    """The arguments of the command line."""

    workdir: Path
    checkpoint: str
    csv: str
    image_root: str
    skip_bad: bool
    exclude_same: str | None


def _run(asked: Evaluated) -> None:
    workdir, checkpoint = asked.workdir, asked.checkpoint
    config = load_config(workdir)
    for name in ("image_root", "skip_bad"):
        if getattr(asked, name) and not asked.csv:
            raise ConfigError(f"{name} is given without csv, the list that it belongs to")
    name = "-".join(
        filter(None, (Path(asked.csv).stem, _other_protocol(config, asked), "best" * (checkpoint == "best")))
    )
    check_not_of_another_list(named_file(workdir, EVALUATION_FILE, name), asked.csv)
    start_jax()
    with _fitting_advice():
        experiment = _load_new(config, asked) if asked.csv else _load_own(config, asked)
    with no_run_in(workdir) as alone:
        restored = _restore(experiment, workdir, checkpoint, alone, any_classes=bool(asked.csv))
    if restored is None:
        raise ConfigError(
            f"{workdir} holds no checkpoint that was validated; evaluate_every is {config.evaluate_every}"
        )
    print(f"the {checkpoint} checkpoint is that of step {int(restored.state.step)}")
    print(evaluate_run(experiment, restored.state, workdir, name=name, new_list=asked.csv))


def _other_protocol(config: Config, asked: Evaluated) -> str:
    """Returns what distinguishes the files of this evaluation from those with the run's own `exclude_same`."""
    if asked.exclude_same in (None, config.data.exclude_same):
        return ""
    return f"exclude-{asked.exclude_same or 'none'}"


def _load_own(config: Config, asked: Evaluated) -> Experiment:
    """Returns the run as it was trained, or with another column for `exclude_same`."""
    check_paths(config, asked.workdir)
    try:
        experiment = load_experiment(config)
    except ManifestError as error:
        rows = "\n".join(error.problems[:_ROWS_SHOWN])
        raise ConfigError(
            f"{rows}\nthe run learned from this list, which has changed: put back what is missing, or give --csv to "
            "evaluate on another list"
        ) from error
    claim_workdir(experiment.config, experiment.source, asked.workdir)
    if asked.exclude_same not in (None, config.data.exclude_same):
        experiment = _with_others_left_out(experiment, config, asked.exclude_same)
    check_answers(experiment, evaluated_split(experiment.source))
    return experiment


def _with_others_left_out(experiment: Experiment, config: Config, exclude_same: str) -> Experiment:
    names = tuple(column.name for column in experiment.source.columns)
    data = dataclasses.replace(config.data, columns=names, exclude_same=exclude_same)
    _, groups = load_labels(data, seed=config.seed)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, exclude_same=exclude_same))
    return dataclasses.replace(experiment, config=config, groups=groups)


def _load_new(config: Config, asked: Evaluated) -> Experiment:
    """Returns the network of the run with the images and labels of another list."""
    experiment = load_new_list(
        config,
        asked.workdir,
        csv=asked.csv,
        image_root=asked.image_root,
        skip_bad=asked.skip_bad,
        exclude_same=asked.exclude_same,
    )
    print(f"{asked.csv}:\n{describe(experiment.source)}")
    source, root = experiment.source, Path(asked.image_root or Path(asked.csv).parent)
    warn_of_learned(
        config,
        asked.workdir,
        asked.csv,
        [root / name for name, split in zip(source.names, source.split, strict=True) if split != LEARNING],
    )
    check_answers(experiment, evaluated_split(source))
    return experiment


@contextmanager
def _fitting_advice() -> Iterator[None]:
    """Removes advice on choosing label columns from a message, since the run determines them."""
    shown = warnings.showwarning

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        shown(re.sub(r"; [^;]*--columns[^;\n]*", "", str(message)), *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _restore(
    experiment: Experiment, workdir: Path, checkpoint: str, alone: bool, *, any_classes: bool
) -> Restored | None:
    """Restores a checkpoint; an active run may delete it at the same time, after writing a newer one."""
    shapes, resize = restorable(experiment, drive_step(experiment, "shard_map"), any_classes=any_classes)
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
