"""Stages of a network that do not change: their activations are computed once for each image and kept on disk."""

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmetric.data import LEARNING, VALIDATION, ImageError
from jaxmetric.data.feature_store import FeatureStore, StoredFeatures, image_digest
from jaxmetric.data.problems import counted
from jaxmetric.run.config import Machine
from jaxmetric.run.console import say
from jaxmetric.run.experiment import Experiment, activation_shape, make_activations
from jaxmetric.training import TrainState

_AT_ONCE = 1024  # images whose activations are held in memory


def with_activations(experiment: Experiment, state: TrainState, machine: Machine) -> Experiment:
    """Returns an experiment whose images are the activations of the frozen stages, from the cache of this machine.

    Those of learning and validation images that are not there yet are computed, on all devices, and added to it.

    Args:
      experiment: of a run with frozen stages.
      state: the state of any step, as all have the same frozen stages.
      machine: names the folder of the cache.

    Raises:
      FeatureStoreError: if the cache is damaged.
      ImageError: if an image cannot be read, unless bad images are skipped.
      OSError: if the cache cannot be read or written.
    """
    source, network = experiment.source, experiment.config.network
    description = _description(experiment, state)
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]
    folder = Path(machine.cache or _default_cache()) / f"{network.encoder}-{key}"
    store = FeatureStore(folder, description, activation_shape(experiment)[1:])
    wanted = np.flatnonzero(np.isin(source.split, (LEARNING, VALIDATION))).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(wanted, pool.map(lambda i: _digest(experiment, i), wanted), strict=True))
    digests = {i: digest for i, digest in found.items() if isinstance(digest, bytes)}
    missing = _missing_anywhere(store, digests)
    where = f"activations of {network.freeze_until}, without augmentation, in {folder}"
    say(f"  {where}: {counted(len(digests), 'image')}, of which {len(missing):,} are new")
    activations = make_activations(experiment)
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        store.add([digests[i] for i in some], activations(state, [source.images[i] for i in some]))
    row_of = dict(zip(digests, store.rows(list(digests.values())), strict=True))
    errors = {i: error for i, error in found.items() if isinstance(error, ImageError)}
    rows = [errors.get(i, row_of.get(i)) for i in range(len(source))]
    return dataclasses.replace(
        experiment, source=dataclasses.replace(source, images=StoredFeatures(store, rows)), takes_activations=True
    )


def _digest(experiment: Experiment, index: int) -> bytes | ImageError:
    try:
        return image_digest(experiment.source.images[index])
    except ImageError as error:
        if not experiment.config.data.skip_bad:
            raise
        return error


def _missing_anywhere(store: FeatureStore, digests: dict[int, bytes]) -> list[int]:
    """Returns the images whose activations some process has not, as all processes compute together."""
    missing = np.array([row is None for row in store.rows(list(digests.values()))], bool)
    if jax.process_count() > 1:
        missing = np.any(multihost_utils.process_allgather(missing), axis=0)
    return [i for i, is_missing in zip(digests, missing, strict=True) if is_missing]


def _description(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Returns all that the activations of an image depend on."""
    config = experiment.config
    weights = hashlib.sha256()
    frozen = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    for path, array in jax.tree_util.tree_leaves_with_path(frozen):
        keys = tuple(part.key for part in path)[1:]
        if experiment.is_frozen(keys):
            weights.update(repr(keys).encode() + np.asarray(array).tobytes())
    return {
        "encoder": config.network.encoder,
        "stage": config.network.freeze_until,
        "image_size": config.batch.image_size,
        "dtype": config.network.dtype,
        "preprocessing": dataclasses.asdict(experiment.encoder.preprocessing),
        "weights": weights.hexdigest(),
    }


def _default_cache() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(base).expanduser() / "jaxmetric" / "activations")
