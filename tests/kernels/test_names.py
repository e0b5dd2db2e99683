"""Names are of what they seem to be of: no package hides its modules, no text names what is not."""

import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import crad
import crad_kernels

ROOT = Path(__file__).parents[2]
# The change log also names what there was.
TEXTS = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"] + [
    path
    for folder, pattern in (
        ("docs", "*.md"),
        ("csrc", "*.*"),
        ("crad_kernels", "*.py"),
        ("crad", "*.py"),
    )
    for path in (ROOT / folder).rglob(pattern)
]
DOTTED = re.compile(r"(?<![\w./-])crad(?:_kernels)?(?:\.[a-zA-Z_]\w*)+")
# What is no Python: files, and the libraries, which need not have been built.
OTHERS = re.compile(r"\.(py|md|csv|safetensors|toml|so|_cpu|_cuda|_cuda_emulated)$")


def packages(package: ModuleType) -> list[ModuleType]:
    inner = [each for each in pkgutil.iter_modules(package.__path__) if each.ispkg]
    modules = [importlib.import_module(f"{package.__name__}.{each.name}") for each in inner]
    return [package, *(found for module in modules for found in packages(module))]


@pytest.mark.parametrize(
    "package", packages(crad_kernels) + packages(crad), ids=lambda package: package.__name__
)
def test_no_name_hides_a_module(package: ModuleType) -> None:
    modules = [each.name for each in pkgutil.iter_modules(package.__path__)]
    named = {name: getattr(package, name) for name in modules if hasattr(package, name)}
    assert [name for name, it in named.items() if not isinstance(it, ModuleType)] == []


def resolve(name: str) -> object:
    """What a dotted name stands for: an attribute of the innermost module in it."""
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], 2):
        inner = ".".join(parts[:end])
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(inner)
        found = getattr(found, part)
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what anomalib imports
def test_every_dotted_name_is_of_something() -> None:
    named: dict[str, Path] = {}
    for path in TEXTS:
        for name in DOTTED.findall(path.read_text()):
            if not OTHERS.search(name):
                named.setdefault(name, path)
    assert len(named) > 20
    lost = []
    for name, path in named.items():
        try:
            resolve(name)
        except (AttributeError, ImportError):
            lost.append(f"{name} in {path.relative_to(ROOT)}")
    assert lost == []
