"""Extreme values of every option of every command, one or two at a time."""

import dataclasses
import importlib
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st
from tyro.conf import Positional

from crad.__main__ import COMMANDS
from tests.fuzz.harness import (
    TIME_LIMIT,
    TINY,
    Problem,
    Tree,
    added,
    changed,
    command,
    crad_command,
    tree_of,
    within,
    world,
    wrong_end,
)
from tests.fuzz.search import Fuzzer

Values = tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """A command that works, but for some of its options.

    Attributes:
        command: its name.
        changes: values by option; an empty name stands for the positional arguments.
    """

    command: str
    changes: tuple[tuple[str, Values], ...]


# Command lines that work, or come far: the positional arguments have an empty name.
_BASES: Mapping[str, tuple[Mapping[str, Values], ...]] = MappingProxyType(
    {
        "train": (
            {"--data": ("data",), "--output": ("out",), **TINY},
            {"--data": ("data",), "--output": ("run",), "--resume": (), **TINY},
            {"--data": ("data",), "--output": ("run",), "--overwrite": (), **TINY},
            {"--data": ("data",), "--output": ("out",), "--separate": (), **TINY},
        ),
        "evaluate": (
            {"--checkpoint": ("run",)},
            {"--checkpoint": ("run",), "--data": ("data",), "--output": ("out",)},
            {"--checkpoint": ("run",), "--output": ("run",), "--overwrite": ()},
        ),
        "predict": (
            {"": ("data/brick/test", "image.png"), "--checkpoint": ("run",)},
            {"": ("data",), "--checkpoint": ("run",), "--output": ("out",)},
        ),
        "checkpoint": ({"": ("strip", "run", "stripped.safetensors")},),
        "convert": ({"": ("run/checkpoint.safetensors", "out")},),
        "data": (
            {"": ("get", "mvtec", "down"), "--url": ("http://127.0.0.1:9/x",)},
            {"": ("get", "visa", "down"), "--archive": ("notes.txt",)},
        ),
    }
)

_NUMBERS = (
    *("0", "-1", "1", "2", "7", "0.5", "1.0", "1e-300", "1e9", "1e308", "nan", "inf", "-inf"),
    *("1000000", "2147483648", "9223372036854775807", "9223372036854775808", "1e400"),
    *("-0.0", "0x10", "1_000", "", " ", "٣", "1,5", "100000000000000000000000"),
)
_TEXTS = (
    *("", " ", "auto", "cpu", "cuda", "cuda:0", "cuda:99", "mps", "meta", "none", "demo", "brick"),
    *("brick gauge", "-1", "--", "--help", "\n", "a\nb", "ü", "\udcff", "%s", "{}", "../..", "x/y"),
    *("a" * 300, "b" * 5000, "tf_efficientnet_b4.aa_in1k", "resnet18", "hf-hub:x/y", "vq", "grid"),
    *("file:///dev/full", "http://127.0.0.1:9/", "ftp://127.0.0.1:9/", "http://[", "x:", "//"),
)
_PATHS = (
    *(".", "..", "", "data", "data/brick", "data/brick/train", "data/brick/test", "run", "user"),
    *("user/sheets", "user/results.json", "user/scores.csv", "user/000.png", "user/notes.txt"),
    *("user/checkpoint.safetensors", "run/checkpoint.safetensors", "run/results.json"),
    *("run/run.json", "run/sheets", "run/sheets/brick.png", "data/brick/train/good/000.png"),
    *("data/brick/test/good/000.png", "image.png", "link", "link.png", "broken", "loop", "fifo"),
    *("fifo.png", "empty", "empty_folder", "notes.txt", "notes.txt/x", "/dev/null", "/dev/full"),
    *("/dev/null/x", "new", "new/deep/er", "~", "~/x", "~nobody_here", "data/new.png", "-x"),
    *("data/brick/train/good", "data/brick/test/good", "run/new", "user/new", "x" * 250, "y" * 300),
    *("/proc/self/mem", "/proc/new", "\udcff", "a\nb", "../run/checkpoint.safetensors"),
)


_ENDLESS = ("serve", "watch")  # commands that wait for a signal


def _arguments(cls: Any) -> Iterator[tuple[str, Any]]:
    """The options of a dataclass, with their types; positional arguments have an empty name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        notes = getattr(kind, "__metadata__", ())
        plain = typing.get_args(kind)[0] if notes else kind
        if dataclasses.is_dataclass(plain):
            yield from _arguments(plain)
        elif _is_positional(notes):
            yield "", plain
        else:
            names = [note.name for note in notes if getattr(note, "name", None)]
            yield "--" + (names[0] if names else field.name.replace("_", "-")), plain


def _is_positional(notes: tuple[Any, ...]) -> bool:
    return any(mark in notes for mark in getattr(Positional[int], "__metadata__", ()))


def _options_of(name: str) -> dict[str, Any]:
    """The options of a command, with their types, from the last dataclass of its module."""
    module = importlib.import_module(COMMANDS[name][0])
    found = [
        each
        for each in vars(module).values()
        if dataclasses.is_dataclass(each)
        and each.__name__.endswith("Options")
        and (each.__module__ == module.__name__ or each.__name__ == f"{name.title()}Options")
    ]
    return dict(_arguments(found[-1])) if found else {}


@st.composite
def _cases(draw: st.DrawFn) -> Options:
    name = draw(st.sampled_from([each for each in COMMANDS if each not in _ENDLESS]))
    base = draw(st.sampled_from(_BASES.get(name, ({},))))
    options = _options_of(name)
    changes: dict[str, Values] = dict(base)
    for _ in range(draw(st.integers(1, 2))):
        option = draw(st.sampled_from([*options]))
        changes[option] = draw(_values(option, options[option], base.get(option, ())))
    kept = {key: value for key, value in changes.items() if value != ("(left out)",)}
    return Options(name, tuple(kept.items()))


def _values(option: str, kind: Any, usual: Values) -> st.SearchStrategy[Values]:
    """Values of an option, most of them of its type."""
    text = str(kind)
    of_kind: tuple[str, ...]
    if kind is bool:  # compiling takes a minute
        return st.sampled_from([("yes",)] if option == "--compile" else [(), ("yes",)])
    if "Literal" in text:
        of_kind = (*(str(word) for word in _words(kind)), *_TEXTS[:3])
    elif "Path" in text or option in ("--data", "--archive"):
        of_kind = _PATHS
    elif "int" in text or "float" in text:
        of_kind = _NUMBERS
    else:
        of_kind = _TEXTS
    value = st.sampled_from(of_kind) | st.sampled_from((*of_kind, *_NUMBERS, *_TEXTS, *_PATHS))
    if option == "":  # one of the positional arguments is another, is missing, or too many
        return st.one_of(
            *(
                st.builds(
                    lambda new, at=at: (*usual[:at], new, *usual[at + 1 :]),
                    st.sampled_from(_PATHS),
                )
                for at in range(len(usual))
            ),
            st.builds(lambda new: (*usual, new), st.sampled_from(_PATHS)),
            st.just(usual[:-1]),
        )
    if "tuple" in text:
        return st.lists(value, max_size=3).map(tuple)
    single = value.map(lambda each: (each,))
    return single | st.just(("(left out)",)) | st.lists(value, max_size=2).map(tuple)


def _words(kind: Any) -> Iterator[Any]:
    """The words of a `Literal`, which may lie in another type."""
    for each in typing.get_args(kind):
        if typing.get_args(each):
            yield from _words(each)
        elif isinstance(each, str):
            yield each


def check(case: Options) -> Iterator[Problem]:
    """Say what is wrong: what the command changed, and how it ended."""
    options = dict(case.changes)
    arguments = command(case.command, {k: v for k, v in options.items() if k}, options.get("", ()))
    with world().copy() as root:
        before = tree_of(root)
        large = case.command == "train" and _is_large(options)
        ended = crad_command(arguments, root, limit=2.0 if large else TIME_LIMIT)
        after = tree_of(root)
        yield from wrong_end(ended, may_be_slow=large)
        # A run is crad's own, but only these options give it up.
        gives_up = "--overwrite" in options or "--resume" in options
        yield from changed(within(before, but=("run",) if gives_up else ()), after)
        if not ended.stuck:
            yield from added({**before, **_asked_for(options, after)}, after, root)


def _asked_for(options: Mapping[str, Values], after: Tree) -> Tree:
    """The files that the command line names; they may lie where crad puts none by itself."""
    named = {os.path.normpath(value) for values in options.values() for value in values}
    return {path: entry for path, entry in after.items() if path in named and entry[0] == "file"}


def _is_large(options: Mapping[str, Values]) -> bool:
    """Whether a training that takes long is what was asked for."""
    if "--image-size" not in options or options.get("--data") in (None, ("demo",)):
        return True
    for value in (value for values in options.values() for value in values):
        try:
            if float(value) > 64:
                return True
        except ValueError:
            pass
    return False


def _example(name: str, number: int, changes: Mapping[str, Values]) -> Options:
    return Options(name, tuple({**_BASES[name][number], **changes}.items()))


_EXAMPLES = (
    _example("predict", 0, {"--csv": ("image.png",)}),
    _example("predict", 0, {"--json": ("run/results.json",)}),
    _example("predict", 0, {"--csv": ("loop",)}),
    _example("predict", 0, {"--output": ("loop",)}),
    _example("predict", 0, {"--checkpoint": ("~nobody_here",)}),
    _example("predict", 1, {"--output": ("data",)}),
    _example("predict", 1, {"--output": ("user",)}),
    _example("predict", 1, {"": ("fifo.png",)}),
    _example("evaluate", 1, {"--output": ("user",), "--overwrite": ()}),
    _example("evaluate", 1, {"--output": ("data",)}),
    _example("train", 0, {"--output": ("user",), "--overwrite": ()}),
    _example("train", 3, {"--output": ("user",), "--overwrite": ()}),
    _example("train", 0, {"--data": ("~nobody_here",)}),
    _example("train", 0, {"--learning-rate": ("1e9",)}),
    _example("train", 0, {"--local.jitter-std": ("1e308",)}),
    _example("train", 0, {"--expansion": ("9223372036854775807",)}),
    _example("train", 0, {"--image-size": ("1000000",)}),
    _example("train", 0, {"--local.resolution": ("9223372036854775807",)}),
    _example("train", 0, {"--backbone": ("resnet18",), "--weights": ("fifo",)}),
    _example("data", 1, {"--archive": ("fifo",)}),
    _example("checkpoint", 0, {"": ("strip", "run", "loop")}),
)

FUZZER = Fuzzer(_cases(), check, _EXAMPLES)
