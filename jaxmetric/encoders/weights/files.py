"""Reads files of arrays without executing anything in them: `.safetensors`, `.npz`, and the `.pth` files of torch."""

import io
import zipfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmetric._extras import require
from jaxmetric.encoders.weights.errors import DAMAGE, WeightsError
from jaxmetric.encoders.weights.torch_file import read_torch_file

_MOST_UNPACKED = 100  # times the size of an .npz file

Arrays = dict[str, np.ndarray]

_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read_arrays(path: str | PathLike[str]) -> Arrays:
    """Reads the arrays of a file by name.

    Args:
      path: a `.safetensors`, `.npz`, `.pth`, `.pt` or `.bin` file.

    Returns:
      The arrays, some of them read-only.

    Raises:
      OSError: if the file cannot be read.
      WeightsError: in one line, if it has another suffix, or is damaged, or holds anything but arrays.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/two.npz", a=np.ones(3), b=np.zeros((2, 2)))
      ...     {name: array.shape for name, array in read_arrays(f"{folder}/two.npz").items()}
      {'a': (3,), 'b': (2, 2)}
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Arrays]] = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".pth": read_torch_file,
        ".pt": read_torch_file,
        ".bin": read_torch_file,
    }
    if path.suffix not in readers:
        raise WeightsError(f"{path} is no file of weights that can be read: expected {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _read_npz(path: Path) -> Arrays:
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MOST_UNPACKED * len(data):
            raise WeightsError(f"it unpacks to {unpacked:,} bytes, more than weights of its size can need")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except WeightsError:
        raise
    except DAMAGE as error:
        raise WeightsError(f"no .npz file of arrays, or a damaged one ({error})") from error


def _read_safetensors(path: Path) -> Arrays:
    require("a .safetensors file", "safetensors")
    from safetensors import SafetensorError, deserialize

    try:
        entries: list[tuple[str, dict[str, Any]]] = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise WeightsError(f"no .safetensors file, or a damaged one ({error})") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise WeightsError(f"{name} has dtype {entry['dtype']}, expected one of {', '.join(_SAFETENSORS_DTYPES)}")
        dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays
