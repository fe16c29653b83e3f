import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmetric

PACKAGE = Path(jaxmetric.__file__).parent

# Each room may import from those named before it and, without a circle, from those beside it.
LAYERS = [
    {"numerics", "_extras"},
    {"_checks"},
    {"distances", "_host_distances", "agreement", "references"},
    {"losses/_engine"},
    {"mining"},
    {"losses", "memory", "regularizers", "views"},
    {"search"},
    {"metrics"},
    {"parallel"},
    {"encoders", "data", "training"},
    {"report"},
    {"run"},
    {"__main__"},
]
CORE = 9  # layers that need jax and numpy alone
LIGHT = {room for layer in LAYERS[:CORE] for room in layer}


def imported_modules(path):
    """Absolute names of what a file imports, wherever in it, except for type checkers alone."""
    package = ["jaxmetric", *path.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(module):
    """The room of a module of jaxmetric, or of a name in it; the engines of the losses are a room of their own."""
    first, *rest = module.split(".")[1:]
    return "losses/_engine" if (first, *rest[:1]) == ("losses", "_engine") else first


def imported_rooms(path):
    return {room_of(name) for name in imported_modules(path) if name.startswith("jaxmetric.")}


def module_of(path):
    return ".".join(("jaxmetric", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_of(path): path for path in FILES}


def test_every_subpackage_has_a_layer():
    rooms = {room_of(module) for module in MODULES if module != "jaxmetric"}
    assert rooms == {room for layer in LAYERS for room in layer}


@pytest.mark.parametrize("module", MODULES)
def test_imports_do_not_go_to_higher_layers(module):
    if module == "jaxmetric":
        allowed = LIGHT
    else:
        level = next(number for number, layer in enumerate(LAYERS) if room_of(module) in layer)
        allowed = {room for layer in LAYERS[: level + 1] for room in layer}
    rooms = imported_rooms(MODULES[module])
    assert rooms <= allowed | {"__version__"}, f"{module} imports {sorted(rooms - allowed)}"


def assert_no_circle(knows):
    """Takes away, again and again, what knows nothing that is left."""
    while knows:
        bottom = [name for name, others in knows.items() if not others & knows.keys()]
        assert bottom, f"a circle among {sorted(knows)}"
        for name in bottom:
            del knows[name]


def test_subpackages_have_no_circular_imports():
    knows = {room: set() for layer in LAYERS for room in layer}
    for module, path in MODULES.items():
        if module != "jaxmetric":
            knows[room_of(module)] |= imported_rooms(path) & knows.keys() - {room_of(module)}
    assert_no_circle(knows)


def test_files_have_no_circular_imports():
    knows = {
        module: {name.rpartition(".")[0] if name not in MODULES else name for name in imported_modules(path)} - {module}
        for module, path in MODULES.items()
    }
    assert_no_circle(knows)


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_the_core_needs_only_jax_and_numpy(room):
    allowed = {"jax", "numpy", "jaxmetric"} | set(sys.stdlib_module_names)
    for module, path in MODULES.items():
        if module != "jaxmetric" and room_of(module) == room:
            assert {name.split(".")[0] for name in imported_modules(path)} <= allowed, module


def test_importing_the_package_imports_nothing_heavy():
    heavy = [
        *("flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow", "PIL", "matplotlib", "sklearn"),
        *("tyro", "tqdm", "scipy.stats", "pandas", "torch", "chex"),
    ]
    script = (
        "import sys, json, jax; before = set(sys.modules); import jaxmetric; "
        f"print(json.dumps(sorted(set({heavy!r}) & (set(sys.modules) - before))))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []


def test_starting_a_training_does_not_import_the_dependencies_of_the_report():
    script = "import sys, jaxmetric.run.train; assert 'sklearn' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_exports_are_sorted_and_exist():
    assert list(jaxmetric.__all__) == sorted(set(jaxmetric.__all__))
    assert all(hasattr(jaxmetric, name) for name in jaxmetric.__all__)


@pytest.mark.parametrize("name", jaxmetric.__all__)
def test_exports_are_documented(name):
    exported = getattr(jaxmetric, name)
    documentation = inspect.getdoc(exported)
    if name.startswith("pairwise_") or inspect.isclass(exported):
        assert "[A, B]" in documentation or "Attributes:" in documentation
        return
    if inspect.ismodule(exported):
        functions = [f for f in vars(exported).values() if getattr(f, "__module__", None) == exported.__name__]
        assert all(inspect.getdoc(function) for function in functions if not function.__name__.startswith("_"))
        return
    arguments = documentation.split("Args:")[1].split("Returns:")[0]
    for argument in inspect.signature(exported).parameters:
        assert f"  {argument}: " in arguments, f"{name} does not document {argument}"
    assert "Raises:" in documentation
    assert "Example:" in documentation


@pytest.mark.parametrize("name", [name for name in jaxmetric.__all__ if name.endswith("_loss")])
def test_losses_share_one_signature(name):
    parameters = inspect.signature(getattr(jaxmetric, name)).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    second = "other" if name == "vicreg_loss" else "labels"
    assert [p for p in positional if p not in ("key", "centers", "proxies", "beta")] == ["embeddings", second]
    keywords = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert keywords[-4:] == ["where", "weights", "reduction", "has_aux"]
    defaults = {name: parameters[name].default for name in keywords[-4:]}
    assert defaults == {"where": None, "weights": None, "reduction": "mean", "has_aux": False}
