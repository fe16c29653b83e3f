"""Checks of the arguments of losses, miners and regularizers. They run at trace time and raise one-line errors."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxmetric.numerics import as_float, replicated

NUMBER_CLASSES = "; number the classes from 0, by np.unique(..., return_inverse=True)[1]"


def check_array(name: str, value: Any, expected: str, kind: Any = None) -> jax.Array:
    """Returns an array of numbers or booleans, whole on every device of its mesh.

    Args:
      name: the name of the argument in messages.
      value: anything.
      expected: the expected value in messages.
      kind: a dtype, or an abstract one such as `jnp.floating`; None for any number or boolean.
    """
    array = value if isinstance(value, jax.Array) else _array_from_host(name, value, expected, kind)
    if not (_is_real(array.dtype) and (kind is None or jnp.issubdtype(array.dtype, kind))):
        raise TypeError(f"{name} has dtype {given_dtype(value, array)}, expected {expected}")
    return replicated(array)


def _array_from_host(name: str, value: Any, expected: str, kind: Any) -> jax.Array:
    if value is None or is_dataclass(value):
        raise TypeError(f"{name} is {'None' if value is None else f'a {type(value).__name__}'}, expected {expected}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected {expected} and which of them are valid as `where`")
    try:
        if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
            return jnp.asarray(value)
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(value).__name__} of unequal rows, expected {expected}") from None
    if not _is_real(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}, expected {expected}")
    if kind is None and array.dtype.kind in "iu" and not _fits(array, label_dtype()):
        array = array.astype(np.float64)  # JAX would keep their low 32 bits
    return jnp.asarray(array)


def _is_real(dtype: Any) -> bool:
    """Returns whether a dtype is one of real numbers or booleans."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _fits(integers: np.ndarray, dtype: np.dtype) -> bool:
    """Returns whether a dtype holds all of the integers."""
    limits = np.iinfo(dtype)
    return not integers.size or bool(limits.min <= integers.min() and integers.max() <= limits.max)


def given_dtype(value: Any, array: jax.Array) -> Any:
    """Returns the dtype of an argument as given, which may differ from that of the `array` made from it."""
    return getattr(value, "dtype", array.dtype)


def check_floats(name: str, value: Any) -> jax.Array:
    """Returns an array of floats, of any precision."""
    return check_array(name, value, "a floating-point dtype", jnp.floating)


def check_integers(name: str, value: Any, cure: str = "") -> jax.Array:
    """Returns integers in int32, or in int64 where jax has 64-bit numbers enabled.

    Raises for integers that this type cannot hold. JAX itself would keep their low 32 bits, which can merge several
    classes into one. The `cure` ends the messages, such as `NUMBER_CLASSES` for labels.
    """
    if not isinstance(value, jax.Array) or jnp.issubdtype(value.dtype, jnp.unsignedinteger):
        _check_integer_range(name, value, cure)
    array = check_array(name, value, f"integers{cure}", jnp.integer)
    return array.astype(jax.dtypes.canonicalize_dtype(np.int64))


def label_dtype() -> np.dtype:
    """Returns int32, or int64 where jax has 64-bit numbers enabled."""
    return jax.dtypes.canonicalize_dtype(np.int64)


def _check_integer_range(name: str, value: Any, cure: str) -> None:
    limits = np.iinfo(label_dtype())
    if isinstance(value, jax.core.Tracer):
        return
    try:
        # NumPy would convert a list of small integers and some above 63 bits to floats.
        array = np.array(value, object) if isinstance(value, (list, tuple)) else np.asarray(value)
    except (TypeError, ValueError, jax.errors.TracerArrayConversionError):
        return  # `check_array` reports values that are not arrays
    whole = array.dtype.kind in "iu" or (array.dtype == object and all(isinstance(each, int) for each in array.flat))
    if array.size and whole:
        for extreme in (array.min(), array.max()):
            if not limits.min <= extreme <= limits.max:
                raise ValueError(f"{name} has {extreme}, expected integers that fit {limits.dtype}{cure}")


def check_booleans(name: str, value: Any, hint: str = "") -> jax.Array:
    """Returns an array of booleans."""
    array = check_array(name, value, "bool")
    if array.dtype != bool:
        raise TypeError(f"{name} has dtype {given_dtype(value, array)}, expected bool{hint}")
    return array


def check_embeddings(embeddings: Any, name: str = "embeddings") -> jax.Array:
    """Returns `[B, D]` embeddings in float32 (or float64)."""
    embeddings = check_array(name, embeddings, "a floating-point dtype", jnp.floating)
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"{name} has shape {embeddings.shape}, expected [B, D] with D >= 1")
    return as_float(embeddings)


def check_rows(embeddings: jax.Array, **arrays: Any) -> None:
    """Raises unless each array (or None) has one row for each embedding."""
    for name, array in arrays.items():
        if array is not None and np.shape(array)[:1] != embeddings.shape[:1]:
            raise ValueError(
                f"{name} has shape {np.shape(array)}, expected {embeddings.shape[0]} rows as embeddings "
                f"{embeddings.shape}"
            )


def check_class_labels(embeddings: jax.Array, labels: Any, name: str = "labels") -> jax.Array:
    """Returns one integer label for each embedding, `[B]`, from `[B]` or `[B, 1]`."""
    labels = check_integers(name, labels, NUMBER_CLASSES)
    if labels.shape not in ((embeddings.shape[0],), (embeddings.shape[0], 1)):
        raise ValueError(
            f"{name} has shape {labels.shape}, expected one column of {embeddings.shape[0]} as embeddings "
            f"{embeddings.shape}"
        )
    return labels.reshape(-1)


def check_class_range(labels: Any, counted: Any, num_classes: int, name: str) -> None:
    """Raises for labels outside [0, C) that are `counted` (all if None), unless either is traced."""
    if isinstance(labels, jax.core.Tracer) or isinstance(counted, jax.core.Tracer):
        return
    labels = np.asarray(labels) if counted is None else np.asarray(labels)[np.asarray(counted)]
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"labels span [{labels.min()}, {labels.max()}], expected classes in [0, {num_classes}) as {name}; "
            "`where` leaves out examples without a class"
        )


def check_mask_and_weights(
    embeddings: jax.Array, where: Any, weights: Any, prefix: str = ""
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns `where` and `weights` as `[B]` arrays, each None if it was not given."""
    size = embeddings.shape[0]
    if where is not None:
        where = check_booleans(f"{prefix}where", where)
        if where.shape not in ((size,), (size, 1)):
            raise ValueError(f"{prefix}where has shape {where.shape}, expected ({size},) as embeddings")
        where = where.reshape(size)
    if weights is not None:
        weights = check_numbers(f"{prefix}weights", weights, embeddings.dtype)
        if weights.shape not in ((size,), (size, 1)):
            raise ValueError(f"{prefix}weights has shape {weights.shape}, expected ({size},) as embeddings")
        weights = weights.reshape(size)
        if where is not None:  # for any weight of a masked example
            weights = jnp.where(where, weights, 0)
        weights = check_weights(f"{prefix}weights", weights)
    return where, weights


def masked_weights(embeddings: jax.Array, where: jax.Array | None, weights: jax.Array | None) -> jax.Array:
    """Returns one weight for each embedding, `[B]`: `weights` (default 1), 0 where `where` is False."""
    result = jnp.ones(embeddings.shape[0], embeddings.dtype) if weights is None else weights
    return result if where is None else jnp.where(where, result, 0)


def example_weights(embeddings: jax.Array, where: Any, weights: Any) -> jax.Array:
    """Checks `where` and `weights` and returns one weight for each embedding, `[B]`, 0 for a masked one."""
    return masked_weights(embeddings, *check_mask_and_weights(embeddings, where, weights))


def check_numbers(name: str, value: Any, dtype: DTypeLike) -> jax.Array:
    """Returns numbers in a floating-point dtype. Concrete numbers that would become 0 in it are an error."""
    array = check_array(name, value, "numbers")
    rounded = array.astype(dtype)
    if not isinstance(array, jax.core.Tracer):
        given = np.asarray(value)
        with np.errstate(over="ignore"):  # on the host: inside `jit`, `rounded` is traced if JAX had to convert it
            vanishing = given[(given != 0) & (given.astype(rounded.dtype) == 0)]
        if vanishing.size:
            raise ValueError(f"{name} has {vanishing[0]:g}, which is 0 in {rounded.dtype}, expected larger numbers")
    return rounded


def check_weights(name: str, weights: jax.Array) -> jax.Array:
    """Returns weights without gradients. A negative or NaN weight is an error, or becomes infinite if traced.

    An infinite weight makes the loss infinite or NaN. A NaN weight would not be above 0, and would silently be
    excluded.
    """
    if not isinstance(weights, jax.core.Tracer):
        wrong = np.asarray(weights)[~(np.asarray(weights) >= 0) | np.isinf(weights)]
        if wrong.size:
            raise ValueError(f"{name} has {wrong[0]:g}, expected finite numbers of at least 0")
    return jax.lax.stop_gradient(jnp.where(weights >= 0, weights, jnp.inf))


def check_scalar(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    unit: str = "a finite number",
) -> Any:
    """Returns `value`, a finite scalar in range; a traced scalar is only checked for its shape and dtype.

    An integer of Python or NumPy becomes a float, because `jit` takes no integers of 2^31 and more.
    """
    if isinstance(value, (bool, str, np.bool_)) or not isinstance(
        value, (int, float, np.number, jax.Array, np.ndarray)
    ):
        raise TypeError(f"{name} is {shown(value)}, expected a number")
    if np.ndim(value) != 0:
        raise ValueError(f"{name} has shape {np.shape(value)}, expected a scalar")
    dtype = getattr(value, "dtype", None)
    if dtype is not None and not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} has dtype {dtype}, expected a number")
    if isinstance(value, jax.core.Tracer):
        return value
    # Losses are computed in float32, or in float64 where that is enabled.
    with np.errstate(over="ignore"):
        try:
            number = float(value) if jax.dtypes.canonicalize_dtype(np.int64) == np.int64 else float(np.float32(value))
        except OverflowError:  # an integer beyond the range of floats
            number = math.inf
    bounds = [
        (f"above {above}", above is None or number > above),
        (f"of at least {least}", least is None or number >= least),
        (f"below {below}", below is None or number < below),
        (f"of at most {most}", most is None or number <= most),
    ]
    if not (math.isfinite(number) and all(holds for _, holds in bounds)):
        asked = [words for words, _ in bounds if not words.endswith("None")]
        given = f"{value}" if isinstance(value, int) else f"{float(value):g}"
        is_lost = (number == 0 and value != 0) or (math.isinf(number) and abs(value) != math.inf)
        rounded = f", which is {number:g} in float32" if is_lost else ""
        raise ValueError(f"{name} is {given}{rounded}, expected {' '.join([unit, ' and '.join(asked)]).rstrip()}")
    whole = isinstance(value, int) or (isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "iu")
    return float(value) if whole else value


def check_static_integer(name: str, value: Any, *, least: int) -> int:
    """Returns an integer of at least `least`, known before tracing."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {shown(value)}, expected a static integer")
    if value < least:
        raise ValueError(f"{name} is {value}, expected a static integer of at least {least}")
    if value > np.iinfo(label_dtype()).max:
        raise ValueError(f"{name} is {value}, expected a static integer that fits {label_dtype()}")
    return int(value)


def check_static_sequence(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    """Returns the entries of a list, a tuple or another sequence whose order and length are known before tracing."""
    is_array = isinstance(value, (np.ndarray, jax.Array))
    if isinstance(value, (str, bytes)) or not (isinstance(value, Sequence) or (is_array and np.ndim(value) == 1)):
        raise TypeError(f"{name} is {shown(value)}, expected {expected}")
    return tuple(value)


def shown(value: Any) -> str:
    """Returns what an error message shows of a value, on one line."""
    return " ".join(repr(value).split())


def check_floating_dtype(name: str, value: Any) -> None:
    """Raises unless `value` is a floating-point dtype or the name of one."""
    try:
        is_given = value is not None and not isinstance(value, (np.ndarray, jax.Array))
        is_floating = is_given and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise TypeError(f"{name} is {shown(value)}, expected a floating-point dtype")


def check_static_number(name: str, value: Any, **bounds: Any) -> float:
    """Returns a number known before tracing; the bounds are those of `check_scalar`."""
    number = check_scalar(name, value, **bounds)
    if isinstance(number, jax.core.Tracer):
        raise TypeError(f"{name} is traced, expected a static number")
    return float(number)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises unless `value` is one of the names in `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}, expected one of {', '.join(choices)}, static")
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def check_result(reduction: Any, has_aux: Any, *, unreduced: bool) -> None:
    """Raises unless the options of a loss's result are valid; `reduction="none"` is if a loss can be `unreduced`."""
    reductions = ("mean", "mean_active", "sum", "none") if unreduced else ("mean", "mean_active", "sum")
    if not isinstance(reduction, str) or reduction not in reductions:
        raise ValueError(f"reduction is {shown(reduction)}, expected one of {', '.join(reductions)}")
    if not isinstance(has_aux, bool):
        raise TypeError(f"has_aux is {shown(has_aux)}, expected True or False, static")


def check_flag(name: str, value: Any) -> None:
    """Raises unless `value` is True or False, static."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}, expected True or False, static")


def leave_out(embeddings: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the embeddings with rows of weight 0 set to zero, so that masked rows never affect the loss."""
    return jnp.where(weights[:, None] > 0, embeddings, 0)


def check_class_parameters(name: str, vectors: Any, num_axes: int) -> jax.Array:
    """Returns class vectors, `[C, D]` or (with three axes) `[C, K, D]`, in float32 (or float64)."""
    if is_dataclass(vectors):
        raise TypeError(f"{name} is a {type(vectors).__name__}, expected an array")
    vectors = check_array(name, vectors, "a floating-point dtype", jnp.floating)
    if vectors.ndim != num_axes or 0 in vectors.shape:
        expected = "[C, D]" if num_axes == 2 else "[C, K, D]"
        raise ValueError(f"{name} has shape {vectors.shape}, expected {expected} without an empty axis")
    return as_float(vectors)
