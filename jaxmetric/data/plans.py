"""Which images make batch number `step`: a pure function of (seed, step).

A run that resumes at step 7,000 asks for batch 7,000; nothing is replayed, and every process of a multi-host
run computes the same answer. `make_plan` draws P classes x K images, `make_uniform_plan` draws images
whatever their class; `batch_indices` reads either, `visit_counts` tells how often each class has come up
before a step, `plan_fingerprint` tells plans apart.

How a step is found without replaying: an epoch of the C classes is ceil(C / P) batches, so step -> (epoch,
batch) is a division, and the permutation of an epoch is seeded by (seed, epoch). Where P does not divide C
the last batch is short of f classes; they are taken in turn, f each epoch, from a fixed order. So the number
of visits that a class has had is closed form, and the visit number of a class finds its images in the same
way: an epoch of its n images is ceil(n / K) visits, permuted by (seed, class, epoch).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CLASSES, _FILLERS, _IMAGES = range(3)


@dataclass(frozen=True, eq=False)
class Plan:
    """What `batch_indices` needs to know; made by `make_plan` and `make_uniform_plan`.

    Attributes:
      groups: the indices of the images of each class; images whose class is missing are one further
        group.
      classes_per_batch: P.
      images_per_class: K.
      seed: another seed gives other batches.
    """

    groups: tuple[np.ndarray, ...]
    classes_per_batch: int
    images_per_class: int
    seed: int

    @property
    def batch_size(self) -> int:
        """P K."""
        return self.classes_per_batch * self.images_per_class


def make_plan(
    class_ids: np.ndarray,
    *,
    classes_per_batch: int,
    images_per_class: int,
    seed: int = 0,
    where: np.ndarray | None = None,
) -> Plan:
    """A plan of batches of P distinct classes with K images each.

    Every class comes up at least once in each ceil(C / P) batches, and all of them equally often in the long
    run. The K images of a class are distinct where it has that many, else they repeat; every image of a
    class with n of them comes up in each ceil(n / K) of its visits.

    Args:
      class_ids: integers `[N]`; the images of a missing class (-1) form one further class, so that they
        come up too.
      classes_per_batch: P, at most the number of classes.
      images_per_class: K.
      seed: a non-negative integer.
      where: booleans `[N]`, the images to draw from (all by default), such as `source.split == 0`.

    Returns:
      The plan; its indices count all N images, whatever `where` leaves out.

    Raises:
      ValueError: if P or K is below 1, a batch has fewer than 2 images, or there are fewer than P classes.

    Example:
      >>> class_ids = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
      >>> plan = make_plan(class_ids, classes_per_batch=2, images_per_class=3)
      >>> class_ids[batch_indices(plan, step=1000)].reshape(2, 3).std(axis=1)
      array([0., 0.])
    """
    class_ids = np.asarray(class_ids)
    if class_ids.ndim != 1 or not np.issubdtype(class_ids.dtype, np.integer):
        raise ValueError(f"class_ids must be integers [N], got {class_ids.dtype} {class_ids.shape}")
    allowed = _allowed(len(class_ids), where)
    members = allowed[np.argsort(class_ids[allowed], kind="stable")]
    _, starts = np.unique(class_ids[members], return_index=True)
    groups = tuple(np.split(members, starts[1:])) if len(members) else ()
    return _checked(Plan(groups, classes_per_batch, images_per_class, seed))


def make_uniform_plan(num_images: int, *, batch_size: int, seed: int = 0, where: np.ndarray | None = None) -> Plan:
    """A plan of uniformly random batches: each epoch of ceil(N / batch_size) batches visits every image.

    It is the P x K plan in which all images are one class, so what `make_plan` promises holds here too.

    Args:
      num_images: N.
      batch_size: at least 2; images of a batch are distinct where there are that many.
      seed: a non-negative integer.
      where: booleans `[N]`, the images to draw from (all by default).

    Returns:
      The plan.

    Raises:
      ValueError: if the batch size is below 2 or there is no image to draw.

    Example:
      >>> plan = make_uniform_plan(5, batch_size=5)
      >>> sorted(batch_indices(plan, step=3).tolist())
      [0, 1, 2, 3, 4]
    """
    return _checked(Plan((_allowed(num_images, where),), 1, batch_size, seed))


def batch_indices(plan: Plan, step: int) -> np.ndarray:
    """The indices of the images of batch `step`, int64 `[P K]`, class by class.

    Args:
      plan: from `make_plan` or `make_uniform_plan`.
      step: counts from 0, without end.

    Returns:
      Indices into what the plan was made for; the K images of one class stand together.

    Raises:
      ValueError: if the step is negative.
    """
    epoch, batch = _position(plan, step)
    classes = _epoch_of_classes(plan.seed, len(plan.groups), plan.classes_per_batch, epoch)[batch]
    visits = visit_counts(plan, step)
    return np.concatenate([_images(plan, int(c), int(visits[c])) for c in classes])


def visit_counts(plan: Plan, step: int) -> np.ndarray:
    """How often each group of the plan has come up in the batches before `step`, int64 `[C]`.

    Args:
      plan: from `make_plan` or `make_uniform_plan`.
      step: counts from 0.

    Returns:
      One count per entry of `plan.groups`.

    Raises:
      ValueError: if the step is negative.

    Example:
      >>> plan = make_plan(np.array([0, 1, 2]), classes_per_batch=2, images_per_class=1)
      >>> visit_counts(plan, step=6)  # 12 visits of 3 classes
      array([4, 4, 4])
    """
    epoch, batch = _position(plan, step)
    num_classes, per_batch = len(plan.groups), plan.classes_per_batch
    counts = np.full(num_classes, epoch, np.int64)
    rounds, rest = divmod(epoch * _shortfall(num_classes, per_batch), num_classes)
    order = _filler_order(plan.seed, num_classes)
    counts[order] += rounds
    counts[order[:rest]] += 1
    counts[_epoch_of_classes(plan.seed, num_classes, per_batch, epoch)[:batch].ravel()] += 1
    return counts


def plan_fingerprint(plan: Plan) -> str:
    """16 hexadecimal digits that differ between plans with other batches.

    Example:
      >>> plan_fingerprint(make_uniform_plan(5, batch_size=5)) == plan_fingerprint(make_uniform_plan(6, batch_size=5))
      False
    """
    digest = hashlib.sha256(f"{plan.classes_per_batch} {plan.images_per_class} {plan.seed}".encode())
    for group in plan.groups:
        digest.update(f" {len(group)} ".encode() + group.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _checked(plan: Plan) -> Plan:
    P, K = plan.classes_per_batch, plan.images_per_class
    if P < 1 or K < 1:
        raise ValueError(f"a batch needs at least one class and one image of each, got {P} classes x {K} images")
    if P * K < 2:
        raise ValueError(f"a batch needs at least 2 images to compare, got {P} classes x {K} images")
    if not plan.groups or not len(plan.groups[0]):
        raise ValueError("there is no image to draw batches from")
    if len(plan.groups) < P:
        raise ValueError(f"classes_per_batch is {P}, but there are only {len(plan.groups)} classes to draw from")
    if plan.seed < 0:
        raise ValueError(f"seed must not be negative, got {plan.seed}")
    return plan


def _allowed(num_images: int, where: np.ndarray | None) -> np.ndarray:
    if where is None:
        return np.arange(num_images)
    where = np.asarray(where)
    if where.shape != (num_images,) or where.dtype != bool:
        raise ValueError(f"where must be booleans [{num_images}], got {where.dtype} {where.shape}")
    return np.flatnonzero(where)


def _position(plan: Plan, step: int) -> tuple[int, int]:
    """The epoch of classes that holds `step`, and the batch within it."""
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    return divmod(step, -(-len(plan.groups) // plan.classes_per_batch))


def _shortfall(num_classes: int, per_batch: int) -> int:
    return -num_classes % per_batch


def _filler_order(seed: int, num_classes: int) -> np.ndarray:
    return _permutation(num_classes, seed, _FILLERS)


@lru_cache(maxsize=4)
def _epoch_of_classes(seed: int, num_classes: int, per_batch: int, epoch: int) -> np.ndarray:
    """The classes of each batch of an epoch, `[ceil(C / P), P]`: all C, and the fillers of this epoch twice.

    Fillers must not stand twice in the last batch, so that its own classes are drawn among the others.
    """
    shortfall = _shortfall(num_classes, per_batch)
    turn = (epoch * shortfall + np.arange(shortfall)) % num_classes
    fillers = _filler_order(seed, num_classes)[turn]
    shuffled = _permutation(num_classes, seed, _CLASSES, epoch)
    others = shuffled[~np.isin(shuffled, fillers)]
    last = others[: per_batch - shortfall]
    first = shuffled[~np.isin(shuffled, last)]
    return np.concatenate([first, last, fillers]).reshape(-1, per_batch)


def _images(plan: Plan, group: int, visit: int) -> np.ndarray:
    """The K images that a class shows at its visit number `visit`."""
    members, K = plan.groups[group], plan.images_per_class
    epoch, turn = divmod(visit, -(-len(members) // K))
    places = np.arange(turn * K, (turn + 1) * K) % len(members)
    return members[_permutation(len(members), plan.seed, _IMAGES, group, epoch)[places]]


@lru_cache(maxsize=4)
def _permutation(length: int, *key: int) -> np.ndarray:
    """A permutation seeded by `key`, from the raw bits: numpy keeps those stable, `Generator.permutation` not."""
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(length), kind="stable")
