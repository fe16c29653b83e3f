"""Writes jaxmetric/losses/__init__.pyi: `python -m tests.write_stub`.

A loss returns an array, and with `has_aux=True` a pair. The source says so by a union; the stub has an overload for
each, made of the same signature. `tests/test_typing.py` holds the two together.
"""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

LOSSES = Path(__file__).parents[1] / "jaxmetric" / "losses"
STUB = LOSSES / "__init__.pyi"
HEADER = "# Written by `python -m tests.write_stub` from the signatures in this folder.\n"


def stub() -> str:
    """Returns the text of the stub."""
    exports = _exports()
    functions = {name: _function(module, name) for name, module in exports.items() if name.endswith("_loss")}
    imports = {f"from {module} import {name} as {name}" for name, module in exports.items() if name not in functions}
    bodies = [_overloads(function) for function in functions.values()]
    for name in sorted(set(re.findall(r"(?<![\w.\"'])[A-Z]\w+", "\n".join(bodies)))):
        imports |= _import_of(name, exports)
    public = ast.unparse(ast.parse(f"__all__ = {sorted(exports)!r}"))
    imports |= {"import jax", "from typing import overload"}
    return _formatted("\n".join([HEADER, *sorted(imports), "", public, "", *bodies]))


def _exports() -> dict[str, str]:
    """Returns the module of each public name, in the order of their import."""
    tree = ast.parse((LOSSES / "__init__.py").read_text())
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def _module(name: str) -> ast.Module:
    return ast.parse((LOSSES.parents[1] / name.replace(".", "/")).with_suffix(".py").read_text())


def _function(module: str, name: str) -> ast.FunctionDef:
    return next(node for node in _module(module).body if isinstance(node, ast.FunctionDef) and node.name == name)


def _import_of(name: str, exports: dict[str, str]) -> set[str]:
    """Returns the import of a name that signatures use."""
    if name in exports or hasattr(builtins, name):
        return set()
    if name in ("Literal", "Annotated", "TypeAlias"):
        return {f"from typing import {name}"}
    for module in sorted(set(exports.values())):
        for node in _module(module).body:
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                return {f"from {node.module} import {name}"}
            target = node.target if isinstance(node, ast.AnnAssign) else node
            if name in (getattr(target, "id", None), getattr(target, "name", None)):
                return {f"from {module} import {name}"}
    raise NameError(name)


def _overloads(function: ast.FunctionDef) -> str:
    returns = ast.unparse(function.returns) if function.returns else ""
    stats = "LossStats" if returns == "LossResult" else returns.removeprefix("jax.Array | tuple[jax.Array, ").strip("]")
    function.args.kw_defaults = [default and _default(default) for default in function.args.kw_defaults]
    arguments = re.sub(r",? has_aux: bool=False$", "", ast.unparse(function.args))
    head = f"@overload\ndef {function.name}({arguments}, has_aux: "
    return "\n".join(
        f"{head}{flag}) -> {result}: ..."
        for flag, result in (
            ("Literal[False] = False", "jax.Array"),
            ("Literal[True]", f"tuple[jax.Array, {stats}]"),
            ("bool", f"jax.Array | tuple[jax.Array, {stats}]"),
        )
    )


def _default(value: ast.expr) -> ast.expr:
    """Returns a default that needs no import."""
    try:
        ast.literal_eval(value)
    except ValueError:
        return ast.Constant(...)
    return value


def _formatted(text: str) -> str:
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        command = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(STUB), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    STUB.write_text(stub())
