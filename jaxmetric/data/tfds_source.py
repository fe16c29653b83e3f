"""Reads data sets of TensorFlow Datasets without TensorFlow: `load_tfds`.

`tfds.data_source` reads array_record files with random access. Most data sets need TensorFlow once, for preparation.
Labels are read at the start and images are decoded on each access. Ignored splits and missing values are reported in
one-line `SourceWarning`s.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmetric.data.columns import SPLIT_WORDS
from jaxmetric.data.copies import copies_across_splits
from jaxmetric.data.decoding import LazyImages, Resize, check_resize
from jaxmetric.data.label_values import MISSING_WORDS, note_values
from jaxmetric.data.labeled_images import LabelColumn, LabeledImages, SourceWarning
from jaxmetric.data.problems import Problems, counted
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes

_SPLIT_NAMES = {word: code for word, code in SPLIT_WORDS.items() if not word.isdecimal()}


def load_tfds(
    name: str,
    *,
    label_keys: Sequence[str],
    data_dir: str | Path | None = None,
    image_key: str = "image",
    split: Literal["given", "within", "disjoint"] = "given",
    image_size: int = 64,
    resize: Resize = "crop",
    seed: int = 0,
) -> LabeledImages:
    """Opens a prepared TFDS data set.

    Args:
      name: the TFDS name, such as "cars196" or "cars196:2.1.0".
      label_keys: the features to use as labels, identity first: class labels, integers or text.
      data_dir: the folder of the prepared data set; TFDS's own by default.
      image_key: the feature that holds the image.
      split: "given" uses the data set's own train, validation, test, query and gallery; "disjoint" pools them and
        holds out whole classes, as retrieval protocols do; "within" pools them and holds out images of every class.
      image_size: the side S of the images.
      resize: "crop" (scale the short side to S, crop the center) or "squash" (scale both sides to S).
      seed: seed of the splits "within" and "disjoint".

    Returns:
      The images, decoded lazily, with labels and split; names are "<split>[<index>]".

    Raises:
      ValueError: if the data set is unknown or not prepared (the message has the command that prepares it), or has
        no such feature or no split with a known name.

    Warns:
      SourceWarning: for splits with other names, which are ignored; for -1 and words such as NA, which are read as
        missing; for labels with fewer than two values; for copies of an image in different splits.
    """
    check_resize(image_size, resize)
    if isinstance(label_keys, str) or not label_keys:
        raise ValueError(f"label_keys must name at least one feature, got {label_keys!r}")
    if split not in ("given", "within", "disjoint"):
        raise ValueError(f"split must be 'given', 'within' or 'disjoint', got {split!r}")
    builder = _prepared_builder(name, data_dir)
    _check_features(builder, name, image_key, label_keys)
    parts = _open_splits(builder, name, image_key)

    names = tuple(f"{part}[{i}]" for part, records in parts.items() for i in range(len(records)))
    cells, digests = _read_records(parts.values(), label_keys, image_key)
    problems = Problems(name)
    encoded = [
        _encode(key, values, builder.info.features[key], problems)
        for key, values in zip(label_keys, zip(*cells, strict=True), strict=True)
    ]
    labels = np.stack([codes for codes, _ in encoded], axis=1)
    columns = tuple(column for _, column in encoded)
    given = np.repeat([_SPLIT_NAMES[part] for part in parts], [len(records) for records in parts.values()]).astype(
        np.int8
    )

    read = partial(_encoded_image, tuple(parts.values()), image_key)
    source = LabeledImages(
        images=LazyImages(read, names, image_size=image_size, resize=resize),
        labels=labels,
        columns=columns,
        split=_split(split, given, labels[:, 0], seed),
        names=names,
        origin=f"TFDS {builder.info.full_name}, splits {', '.join(parts)}",
    )
    _note(source, [part for part in builder.info.splits if part not in parts], digests, problems)
    for note in problems.notes:
        warnings.warn(SourceWarning(note), stacklevel=2)
    return source


def _prepared_builder(name: str, data_dir: str | Path | None) -> Any:
    import tensorflow_datasets as tfds

    where = f" --data_dir={data_dir}" if data_dir is not None else ""
    hint = f"prepare it once, with TensorFlow installed: tfds build {name} --file_format=array_record{where}"
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # TFDS raises various exceptions for unknown data sets
        raise ValueError(
            f"data set {name!r} cannot be opened: {str(error).splitlines()[0]}; if it exists, {hint}"
        ) from error
    if not builder.info.splits:
        raise ValueError(f"data set {name!r} is not prepared in {builder.data_dir}; {hint}")
    if builder.info.file_format.value != "array_record":
        raise ValueError(f"data set {name!r} is prepared as {builder.info.file_format.value}, not array_record; {hint}")
    return builder


def _check_features(builder: Any, name: str, image_key: str, label_keys: Sequence[str]) -> None:
    import tensorflow_datasets as tfds

    features = builder.info.features
    for key in (image_key, *label_keys):
        if key not in features:
            raise ValueError(f"data set {name!r} has no feature {key!r}; there are {', '.join(sorted(features))}")
    image = features[image_key]
    if not isinstance(image, tfds.features.Image) or np.dtype(image.np_dtype).kind != "u":
        raise ValueError(
            f"feature {image_key!r} must be an image of 8 or 16 bits, got {type(image).__name__} of {image.np_dtype}"
        )
    for key in label_keys:
        dtype, shape = np.dtype(features[key].np_dtype), features[key].shape
        if shape != () or not (np.issubdtype(dtype, np.integer) or dtype in (np.dtype(bool), np.dtype(object))):
            raise ValueError(f"feature {key!r} must be one integer or text to be a label, got {dtype} {shape}")


def _open_splits(builder: Any, name: str, image_key: str) -> dict[str, Any]:
    """Opens the data sources of all splits with known names, without decoding images."""
    import tensorflow_datasets as tfds

    known = [part for part in builder.info.splits if part in _SPLIT_NAMES]
    if not known:
        raise ValueError(
            f"data set {name!r} has none of {', '.join(_SPLIT_NAMES)}, but {', '.join(builder.info.splits)}"
        )
    skip = {image_key: tfds.decode.SkipDecoding()}
    return {part: builder.as_data_source(split=part, decoders=skip) for part in known}


def _encoded_image(parts: Sequence[Any], image_key: str, index: int) -> bytes:
    for records in parts:
        if index < len(records):
            return records[index][image_key]
        index -= len(records)
    raise IndexError(f"no image {index}")


def _read_records(
    parts: Iterable[Any], label_keys: Sequence[str], image_key: str
) -> tuple[list[list[Any]], list[bytes]]:
    """Reads the labels of every record and a digest of its encoded image."""
    cells, digests = [], []
    for records in parts:
        for i in range(len(records)):
            record = records[i]
            cells.append([record[key] for key in label_keys])
            digests.append(hashlib.blake2b(record[image_key], digest_size=16).digest())
    return cells, digests


def _encode(key: str, values: Sequence[Any], feature: Any, problems: Problems) -> tuple[np.ndarray, LabelColumn]:
    """Encodes one label: by a class label's own codes or by sorted values. -1 and missing words become -1."""
    plain = [value.decode() if isinstance(value, bytes) else value for value in values]
    missing = Counter(str(value) for value in plain if value == -1 or value in MISSING_WORDS)
    if missing:
        problems.note(f"taken as missing: {key} ({missing.total():,} {' or '.join(sorted(missing))})")
    names = getattr(feature, "names", None)
    if names is not None:
        return np.array(values, np.int32), LabelColumn(key, tuple(names))
    present = sorted({value for value in plain if str(value) not in missing and value != ""})
    code = {value: i for i, value in enumerate(present)}
    return np.array([code.get(value, -1) for value in plain], np.int32), LabelColumn(key, tuple(map(str, present)))


def _note(source: LabeledImages, left_out: Sequence[str], digests: Sequence[bytes], problems: Problems) -> None:
    if left_out:
        what = f"{counted(len(left_out), 'split')} of another name left out: {', '.join(left_out)}"
        problems.note(f"{what}; known names are {', '.join(_SPLIT_NAMES)}")
    rows = [
        ["" if code < 0 else column.values[code] for column, code in zip(source.columns, codes, strict=True)]
        for codes in source.labels.tolist()
    ]
    note_values([column.name for column in source.columns], rows, (), problems)
    copies = copies_across_splits(digests, source.split, source.names)
    if copies:
        problems.note(copies)


def _split(split: str, given: np.ndarray, class_ids: np.ndarray, seed: int) -> np.ndarray:
    if split == "given":
        return given
    return (split_within_classes if split == "within" else split_disjoint_classes)(class_ids, seed=seed)
