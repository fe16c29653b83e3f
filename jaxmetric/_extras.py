"""Says which extra brings a package that is not installed: `import jaxmetric` itself needs jax and numpy alone."""

import importlib.util

# What the commands import, from the extra `train`.
TRAIN = ("flax", "grain", "optax", "orbax", "PIL", "sklearn", "tensorboardX", "threadpoolctl", "tqdm", "tyro")


def require(needing: str, *packages: str, extra: str = "train") -> None:
    """Raises ModuleNotFoundError, in one line with its cure, if a package of an extra is not installed.

    Args:
      needing: what needs the packages, such as "jaxmetric.training".
      *packages: the names by which they are imported.
      extra: the extra that installs them.

    Example:
      >>> require("jaxmetric.training", "jax", "no_such_package")
      Traceback (most recent call last):
      ModuleNotFoundError: jaxmetric.training needs no_such_package: pip install 'jaxmetric[train]'
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{needing} needs {package}: pip install 'jaxmetric[{extra}]'", name=package)
