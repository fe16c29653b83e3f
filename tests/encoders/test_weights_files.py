"""Files of weights: their arrays are read, and whatever else they hold is refused in one line and never executed."""

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxmetric.encoders import WeightsError, read_arrays

# --- files of torch by hand: pickle instructions and storages ---------------------------------------------------------


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def tupled(*parts):
    return b"(" + b"".join(parts) + b"t"


def name_of(qualified):
    module, _, name = qualified.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def storage(key="0", dtype="torch.FloatStorage", length=6, *view):
    return tupled(text("storage"), name_of(dtype), text(key), text("cpu"), number(length), *view) + b"Q"


def tensor(stored=None, *, offset=0, size=(2, 3), stride=(3, 1), function="torch._utils._rebuild_tensor_v2"):
    sides = (tupled(*map(number, each)) for each in (size, stride))
    hooks = name_of("collections.OrderedDict") + b")R"
    return name_of(function) + tupled(stored or storage(), number(offset), *sides, b"\x89", hooks) + b"R"


def program(*items):
    """A pickle of a dictionary with these values."""
    entries = b"".join(text(f"array{index}") + item for index, item in enumerate(items))
    return b"\x80\x02}(" + entries + b"u."


SIX = np.arange(6, dtype="<f4").tobytes()


def zipped(pickled, storages=(("0", SIX),), *, compression=zipfile.ZIP_STORED, order=b"little"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("weights/data.pkl", pickled)
        if order:
            archive.writestr("weights/byteorder", order)
        for key, data in storages:
            archive.writestr(f"weights/data/{key}", data)
    return buffer.getvalue()


def in_sequence(pickled, storages=(("0", 6, SIX),), *, magic=0x1950A86A20F9469CFC6C, little=True):
    """The format from before torch 1.6."""
    heads = [magic, 1001, {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}]
    data = b"".join(pickle.dumps(head, protocol=2) for head in heads) + pickled
    data += pickle.dumps([key for key, *_ in storages], protocol=2)
    return data + b"".join(struct.pack("<q", length) + elements for _, length, elements in storages)


def read(tmp_path, data, suffix=".pth"):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(data)
    return read_arrays(file)


def assert_refused(tmp_path, data, message, suffix=".pth"):
    with pytest.raises(WeightsError, match=message) as raised:
        read(tmp_path, data, suffix)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}/weights{suffix}: ")


@pytest.mark.parametrize("form", [zipped, in_sequence])
def test_tensors_are_views_into_their_storages(form, tmp_path):
    transposed = tensor(size=(3, 2), stride=(1, 3))
    scalar = tensor(offset=5, size=(), stride=())
    parameter = name_of("torch._utils._rebuild_parameter") + tupled(tensor(offset=1, size=(2,), stride=(2,)), b"\x88}")
    empty, single = tensor(size=(0, 3)), tensor(size=(1, 2), stride=(2**70, 1))
    arrays = read(tmp_path, form(program(tensor(), transposed, scalar, parameter + b"R", empty, single)))
    whole = np.arange(6.0).reshape(2, 3)
    views = [whole, whole.T, 5.0, [1.0, 3.0], np.zeros((0, 3)), [[0.0, 1.0]]]
    for array, expected in zip(arrays.values(), views, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Half", np.float16),
        ("Double", np.float64),
        ("BFloat16", ml_dtypes.bfloat16),
        ("Long", np.int64),
        ("Int", np.int32),
        ("Bool", np.bool_),
    ],
)
def test_every_dtype_is_read(name, dtype, tmp_path):
    expected = np.array([0, 1, 1], dtype)
    stored = storage("7", f"torch.{name}Storage", 3)
    data = zipped(program(tensor(stored, size=(3,), stride=(1,))), [("7", expected.tobytes())])
    array = read(tmp_path, data)["array0"]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, expected)


def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path):
    checkpoint = b"\x80\x02}(" + text("epoch") + number(3) + text("state_dict") + program(tensor())[2:-1] + b"u."
    assert list(read(tmp_path, zipped(checkpoint))) == ["array0"]
    assert_refused(
        tmp_path, zipped(b"\x80\x02}(" + text("epoch") + number(3) + b"u."), "it holds no dictionary of tens"
    )


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "a command": (Calls(os.system, "touch executed"), r"it asks for \w+\.system, which is no part of tensors"),
    "code": (Calls(eval, "open('executed', 'w')"), r"it asks for \w+\.eval, which is no part of tensors"),
    "a function of a module": (Calls(np.load, "executed"), "it asks for numpy.*load, which is no part"),
    "a class": (zipfile.ZipFile, "it asks for zipfile.*ZipFile, which is no part of tensors"),
    "an object": (ValueError("text"), "it asks for "),
    "a set": ({1, 2}, "it asks for "),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("form", [zipped, in_sequence])
@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_is_called(what, form, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile, message = HOSTILE[what]
    pickled = pickle.dumps({"array": hostile}, protocol=protocol)
    other_protocol = "it holds the pickle instruction|it sets|it calls|no torch file"
    assert_refused(tmp_path, form(pickled), message if protocol == 2 else f"{message}|{other_protocol}")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (program(tensor() + b"}b"), "it sets attributes of an object"),
        (program(name_of("torch._utils._rebuild_tensor_v2") + b"}b"), "it sets attributes of an object"),
        (program(name_of("torch.FloatStorage") + b")R"), "it calls torch FloatStorage in a way that tensors do not"),
        (program(name_of("collections.OrderedDict") + b"](Ntr"), "it calls|no torch file"),
        (program(tensor() + b")R"), "it calls an object"),
        (program(name_of("torch.load") + b")R"), "it asks for torch.load"),
        (program(name_of("collections.OrderedDict") + b")\x81"), "the pickle instruction NEWOBJ"),
        (program(b"(ios\nsystem\n"), "the pickle instruction INST"),
        (program(b"\x82\x01"), "the pickle instruction EXT1"),
        (program(text("os") + text("system") + b"\x93"), "the pickle instruction STACK_GLOBAL"),
        (program(text("0") + b"Q"), "no storage of a tensor|no torch file"),
        (program(tupled(text("module"), b"NNNN") + b"Q"), "no storage of a tensor"),
        (program(tensor(storage("0", "torch.FloatStorage", 6, tupled(number(1))))), "no storage of a tensor"),
        (b"\x80\x02}" + tupled(number(1)) + b"Ns.", "keys are neither text nor integers"),
        (b"\x80\x02N" + b"r\xff\xff\xff\xff.", "no dictionary of tensors"),
        (b"\x80\x02}X\xff\xff\xff\xffab.", "no torch file"),
    ],
)
def test_instructions_that_tensors_do_not_need_are_refused(pickled, message, tmp_path):
    assert_refused(tmp_path, zipped(pickled), message)


@pytest.mark.parametrize(
    "view",
    [
        {"size": (2, 4)},
        {"offset": 1},
        {"stride": (4, 1)},
        {"size": (7,), "stride": (0,)},
        {"size": (2**40, 2**40), "stride": (0, 0)},
        {"size": (1,), "stride": (1,), "offset": 2**70},
        {"size": (2, 1), "stride": (2**64, 1)},
    ],
)
def test_a_tensor_cannot_reach_outside_its_storage(view, tmp_path):
    assert_refused(tmp_path, zipped(program(tensor(**view))), "array0 of shape .* reaches outside its storage")


@pytest.mark.parametrize("view", [{"offset": -1}, {"stride": (-3, 1)}, {"size": (-2, -3)}, {"size": (6,)}])
def test_negative_and_unequal_shapes_are_refused(view, tmp_path):
    assert_refused(tmp_path, zipped(program(tensor(**view))), "it holds a tensor of shape")


def test_storages_have_the_length_that_their_tensors_say(tmp_path):
    assert_refused(
        tmp_path, zipped(program(tensor(storage(length=7)))), "expects 7 elements of its storage, which has 6"
    )
    assert_refused(tmp_path, zipped(program(tensor(storage(length=2**62)))), "expects 4611686018427387904 elements")
    assert_refused(tmp_path, in_sequence(program(tensor()), [("0", 7, SIX)]), "storage 0 has another length")
    two = program(tensor(), tensor(storage(dtype="torch.IntStorage")))
    assert_refused(tmp_path, zipped(two), "storage 0 has two dtypes or lengths")


def test_other_archives_and_formats_are_refused(tmp_path):
    good = program(tensor())
    assert_refused(tmp_path, zipped(good, compression=zipfile.ZIP_DEFLATED), "its archive is compressed")
    assert_refused(tmp_path, zipped(good, order=b"big"), "it was written on a big-endian machine")
    assert_refused(tmp_path, in_sequence(good, little=False), "it was written on a big-endian machine")
    assert_refused(tmp_path, in_sequence(good, magic=7), "no file of torch.save")
    assert_refused(tmp_path, b"", "no torch file")
    assert_refused(tmp_path, b"\x89PNG\r\n\x1a\n", "no torch file")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("one.txt", "no tensors")
    assert_refused(tmp_path, buffer.getvalue(), "it has 0 entries data.pkl")


def test_entries_of_an_archive_cannot_share_bytes_to_grow(tmp_path):
    data = zipped(program(tensor()), [("0", SIX), ("1", bytes(200))])
    entry = data.index(b"PK\x01\x02")
    entries, count = data[entry : data.index(b"PK\x05\x06")], struct.unpack("<H", data[-12:-10])[0]
    many = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 20 * count, 20 * count, 20 * len(entries), entry, 0)
    assert_refused(tmp_path, data[:entry] + 20 * entries + many, "promises more bytes than the file has|it has 20")


@pytest.mark.parametrize("form", [zipped, in_sequence])
def test_a_truncated_or_damaged_file_is_refused_in_one_line(form, tmp_path):
    whole = form(program(tensor()))
    for stop in range(len(whole)):
        assert_refused(tmp_path, whole[:stop], "no torch file, or a damaged one|storage 0 has another length")
    rng = np.random.default_rng(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        with contextlib.suppress(WeightsError):
            assert all(array.nbytes <= len(SIX) for array in read(tmp_path, bytes(damaged)).values())


# --- other formats ----------------------------------------------------------------------------------------------------


def safetensors(arrays):
    """The format as it is specified: the length of a header, the header in JSON, the bytes of all arrays."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "float8_e4m3fn": "F8_E4M3"}
    header, data = {}, b""
    for name, array in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
        data += array.tobytes()
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_safetensors_are_read(dtype, tmp_path):
    expected = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.array(3, dtype)}
    arrays = read(tmp_path, safetensors(expected), ".safetensors")
    assert set(arrays) == {"a", "b"}
    for name, array in arrays.items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, expected[name])


def test_damaged_safetensors_are_refused(tmp_path):
    whole = safetensors({"a": np.arange(6, dtype=np.float32)})
    for stop in range(len(whole)):
        assert_refused(tmp_path, whole[:stop], "no .safetensors file, or a damaged one", ".safetensors")
    eight_bits = safetensors({"a": np.zeros(3, ml_dtypes.float8_e4m3fn)})
    assert_refused(tmp_path, eight_bits, "a has dtype F8_E4M3, expected one of F64, F32", ".safetensors")


def npz(save=np.savez, **arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def test_npz_is_read_without_pickles(tmp_path):
    arrays = read(tmp_path, npz(a=np.arange(3.0), b=np.eye(2)), ".npz")
    np.testing.assert_array_equal(arrays["b"], np.eye(2))
    hostile = npz(a=np.array([Calls(os.system, "touch executed")], object))
    assert_refused(tmp_path, hostile, "no .npz file of arrays", ".npz")
    assert_refused(tmp_path, npz(np.savez_compressed, a=np.zeros(10**6)), "it unpacks to 8,000,", ".npz")
    whole = npz(a=np.arange(3.0))
    for stop in range(len(whole)):
        assert_refused(tmp_path, whole[:stop], "no .npz file of arrays, or a damaged one", ".npz")


def test_unknown_suffixes_and_missing_files_are_named(tmp_path):
    with pytest.raises(
        WeightsError, match=r"weights.h5 is no file of weights that can be read: expected .safetensors,"
    ):
        read(tmp_path, b"", ".h5")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_arrays(tmp_path / "none.pth")
