"""Labeled images: sources, splits, batch plans, the input pipeline and augmentation.

A source (`load_emoji_people`, `load_manifest`, `load_tfds`) returns a `LabeledImages`. A plan (`make_plan`,
`make_uniform_plan`) selects the images of each batch, `batches` reads them ahead, and `augment` and
`prepare` run on the device.
"""

from jaxmetric._extras import require

require(__name__, "grain", "PIL")

from jaxmetric.data.augment import Augmentation, augment, augment_image, image_keys, prepare
from jaxmetric.data.batch_plans import Plan, batch_indices, make_plan, make_uniform_plan, visit_counts
from jaxmetric.data.csv_source import load_manifest
from jaxmetric.data.decoding import LazyImages, decode_image
from jaxmetric.data.emoji import load_emoji_people
from jaxmetric.data.labeled_images import (
    GALLERY,
    LEARNING,
    QUERY,
    SPLITS,
    TEST,
    VALIDATION,
    ImageError,
    InputError,
    InputTimeoutError,
    LabelColumn,
    LabeledImages,
    SourceWarning,
    describe,
)
from jaxmetric.data.pipeline import BatchIterator, InputSpeed, batches
from jaxmetric.data.problems import ManifestError, ManifestWarning
from jaxmetric.data.reading import read_batch
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes
from jaxmetric.data.tfds_source import load_tfds

__all__ = [
    "GALLERY",
    "LEARNING",
    "QUERY",
    "SPLITS",
    "TEST",
    "VALIDATION",
    "Augmentation",
    "BatchIterator",
    "ImageError",
    "InputError",
    "InputSpeed",
    "InputTimeoutError",
    "LabelColumn",
    "LabeledImages",
    "LazyImages",
    "ManifestError",
    "ManifestWarning",
    "Plan",
    "SourceWarning",
    "augment",
    "augment_image",
    "batch_indices",
    "batches",
    "decode_image",
    "describe",
    "image_keys",
    "load_emoji_people",
    "load_manifest",
    "load_tfds",
    "make_plan",
    "make_uniform_plan",
    "prepare",
    "read_batch",
    "split_disjoint_classes",
    "split_within_classes",
    "visit_counts",
]
