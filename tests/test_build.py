"""What setup.py builds, what it builds again, and what it says of what it cannot build."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from crad_kernels._backends import library

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_of_this_project", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that includes a header, which includes another, beside one that is not included."""
    folder = tmp_path / "csrc" / "cpu"
    folder.mkdir(parents=True)
    (tmp_path / "csrc" / "core").mkdir()
    (tmp_path / "csrc" / "third_party" / "torch").mkdir(parents=True)
    (tmp_path / "csrc" / "third_party" / "torch" / "tensor.h").write_text("")
    (folder / "sample.cpp").write_text('#include "plan.h"\n#include <torch/tensor.h>\n')
    (folder / "plan.h").write_text('#include "../core/axis.h"\n')
    (tmp_path / "csrc" / "core" / "axis.h").write_text("")
    (folder / "other.h").write_text("")
    (tmp_path / "build" / "objects").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return folder


def executable(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def change(path: Path) -> None:
    path.write_text(path.read_text() + "// changed\n")


@pytest.mark.parametrize(
    ("changed", "compiles"),
    [
        (lambda folder: None, False),
        (lambda folder: change(folder / "other.h"), False),
        (lambda folder: change(folder / "sample.cpp"), True),
        (lambda folder: change(folder / "plan.h"), True),
        (lambda folder: change(folder / "../core/axis.h"), True),
        (lambda folder: change(folder / "../third_party/torch/tensor.h"), True),
    ],
    ids=["nothing", "other", "source", "header", "header_of_header", "torch"],
)
def test_only_what_has_changed_is_compiled(
    setup: ModuleType, sources: Path, changed: Callable[[Path], None], compiles: bool
) -> None:
    compiler = executable(sources / "compiler", 'shift; shift; echo x >> log; echo object > "$2"')
    recipe = setup.Recipe([], [compiler], [], "version 1", "choose another")
    source = Path("csrc/cpu/sample.cpp")
    first = setup.compiled(source, recipe)
    changed(sources)
    second = setup.compiled(source, recipe)
    assert Path("log").read_text().count("x") == 1 + compiles
    assert (first == second) != compiles
    assert second.read_text() == "object\n"


def test_other_flags_and_another_compiler_compile_again(setup: ModuleType, sources: Path) -> None:
    recipes = [
        setup.Recipe([], ["c++", *flags], [], version, "choose another")
        for flags in ([], ["-O2"], ["-O2", "-g"])
        for version in ("version 1", "version 2")
    ]
    assert len({setup.digest(Path("csrc/cpu/sample.cpp"), recipe) for recipe in recipes}) == 6


def test_few_objects_are_kept(setup: ModuleType, sources: Path) -> None:
    compiler = executable(sources / "compiler", 'shift; shift; shift; echo object > "$2"')
    for number in range(9):
        recipe = setup.Recipe([], [compiler, f"-D{number}"], [], "", "choose another")
        newest = setup.compiled(Path("csrc/cpu/sample.cpp"), recipe)
    kept = list(setup.OBJECTS.iterdir())
    assert newest in kept
    assert len(kept) == setup.KEPT_OBJECTS


def test_what_does_not_compile_is_named_with_the_compilers_words(
    setup: ModuleType, sources: Path
) -> None:
    compiler = executable(
        sources / "compiler", "echo 'sample.cpp:3: error: no such thing'", "exit 1"
    )
    recipe = setup.Recipe([], [compiler], [], "", "choose another")
    says = r"csrc/cpu/sample.cpp .*error: no such thing; choose another$"
    with pytest.raises(setup.MissingError, match=says):
        setup.compiled(Path("csrc/cpu/sample.cpp"), recipe)
    assert list(setup.OBJECTS.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "flags"),
    [
        ("8.0", ["arch=compute_80,code=sm_80"]),
        (
            "8.0;9.0a+PTX",
            [
                "arch=compute_80,code=sm_80",
                "arch=compute_90a,code=sm_90a",
                "arch=compute_90a,code=compute_90a",
            ],
        ),
        (" 10.0, 12.0 ", ["arch=compute_100,code=sm_100", "arch=compute_120,code=sm_120"]),
    ],
)
def test_architectures_that_are_named(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, named: str, flags: list[str]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    assert setup.architectures() == [f"-gencode={flag}" for flag in flags]


def test_an_unknown_architecture_is_refused(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 Hopper")
    with pytest.raises(setup.MissingError, match=r"expected compute capabilities .* got 'Hopper'"):
        setup.architectures()


def test_architectures_of_the_gpus_that_are_here(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup.MissingError, match=r"no GPU .*`TORCH_CUDA_ARCH_LIST='8.0 9.0"):
        setup.architectures()
    executable(tmp_path / "nvidia-smi", "exit 9")
    with pytest.raises(setup.MissingError, match="no GPU"):
        setup.architectures()
    executable(tmp_path / "nvidia-smi", "echo 10.0", "echo 9.0", "echo 10.0")
    assert setup.architectures() == [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_without_a_compiler_the_note_says_which_to_install(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(setup.MissingError, match=r"no C\+\+ compiler; install g\+\+"):
        setup.cxx()
    monkeypatch.setenv("CXX", "g++-99")
    with pytest.raises(setup.MissingError, match=r"no g\+\+-99, which CXX names"):
        setup.cxx()


def test_the_note_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "path_of", lambda name: None)
    monkeypatch.setattr(library, "PACKAGE", tmp_path)
    (tmp_path / "_cpu.missing.txt").write_text("there is no compiler; install one\n")
    assert library.load("_cpu", "") == (
        "its library was not built: there is no compiler; install one"
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the build needs of the project."""
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("crad_kernels", "csrc", "crad"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.missing.txt"),
        )
    return tmp_path


def setup_py(folder: Path, *arguments: str, **environment: str) -> str:
    """Run setup.py without warnings of its own being errors; return what it printed."""
    environment = {**os.environ, "CRAD_KERNELS_WERROR": "", **environment}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_reference_backend_and_the_reason(copy: Path) -> None:
    compiler = executable(
        copy / "compiler", '[ "$1" = --version ] && exit', "echo 'error: out of paper'; exit 1"
    )
    stale = copy / "crad_kernels" / "_cpu.abi3.so"
    stale.write_text("made of other sources")
    printed = setup_py(copy, "build_ext", "--inplace", CXX=compiler, CRAD_KERNELS_BUILD="cpu")
    assert "out of paper" in printed
    assert not stale.exists()
    code = """
import warnings, torch, crad_kernels
reason = crad_kernels.backends()["cpu"].reason
assert "does not compile" in reason and "error: out of paper" in reason, reason
assert "CRAD_KERNELS_BUILD=cpu left it out" in crad_kernels.backends()["cuda"].reason
values, coords = torch.zeros(4, 3, 2), torch.zeros(5, 2)
crad_kernels.sample(values, coords, backend="reference")  # asked for, so not warned of
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        crad_kernels.sample(values, coords)
(warning,) = caught
assert str(warning.message) == f"sample() runs on the slow reference backend: {reason}"
assert warning.filename == "<string>", warning.filename
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=copy, check=True)


@pytest.mark.slow
def test_a_wheel_is_for_every_later_python(copy: Path) -> None:
    setup_py(copy, "bdist_wheel", CRAD_KERNELS_BUILD="")
    (wheel,) = (copy / "dist").iterdir()
    assert "-cp311-abi3-linux_" in wheel.name
    assert "crad_kernels/_cpu.missing.txt" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_a_source_distribution_holds_what_the_libraries_are_made_of(copy: Path) -> None:
    setup_py(copy, "sdist", CXX="none")
    (archive,) = (copy / "dist").iterdir()
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    tracked = {str(path.relative_to(copy)) for path in (copy / "csrc").rglob("*.*")}
    assert tracked - held == set()
    assert {"setup.py", "pyproject.toml", "crad_kernels/py.typed"} <= held
