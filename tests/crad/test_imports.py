"""The house: imports run downwards only, and no library module imports a command."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import crad
import crad_kernels
from crad.__main__ import COMMANDS

# From the ground up. Modules of one floor may import each other, without a circle.
FLOORS = (
    ("errors", "version", "words"),
    ("files", "devices", "launch", "memory", "tensor_files"),
    ("outputs", "png"),
    ("data",),
    ("model",),
    ("backbones",),
    ("scoring",),
    ("predictor",),
    ("edge",),
    ("shared_options",),
    ("config",),
    ("idle_options",),
    ("training",),
    ("report",),
    ("detector",),
    ("separate_detector",),
    ("loading", "mapping", "exporting"),
    ("serving", "watching", "integrations"),
    ("command_line",),
    ("train_options",),
    ("train_start",),
    ("train_thresholds", "train_resume", "train_separate", "train_products", "train_add"),
    (*(module.removeprefix("crad.") for module, _ in COMMANDS.values()), "edge.__main__"),
    ("__init__",),
    ("__main__",),
)


def modules(package: Path) -> dict[str, Path]:
    """Every module by its dotted name below the package; a package by its own name."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = file
    return found


def imported(file: Path, package: str, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name != package and not name.startswith(f"{package}."):
                continue
            below = name.removeprefix(package).removeprefix(".")
            while below and below not in known:
                below = below.rpartition(".")[0]
            found.add(below or "__init__")
    return found


MODULES = modules(Path(crad.__file__).parent)
GRAPH = {name: imported(file, "crad", MODULES) - {name} for name, file in MODULES.items()}


def floor(module: str) -> int:
    """The highest floor whose name a module has or lies below."""
    found = [
        number
        for number, names in enumerate(FLOORS)
        if any(module == name or module.startswith(f"{name}.") for name in names)
    ]
    assert found, f"crad.{module} is on no floor"
    return found[-1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    upwards = [name for name in GRAPH[module] if floor(name) > floor(module)]
    assert not upwards


def test_there_is_no_circle() -> None:
    TopologicalSorter(GRAPH).prepare()


def test_no_library_module_imports_a_command() -> None:
    commands = {name for name in MODULES if floor(name) >= floor("train")}
    for module in MODULES.keys() - commands:
        assert not GRAPH[module] & commands, module
    for command in commands - {"__init__", "__main__"}:
        assert GRAPH[command] & commands == set(), command


def test_crad_uses_public_names_of_the_kernels_and_they_know_nothing_of_it() -> None:
    for file in MODULES.values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crad_kernels"):
                assert node.module == "crad_kernels"
                assert {alias.name for alias in node.names} <= {*crad_kernels.__all__}
    kernels = modules(Path(crad_kernels.__file__).parent)
    for file in kernels.values():
        assert not imported(file, "crad", MODULES)
