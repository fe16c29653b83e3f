"""Stages of a network that do not change: their activations are computed once for each image and kept on disk."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmetric.data import LEARNING, VALIDATION, ImageError
from jaxmetric.data.feature_store import FeatureStore, FeatureStoreError, StoredFeatures, image_digest
from jaxmetric.data.problems import byte_size, counted
from jaxmetric.parallel import any_process
from jaxmetric.run.config import Machine
from jaxmetric.run.console import cache_folder, say
from jaxmetric.run.experiment import Experiment, activation_shape, is_frozen, make_activations
from jaxmetric.training import TrainState

_FORMAT = 1  # to be raised when the same weights give other activations than before
_BLOCK_BYTES = 2**27  # of activations that are computed before they are written
_QUIET_SECONDS = 10
_PRESENT, _MISSING, _UNREADABLE = range(3)

T = TypeVar("T")


def with_activations(experiment: Experiment, state: TrainState, machine: Machine) -> Experiment:
    """Returns an experiment whose images are the activations of the frozen stages, from the cache of this machine.

    Those of the images that a run learns from and validates on are computed, on all devices, if the cache lacks them.

    Args:
      experiment: of a run with frozen stages.
      state: the state of any step, as all have the same frozen stages.
      machine: names the folder of the cache.

    Raises:
      FeatureStoreError: if the cache is damaged, or has no room.
      ImageError: if an image cannot be read, unless bad images are skipped.
      OSError: if the cache cannot be read or written.
    """
    source = experiment.source
    store = _together(lambda: _open(experiment, state, machine))
    used = (LEARNING, VALIDATION) if experiment.config.evaluate_every else (LEARNING,)
    wanted = np.flatnonzero(np.isin(source.split, used)).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = _together(lambda: list(pool.map(lambda i: _digest(experiment, i), wanted)))
        digests = {i: digest for i, digest in zip(wanted, read, strict=True) if isinstance(digest, bytes)}
        unreadable = {i: error for i, error in zip(wanted, read, strict=True) if isinstance(error, str)}
        missing, lost = _compare_processes(store, wanted, digests)
        for index in lost:
            del digests[index]
            unreadable[index] = f"image {index} could not be read by another process"
        _together(lambda: _check_room(store, len(missing)))
        say(_described(experiment, store, len(wanted), len(missing)))
        _compute(experiment, state, store, {i: digests[i] for i in missing}, pool)
    row_of = dict(zip(digests, store.rows(list(digests.values())), strict=True))
    features = StoredFeatures(store, [unreadable.get(i, row_of.get(i)) for i in range(len(source))])
    return dataclasses.replace(experiment, source=dataclasses.replace(source, images=features))


def _open(experiment: Experiment, state: TrainState, machine: Machine) -> FeatureStore:
    description = _description(experiment, state)
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]
    cache = Path(machine.cache) if machine.cache else cache_folder() / "activations"
    return FeatureStore(
        cache / f"{experiment.config.network.encoder}-{key}", description, activation_shape(experiment)[1:]
    )


def _description(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Returns what the activations of an image depend on."""
    config, encoder = experiment.config, experiment.encoder
    weights = hashlib.sha256()
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    for path, array in jax.tree_util.tree_leaves_with_path(variables):
        keys = tuple(part.key for part in path)
        if is_frozen(encoder, config.network, keys[1:]):
            weights.update(repr((keys, array.shape)).encode() + np.asarray(array).tobytes())
    return {
        "format": _FORMAT,
        "backend": jax.default_backend(),
        "encoder": config.network.encoder,
        "stage": config.network.freeze_until,
        "image_size": config.batch.image_size,
        "dtype": config.network.dtype,
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "weights": weights.hexdigest(),
    }


def _digest(experiment: Experiment, index: int) -> bytes | str:
    """Returns the digest of an image, or what is wrong with it."""
    try:
        return image_digest(experiment.source.images[index])
    except ImageError as error:
        if not experiment.config.data.skip_bad:
            raise
        return str(error)


def _compare_processes(
    store: FeatureStore, wanted: Sequence[int], digests: dict[int, bytes]
) -> tuple[list[int], list[int]]:
    """Returns the images whose activations a process lacks, and those that only other processes could not read."""
    rows = dict(zip(digests, store.rows(list(digests.values())), strict=True))
    codes = np.array([_UNREADABLE if i not in rows else _MISSING if rows[i] is None else _PRESENT for i in wanted])
    if jax.process_count() > 1:
        codes = multihost_utils.process_allgather(codes).max(axis=0)  # all processes compute together
    missing = [i for i, code in zip(wanted, codes, strict=True) if code == _MISSING]
    return missing, [i for i, code in zip(wanted, codes, strict=True) if code == _UNREADABLE and i in digests]


def _compute(
    experiment: Experiment,
    state: TrainState,
    store: FeatureStore,
    missing: dict[int, bytes],
    pool: ThreadPoolExecutor,
) -> None:
    """Computes the activations of images, given their digests, and adds them to the store."""
    activations, images, said = make_activations(experiment), experiment.source.images, time.monotonic()
    for done, block in _blocks(list(missing), store.row_bytes):
        if time.monotonic() > said + _QUIET_SECONDS:
            said = time.monotonic()
            say(f"  activations of {done:,} of {len(missing):,} images")
        arrays = activations(state, _together(partial(_read_images, pool, images, block)))
        _together(partial(store.add, [missing[i] for i in block], arrays))


def _read_images(pool: ThreadPoolExecutor, images: Any, indices: Sequence[int]) -> list[np.ndarray]:
    return list(pool.map(images.__getitem__, indices))


def _check_room(store: FeatureStore, count: int) -> None:
    needed, free = count * store.row_bytes, shutil.disk_usage(store.folder).free
    if needed > free:
        raise FeatureStoreError(
            f"no room for the activations of {counted(count, 'image')}: {store.folder} has {byte_size(free)} free, "
            f"expected {byte_size(needed)}; --cache names another folder"
        )


def _described(experiment: Experiment, store: FeatureStore, images: int, missing: int) -> str:
    what = f"  activations of {experiment.config.network.freeze_until}, without augmentation, in {store.folder}"
    size = byte_size(images * store.row_bytes)
    return f"{what}: {counted(images, 'image')}, {size}, of which {missing:,} are new"


def _blocks(indices: Sequence[int], row_bytes: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Yields parts of the images, each after the number of images before it."""
    size = max(1, _BLOCK_BYTES // row_bytes // 256) * 256  # whole batches of `make_embed`
    for start in range(0, len(indices), size):
        yield start, indices[start : start + size]


def _together(action: Callable[[], T]) -> T:
    """Calls an action in all processes, and raises in all if it fails in one, as the others would wait for it."""
    error, result = None, None
    try:
        result = action()
    except (FeatureStoreError, ImageError, OSError) as caught:
        error = caught
    if any_process(error is not None):
        raise error or FeatureStoreError("another process could not read or write the activations of frozen stages")
    return result  # type: ignore[return-value]
