"""Reports the extra of a missing package: `import jaxmetric` itself needs only jax and numpy."""

import importlib.util

# The imports of the commands, from the extra `train`.
TRAIN = ("flax", "grain", "optax", "orbax", "PIL", "sklearn", "tensorboardX", "threadpoolctl", "tqdm", "tyro")


def require(needing: str, *packages: str, extra: str = "train") -> None:
    """Raises ModuleNotFoundError, in one line with its cure, if a package of an extra is not installed.

    Args:
      needing: the module that needs the packages, such as "jaxmetric.training".
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
