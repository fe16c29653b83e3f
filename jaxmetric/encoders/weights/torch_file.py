"""Reads the files of `torch.save` without torch, and without executing what they say.

Such a file holds a pickle, which is a program that builds objects, and the bytes of the tensors: in a zip archive, or
one after the other in files from before torch 1.6. Python's own unpickler calls any function that the program names.
`_interpret` knows only the few instructions that `torch.save` needs for dictionaries of tensors, and calls nothing. An
unknown name or any other instruction is an error. Tensors first become descriptions, which are checked against the
storages they point into.
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmetric.encoders.weights.errors import DAMAGE, WeightsError

_DTYPES: dict[str, np.dtype[Any]] = {
    "torch DoubleStorage": np.dtype(np.float64),
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}
_ORDERED_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NESTED = ("state_dict", "model", "model_state_dict")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files from before torch 1.6
_CURE = "write it anew by torch.save(model.state_dict(), file)"


class _Global(NamedTuple):
    """A name that a pickle refers to; one of those above."""

    name: str


class _Storage(NamedTuple):
    """The bytes of one or more tensors."""

    key: str
    dtype: np.dtype[Any]
    length: int


class _Tensor(NamedTuple):
    """A view into a storage, in elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Program(NamedTuple):
    """The object that a pickle builds, and all storages that it names."""

    value: Any
    storages: dict[str, _Storage]


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict, or of a dictionary with a state dict.

    Args:
      path: a file that `torch.save` wrote, on a little-endian machine.

    Returns:
      The tensors as read-only arrays. Those of bfloat16 have the dtype `jax.numpy.bfloat16`.

    Raises:
      OSError: if the file cannot be read.
      WeightsError: if the file is damaged, or holds anything but tensors, numbers and text in dictionaries.
    """
    data = path.read_bytes()
    try:
        return _read_zip(data) if data.startswith(b"PK\x03\x04") else _read_sequence(data)
    except WeightsError:
        raise
    except DAMAGE as error:
        raise WeightsError(f"no torch file, or a damaged one ({type(error).__name__}: {error})") from error


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries
        ):
            raise WeightsError(f"its archive is compressed, which torch.save does not do; {_CURE}")
        if sum(entry.file_size for entry in entries) > len(data):
            raise WeightsError("its archive promises more bytes than the file has")
        programs = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(programs) != 1:
            raise WeightsError(f"an archive, but not one of torch.save: it has {len(programs)} entries data.pkl")
        folder = programs[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.NameToInfo:
            _check_byte_order(archive.read(f"{folder}byteorder") == b"little")
        tensors = _state_dict(_interpret(io.BytesIO(archive.read(programs[0]))).value)
        storages: dict[str, np.ndarray] = {
            key: np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
            for key, dtype, _ in {tensor.storage for tensor in tensors.values()}
        }
    return _views(tensors, storages)


def _read_sequence(data: bytes) -> dict[str, np.ndarray]:
    """Reads the format from before torch 1.6: five pickles, then the length and the elements of each storage."""
    stream = io.BytesIO(data)
    if not data.startswith(b"\x80\x02"):
        raise ValueError("it begins neither as an archive nor as a pickle")
    if _interpret(stream).value != _MAGIC or _interpret(stream).value != _PROTOCOL:
        raise WeightsError(f"no file of torch.save; {_CURE}")
    _check_byte_order(_interpret(stream).value["little_endian"])
    program, keys = _interpret(stream), _interpret(stream).value
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        _, dtype, length = program.storages[key]
        if int.from_bytes(stream.read(8), "little") != length:
            raise WeightsError(f"storage {key} has another length than its tensors say")
        # An error if fewer bytes are left.
        storages[key] = np.frombuffer(data, dtype, length, stream.tell()) if length else np.zeros(0, dtype)
        stream.seek(storages[key].nbytes, io.SEEK_CUR)
    return _views(_state_dict(program.value), storages)


def _check_byte_order(little_endian: bool) -> None:
    if not little_endian:
        raise WeightsError(f"it was written on a big-endian machine; on a little-endian one, {_CURE}")


def _state_dict(value: Any) -> dict[str, _Tensor]:
    """Returns the tensors of a dictionary, or of the one in it that has a usual name."""
    candidates = [value, *(value.get(name) for name in _NESTED)] if isinstance(value, dict) else []
    for candidate in candidates:
        if isinstance(candidate, dict):
            tensors = {name: each for name, each in candidate.items() if isinstance(each, _Tensor)}
            if tensors and all(isinstance(name, str) for name in tensors):
                return tensors
    raise WeightsError(f"it holds no dictionary of tensors, on top or as {', '.join(_NESTED)}; {_CURE}")


def _views(tensors: Mapping[str, _Tensor], storages: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, (storage, offset, size, stride) in tensors.items():
        elements = storages[storage.key]
        if len(elements) != storage.length or elements.dtype != storage.dtype:
            raise WeightsError(f"{name} expects {storage.length} elements of its storage, which has {len(elements)}")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) > len(elements) or (0 not in size and last >= len(elements)):
            raise WeightsError(f"{name} of shape {size} and strides {stride} reaches outside its storage")
        steps = [step * elements.itemsize if length > 1 else 0 for length, step in zip(size, stride, strict=True)]
        arrays[name] = np.lib.stride_tricks.as_strided(elements[offset:], size, steps, writeable=False)
    return arrays


def _interpret(stream: io.BytesIO) -> _Program:
    """Builds the object of the pickle at the stream's position, and leaves the stream behind it."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                stack[marks[-1] - 1].extend(pop_to_mark())
            case "SETITEM":
                item = stack.pop()
                _set_items(stack[-2], [stack.pop(), item])
            case "SETITEMS":
                _set_items(stack[marks[-1] - 1], pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise WeightsError(f"storage {storage.key} has two dtypes or lengths")
                stack.append(storage)
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_built(stack.pop(), arguments))
            case "BUILD":  # the version of each module, which state dicts carry
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise WeightsError(f"it sets attributes of an object; {_CURE}")
            case name:
                raise WeightsError(f"it holds the pickle instruction {name}, which tensors do not need; {_CURE}")
    (value,) = stack
    return _Program(value, storages)


def _set_items(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if not isinstance(target, dict) or not all(isinstance(key, (str, int)) for key in keys):
        raise WeightsError("it holds a dictionary whose keys are neither text nor integers")
    target.update(zip(keys, values, strict=True))


def _known(name: str) -> _Global:
    if name not in (*_DTYPES, _ORDERED_DICT, _TENSOR, _PARAMETER):
        raise WeightsError(f"it asks for {name.replace(' ', '.')}, which is no part of tensors; {_CURE}")
    return _Global(name)


def _storage(identity: Any) -> _Storage:
    kind, dtype, key, _, length, *view = identity
    valid = isinstance(dtype, _Global) and isinstance(key, str) and isinstance(length, int) and length >= 0
    if kind != "storage" or not valid or any(each is not None for each in view):
        raise WeightsError("it refers to something that is no storage of a tensor")
    return _Storage(key, _DTYPES[dtype.name], length)


def _built(function: Any, arguments: Any) -> Any:
    """Returns what a call makes: an empty dictionary, a tensor, or the tensor of a parameter."""
    match function, arguments:
        case _Global(name=name), () if name == _ORDERED_DICT:
            return {}
        case _Global(name=name), (_Tensor() as tensor, *_) if name == _PARAMETER:
            return tensor
        case _Global(name=name), (_Storage() as storage, int(offset), tuple(size), tuple(stride), *_) if (
            name == _TENSOR
        ):
            numbers = (offset, *size, *stride)
            if len(size) != len(stride) or not all(isinstance(each, int) and each >= 0 for each in numbers):
                raise WeightsError(f"it holds a tensor of shape {size}, strides {stride} and offset {offset}")
            return _Tensor(storage, offset, size, stride)
    raise WeightsError(f"it calls {getattr(function, 'name', 'an object')} in a way that tensors do not; {_CURE}")
