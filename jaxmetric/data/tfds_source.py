"""Data sets of TensorFlow Datasets by name, read without TensorFlow: `load_tfds`.

`tfds.data_source` reads array_record files at random. Most sets need TensorFlow once, to be prepared; after
that labels are read here at the start and pictures are decoded when they are asked for.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmetric.data.pictures import LazyPictures, Resize, check_resize
from jaxmetric.data.sources import LEARNING, TEST, VALIDATION, LabelColumn, LabelledImages
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes

_SPLIT_NAMES = {"train": LEARNING, "validation": VALIDATION, "val": VALIDATION, "valid": VALIDATION, "test": TEST}


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
) -> LabelledImages:
    """Opens a prepared TFDS data set.

    Args:
      name: as TFDS knows it, such as "cars196" or "cars196:2.1.0".
      label_keys: the features to take as labels, the first of them being the identity: class labels, integers
        or text.
      data_dir: where the set was prepared; TFDS's own folder by default.
      image_key: the feature that holds the picture.
      split: "given" takes the set's own train, validation and test; "disjoint" pools them and holds whole
        classes out, as the retrieval protocols do; "within" pools them and holds pictures of every class out.
      image_size: the side S to which pictures are brought.
      resize: "crop" (short side to S, then the centre) or "squash" (both sides to S).
      seed: of the splits that are not given.

    Returns:
      The pictures, decoded lazily, with labels and split; names are "<split>[<index>]".

    Raises:
      ValueError: if the set is unknown or not prepared (the message has the command that prepares it), or has
        no such feature or no split to learn from.
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
    cells = [[record[key] for key in label_keys] for records in parts.values() for record in _each(records)]
    encoded = [
        _encode(key, values, builder.info.features[key])
        for key, values in zip(label_keys, zip(*cells, strict=True), strict=True)
    ]
    labels = np.stack([codes for codes, _ in encoded], axis=1)
    given = np.repeat([_SPLIT_NAMES[part] for part in parts], [len(records) for records in parts.values()]).astype(
        np.int8
    )

    read = partial(_encoded_picture, tuple(parts.values()), image_key)
    source = LabelledImages(
        images=LazyPictures(read, names, image_size=image_size, resize=resize),
        labels=labels,
        columns=tuple(column for _, column in encoded),
        split=_split(split, given, labels[:, 0], seed),
        names=names,
    )
    if not (source.split == LEARNING).any():
        raise ValueError(f"data set {name!r} has no picture to learn from; its splits are {', '.join(parts)}")
    return source


def _prepared_builder(name: str, data_dir: str | Path | None) -> Any:
    import tensorflow_datasets as tfds

    where = f" --data_dir={data_dir}" if data_dir is not None else ""
    hint = f"prepare it once, with TensorFlow installed: tfds build {name} --file_format=array_record{where}"
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # each way of not finding a set has its own exception
        raise ValueError(
            f"data set {name!r} cannot be opened: {str(error).splitlines()[0]}; if it exists, {hint}"
        ) from error
    if not builder.info.splits:
        raise ValueError(f"data set {name!r} is not prepared in {builder.data_dir}; {hint}")
    if builder.info.file_format.value != "array_record":
        raise ValueError(f"data set {name!r} is prepared as {builder.info.file_format.value}, not array_record; {hint}")
    return builder


def _check_features(builder: Any, name: str, image_key: str, label_keys: Sequence[str]) -> None:
    features = builder.info.features
    for key in (image_key, *label_keys):
        if key not in features:
            raise ValueError(f"data set {name!r} has no feature {key!r}; there are {', '.join(sorted(features))}")
    for key in label_keys:
        dtype, shape = np.dtype(features[key].np_dtype), features[key].shape
        if shape != () or not (np.issubdtype(dtype, np.integer) or dtype in (np.dtype(bool), np.dtype(object))):
            raise ValueError(f"feature {key!r} must be one integer or text to be a label, got {dtype} {shape}")


def _open_splits(builder: Any, name: str, image_key: str) -> dict[str, Any]:
    """The data sources of the splits that have a place here, pictures left encoded."""
    import tensorflow_datasets as tfds

    known = [part for part in builder.info.splits if part in _SPLIT_NAMES]
    if not known:
        raise ValueError(
            f"data set {name!r} has none of {', '.join(_SPLIT_NAMES)}, but {', '.join(builder.info.splits)}"
        )
    skip = {image_key: tfds.decode.SkipDecoding()}
    return {part: builder.as_data_source(split=part, decoders=skip) for part in known}


def _encoded_picture(parts: Sequence[Any], image_key: str, index: int) -> bytes:
    for records in parts:
        if index < len(records):
            return records[index][image_key]
        index -= len(records)
    raise IndexError(f"no picture {index}")


def _each(records: Any) -> Any:
    return (records[i] for i in range(len(records)))


def _encode(key: str, values: Sequence[Any], feature: Any) -> tuple[np.ndarray, LabelColumn]:
    """Codes of one label: a class label's own, or places among the sorted values; -1 and empty text are missing."""
    names = getattr(feature, "names", None)
    if names is not None:
        return np.array(values, np.int32), LabelColumn(key, tuple(names))
    plain = [value.decode() if isinstance(value, bytes) else value for value in values]
    present = sorted({value for value in plain if value not in (-1, "")})
    code = {value: i for i, value in enumerate(present)} | {-1: -1, "": -1}
    return np.array([code[value] for value in plain], np.int32), LabelColumn(key, tuple(map(str, present)))


def _split(split: str, given: np.ndarray, class_ids: np.ndarray, seed: int) -> np.ndarray:
    if split == "given":
        return given
    return (split_within_classes if split == "within" else split_disjoint_classes)(class_ids, seed=seed)
