"""The types of the arguments of losses. An array's type names a shape, see `declared_shape`, a number's its range."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_type_hints

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxmetric.losses._engine.class_shard import ClassShard

Reduction: TypeAlias = Literal["mean", "mean_active", "sum", "none"]
# For a loss without one value per example or anchor.
ReductionToScalar: TypeAlias = Literal["mean", "mean_active", "sum"]
# A number of Python or NumPy, or a scalar array, which may be traced.
ScalarLike: TypeAlias = float | np.number[Any] | jax.Array
PositiveScalar: TypeAlias = Annotated[ScalarLike, "> 0"]
LimitedScalar: TypeAlias = Annotated[ScalarLike, "limited"]  # to other values, such as those >= 0 or in (0, 1)

ClassLabels: TypeAlias = Annotated[ArrayLike, "[B]"]
LabelColumns: TypeAlias = Annotated[ArrayLike, "[B, T]"]
ClassProxies: TypeAlias = Annotated[ArrayLike | ClassShard | Sequence[ArrayLike | ClassShard], "[C, D]"]
ClassCenters: TypeAlias = Annotated[ArrayLike | ClassShard | Sequence[ArrayLike | ClassShard], "[C, K, D]"]
ClassScalars: TypeAlias = Annotated[ArrayLike, "[C]"]
ClassWeights: TypeAlias = ArrayLike | Sequence[ArrayLike | None]

DistanceName: TypeAlias = Literal["squared_euclidean", "euclidean", "cosine", "snr"]
SimilarityName: TypeAlias = Literal["cosine", "dot"]
# A function of [A, D] and [R, D] that returns [A, R].
PairwiseFunction: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
# A name, a function, or an [A, R] array computed beforehand.
Distance: TypeAlias = DistanceName | PairwiseFunction | ArrayLike
Similarity: TypeAlias = SimilarityName | PairwiseFunction | ArrayLike

Agreement: TypeAlias = Literal["count", "any"]
Balance: TypeAlias = Literal["quadruplets", "levels"]


def declared_shape(function: Callable[..., Any], argument: str) -> str | None:
    """Returns the shape in the type of an argument, such as `"[B, T]"`; None if the type names none.

    Example:
      >>> import jaxmetric
      >>> declared_shape(jaxmetric.soft_triple_loss, "centers")
      '[C, K, D]'
    """
    annotation = get_type_hints(function, include_extras=True).get(argument)
    for part in (annotation, *get_args(annotation)):
        if shapes := [each for each in getattr(part, "__metadata__", ()) if isinstance(each, str)]:
            return shapes[0]
    return None


def declared_range(function: Callable[..., Any], argument: str) -> str | None:
    """Returns the range in the type of a number: `"all"`, `"> 0"` or `"limited"`; None if it is not such a number.

    Example:
      >>> import jaxmetric
      >>> [declared_range(jaxmetric.siglip_loss, argument) for argument in ("bias", "scale", "similarity")]
      ['all', '> 0', None]
    """
    annotation: Any = get_type_hints(function, include_extras=True).get(argument)
    if annotation == ScalarLike:
        return "all"
    return annotation.__metadata__[0] if getattr(annotation, "__origin__", None) == ScalarLike else None
