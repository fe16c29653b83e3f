"""The working directory of a run: the files that identify the run, and a lock that keeps other runs out."""

import fcntl
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax

from jaxmetric import parallel
from jaxmetric.data import LabeledImages
from jaxmetric.data.problems import counted
from jaxmetric.run.config import CONFIG_FILE, Config, check_same_config, save_config
from jaxmetric.run.errors import ConfigError
from jaxmetric.training import read_json, write_atomically
from jaxmetric.training.loop import tell

CHECKPOINTS = "checkpoints"
DATA_FILE = "data.json"
LOCK_FILE = ".lock"
_GRACE = 30  # seconds that a run may take to stop


@contextmanager
def exclusive_workdir(workdir: Path) -> Iterator[None]:
    """Creates the directory of a run and locks it, if the file system has locks.

    The lock is released when the process ends, for any reason. In a job of several processes the first holds it.

    Raises:
      ConfigError: in all processes, if another run is active there and does not end within some seconds.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK_FILE).open("a") as file:
        if parallel.any_process(jax.process_index() == 0 and not _lock(file, patience=_GRACE)):
            raise ConfigError(f"a run is under way in {workdir}; wait for its end, or give another --workdir")
        yield


@contextmanager
def no_run_in(workdir: Path) -> Iterator[bool]:
    """Yields whether no run is active in a directory; no run can start there in the meantime."""
    with (workdir / LOCK_FILE).open("a") as file:
        yield _lock(file, patience=0)


def _lock(file: IO[str], *, patience: float) -> bool:
    """Tries to lock a file for some seconds, since a stopping run may be about to end."""
    deadline = None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if deadline is None:
                deadline = time.monotonic() + patience
                if patience:
                    where = Path(file.name).parent
                    tell(f"a run is under way in {where}; waiting up to {patience:g} s for its end", sys.stdout)
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        except OSError as error:
            warnings.warn(
                f"{file.name}: no lock ({error.strerror}); nothing keeps a second run off the directory", stacklevel=3
            )
            return True


def claim_workdir(config: Config, source: LabeledImages, workdir: Path) -> None:
    """Writes the configuration and a digest of the data to a directory, or checks that it has the same ones.

    In a job of several processes all check and one writes.

    Raises:
      ConfigError: if the configuration, or its images and labels, differ.
    """
    for name in (CONFIG_FILE, DATA_FILE):
        if not (workdir / name).exists() and any((workdir / CHECKPOINTS).glob("[0-9]*")):
            raise ConfigError(f"{workdir} holds checkpoints, but no {name}; put it back, or give another --workdir")
    check_same_config(config, workdir)
    path = workdir / DATA_FILE
    facts = _facts_of(source)
    if path.exists() and (changed := _changed_data(read_facts(path), facts)):
        raise ConfigError(f"{workdir} holds a run on other data: {changed}; {_cure_of_data(config, source, path)}")
    if jax.process_index() == 0:
        save_config(config, workdir)
        if not path.exists():
            write_atomically(path, json.dumps(facts, indent=2) + "\n")


def read_facts(path: Path) -> dict[str, Any]:
    """Reads a `data.json`. Older files call the number of images "pictures"."""
    facts = read_json(path)
    return {"images": facts.get("pictures"), **facts}


def _facts_of(source: LabeledImages) -> dict[str, Any]:
    """Returns the content of `data.json`: digests of the whole data and of its parts, to detect what has changed."""
    parts = {
        "image names": "\n".join(source.names).encode(),
        "label values": source.labels.tobytes(),
        "split": source.split.tobytes(),
    }
    whole = parts["label values"] + parts["split"] + parts["image names"]
    return {
        "images": len(source),
        "labels": [column.name for column in source.columns],
        "digest": hashlib.sha256(whole).hexdigest(),
        "parts": {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()},
    }


def _changed_data(began: dict[str, Any], now: dict[str, Any]) -> str:
    """Describes what has changed in the data since a run began; "" if nothing. Older files have no `parts`."""
    if all(began.get(name) == now[name] for name in ("images", "labels", "digest")):
        return ""
    if began["labels"] != now["labels"]:
        return f"the label columns were {', '.join(began['labels'])} then and are {', '.join(now['labels'])} now"
    parts = began.get("parts")
    changed = [name for name in now["parts"] if parts[name] != now["parts"][name]] if parts else []
    what = " and ".join(changed) or "image names, label values or split"
    counts = f"{counted(began['images'], 'image')} then, {now['images']:,} now"
    return f"{what} changed since it began ({counts})"


def _cure_of_data(config: Config, source: LabeledImages, path: Path) -> str:
    if config.data.skip_bad and len(source) < read_facts(path)["images"]:
        return "images that --skip-bad leaves out now were there then: put them back"
    return "put the data back as they were to go on with it, or train anew in another --workdir"
