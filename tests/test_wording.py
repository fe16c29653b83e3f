"""One wording for each argument that losses share. A loss may add sentences of its own."""

import inspect
import re

import pytest

import jaxmetric
from jaxmetric.losses._engine.types import declared_shape

LOSSES = [name for name in jaxmetric.__all__ if name.endswith("_loss")]
FUNCTION = "a function of `[A, D]` and `[R, D]`"
COLUMNS = "a tuple of T for T columns of labels, whose losses add up."
# What the description of an argument begins with; where there are several, one of them.
SENTENCES = {
    "embeddings": ["`[B, D]` floats."],
    "labels": [
        "`[B]` or `[B, 1]` integers.",
        "`[B]` or `[B, T]` integers.",
        "`[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of centers.",
        "`[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.",
    ],
    "centers": [
        f"`[C, K, D]` class vectors, K centers of each class, or a `ClassShard` of them; {COLUMNS}",
        f"`[C, D]` class vectors, or a `ClassShard` of them; {COLUMNS}",
    ],
    "proxies": [f"`[C, D]` class vectors, or a `ClassShard` of them; {COLUMNS}", f"`[C, D]` class vectors; {COLUMNS}"],
    "class_weights": ["`[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels."],
    "distance": [f'`"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, {FUNCTION}'],
    "similarity": [f'`"cosine"`, `"dot"`, {FUNCTION}, or an `[A, R]` array.'],
    "label_weights": ["T static weights > 0 of the columns of labels; 1 if None."],
    "references": ["what the batch is compared with; the batch itself if None."],
    "pairs": ["`[B, R]` booleans: which pairs may be used; all if None."],
    "where": [
        "`[B]` booleans: which examples are valid; all if None.",
        "`[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.",
    ],
    "weights": ["`[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them."],
    "reduction": ['`"mean"`, `"mean_active"`, `"sum"` or `"none"`.', '`"mean"`, `"mean_active"` or `"sum"`.'],
    "has_aux": ["whether to return `(loss, LossStats)`.", "whether to return `(loss, DynamicMarginStats)`."],
}


def descriptions(loss):
    arguments = inspect.getdoc(loss).split("Args:\n")[1].split("\n\nReturns:")[0]
    found = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


@pytest.mark.parametrize("name", LOSSES)
def test_shared_arguments_have_one_wording(name):
    loss = getattr(jaxmetric, name)
    for argument, text in descriptions(loss).items():
        if argument in SENTENCES:
            assert any(text.startswith(sentence) for sentence in SENTENCES[argument]), f"{argument}: {text}"


@pytest.mark.parametrize("name", LOSSES)
def test_the_wording_names_the_shape_that_the_type_declares(name):
    loss = getattr(jaxmetric, name)
    parameters, texts = inspect.signature(loss).parameters, descriptions(loss)
    for argument in {"labels", "centers", "proxies", "beta"} & set(parameters):
        shape = declared_shape(loss, argument)
        if parameters[argument].kind is not inspect.Parameter.KEYWORD_ONLY:
            assert f"`{shape}`" in texts[argument], argument
