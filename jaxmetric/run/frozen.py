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
from jaxmetric.data.problems import counted
from jaxmetric.parallel import any_process
from jaxmetric.run.config import Machine
from jaxmetric.run.console import say
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
        found = dict(zip(wanted, read, strict=True))
        missing = _compare_processes(store, found)
        _together(lambda: _check_room(store, len(missing)))
        say(_described(experiment, store, len(found), len(missing)))
        activations, done, said = make_activations(experiment), 0, time.monotonic()
        for block in _blocks(missing, store.row_bytes):
            images = _together(partial(_read_images, pool, source.images, block))
            arrays = activations(state, images)
            _together(partial(store.add, [_bytes(found[i]) for i in block], arrays))
            done += len(block)
            if time.monotonic() > said + _QUIET_SECONDS:
                said = time.monotonic()
                say(f"  activations of {done:,} of {len(missing):,} images")
    readable = [i for i, digest in found.items() if isinstance(digest, bytes)]
    rows: dict[int, int | str | None] = {i: error for i, error in found.items() if isinstance(error, str)}
    rows |= dict(zip(readable, store.rows([_bytes(found[i]) for i in readable]), strict=True))
    features = StoredFeatures(store, [rows.get(i) for i in range(len(source))])
    return dataclasses.replace(experiment, source=dataclasses.replace(source, images=features))


def _open(experiment: Experiment, state: TrainState, machine: Machine) -> FeatureStore:
    description = _description(experiment, state)
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]
    folder = Path(machine.cache or _default_cache()) / f"{experiment.config.network.encoder}-{key}"
    return FeatureStore(folder, description, activation_shape(experiment)[1:])


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


def _default_cache() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(base).expanduser() / "jaxmetric" / "activations")


def _digest(experiment: Experiment, index: int) -> bytes | str:
    """Returns the digest of an image, or what is wrong with it."""
    try:
        return image_digest(experiment.source.images[index])
    except ImageError as error:
        if not experiment.config.data.skip_bad:
            raise
        return str(error)


def _read_images(pool: ThreadPoolExecutor, images: Any, indices: Sequence[int]) -> list[np.ndarray]:
    return list(pool.map(images.__getitem__, indices))


def _bytes(digest: bytes | str) -> bytes:
    assert isinstance(digest, bytes)
    return digest


def _compare_processes(store: FeatureStore, found: dict[int, bytes | str]) -> list[int]:
    """Returns the images whose activations a process lacks, as all processes compute together.

    An image that another process could not read becomes unreadable in `found`.
    """
    rows = store.rows([digest if isinstance(digest, bytes) else b"" for digest in found.values()])
    codes = np.array(
        [
            _UNREADABLE if isinstance(digest, str) else _MISSING if row is None else _PRESENT
            for digest, row in zip(found.values(), rows, strict=True)
        ],
        np.int8,
    )
    if jax.process_count() > 1:
        codes = multihost_utils.process_allgather(codes).max(axis=0)
    for index, code in zip(list(found), codes, strict=True):
        if code == _UNREADABLE and isinstance(found[index], bytes):
            found[index] = f"image {index} could not be read by another process"
    return [index for index, code in zip(found, codes, strict=True) if code == _MISSING]


def _check_room(store: FeatureStore, count: int) -> None:
    needed, free = count * store.row_bytes, shutil.disk_usage(store.folder).free
    if needed > free:
        raise FeatureStoreError(
            f"no room for the activations of {counted(count, 'image')}: {store.folder} has {_gib(free)} free, "
            f"expected {_gib(needed)}; --cache names another folder"
        )


def _described(experiment: Experiment, store: FeatureStore, images: int, missing: int) -> str:
    what = f"  activations of {experiment.config.network.freeze_until}, without augmentation, in {store.folder}"
    size = _gib(images * store.row_bytes)
    return f"{what}: {counted(images, 'image')}, {size}, of which {missing:,} are new"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def _blocks(indices: Sequence[int], row_bytes: int) -> Iterator[Sequence[int]]:
    size = max(1, _BLOCK_BYTES // row_bytes // 256) * 256  # whole batches of `make_embed`
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


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
