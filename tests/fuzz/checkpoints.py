"""Damaged and foreign checkpoints: an error, or finite scores."""

import functools
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import load, save

import crad
from tests.fuzz.harness import (
    Problem,
    added,
    api,
    changed,
    command,
    crad_command,
    tree_of,
    within,
    world,
    wrong_end,
)
from tests.fuzz.search import Fuzzer

_FIXTURES = Path(__file__).parents[1] / "crad" / "checkpoints"

Source = Literal["version-1", "version-2", "version-3", "run"]
Act = Literal["load", "predict", "evaluate", "resume", "strip"]
Key = str | int


@dataclass(frozen=True)
class Bytes:
    """The file with some bytes replaced from a place on, given as a share of the file.

    Without new bytes, it ends there. ``in_header`` takes the share of the header alone.
    """

    at: float
    new: bytes
    in_header: bool = False


@dataclass(frozen=True)
class Setting:
    """A value in the metadata replaced; None takes the entry away."""

    path: tuple[Key, ...]
    new: str | None
    """JSON, as Python's module writes it."""


@dataclass(frozen=True)
class Tensor:
    """A tensor replaced: by other numbers, another shape or type, under another name, or gone."""

    number: int
    how: Literal["fill", "first", "shape", "empty", "type", "name", "gone", "scale"]
    value: float = math.nan


@dataclass(frozen=True)
class Foreign:
    """Another file by that name."""

    content: bytes


@dataclass(frozen=True)
class Case:
    """A damaged checkpoint, and what is done with it."""

    source: Source
    damage: Bytes | Setting | Tensor | Foreign
    act: Act


@functools.cache
def _original(source: Source) -> bytes:
    if source == "run":
        return (world().folder / "run" / "checkpoint.safetensors").read_bytes()
    return (_FIXTURES / f"{source}.safetensors").read_bytes()


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(header: dict[str, Any], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def _run(data: bytes) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(_header(data)[0]["__metadata__"]["run"])
    return run


def _paths(value: Any, above: tuple[Key, ...] = ()) -> Iterator[tuple[Key, ...]]:
    """All places in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*above, key)
        if isinstance(inner, dict | list):
            yield from _paths(inner, (*above, key))


def damaged(case: Case) -> bytes:
    """The content of the file."""
    data, damage = _original(case.source), case.damage
    if isinstance(damage, Foreign):
        return damage.content
    if isinstance(damage, Bytes):
        size = len(data) if not damage.in_header else len(data) - len(_header(data)[1])
        at = int(damage.at * (size - 1))
        return data[:at] + (damage.new + data[at + len(damage.new) :] if damage.new else b"")
    if isinstance(damage, Setting):
        header, rest = _header(data)
        metadata = header["__metadata__"]
        run = json.loads(metadata["run"])
        top: Any = {"run": run, **{key: metadata[key] for key in ("format", "version")}}
        *above, last = damage.path
        holder = top
        for key in above:
            holder = holder[key]
        if damage.new is None:
            del holder[last]
        else:
            holder[last] = json.loads(damage.new)
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in top.items()}
        return _with_header(header | {"__metadata__": texts}, rest)
    tensors, metadata = load(data), _header(data)[0]["__metadata__"]
    name = sorted(tensors)[damage.number % len(tensors)]
    tensors = _with_tensor(tensors, name, damage)
    return save(tensors, metadata)


def _with_tensor(tensors: dict[str, Any], name: str, damage: Tensor) -> dict[str, Any]:
    old = tensors.pop(name)
    with np.errstate(all="ignore"):
        if damage.how == "fill":
            tensors[name] = np.full_like(old.astype(np.float32), damage.value).astype(old.dtype)
        elif damage.how == "scale":
            tensors[name] = np.asarray(old * damage.value).astype(old.dtype)
        elif damage.how == "first":
            new = old.copy()
            new.reshape(-1)[:1] = np.float32(damage.value).astype(old.dtype)
            tensors[name] = new
    if damage.how == "shape":
        tensors[name] = np.stack([old, old])
    elif damage.how == "empty":
        tensors[name] = old[..., None][:0] if old.ndim else old.reshape(1)[:0]
    elif damage.how == "type":
        tensors[name] = old.astype(np.float16 if old.dtype == np.float32 else np.float64)
    elif damage.how == "name":
        tensors[f"{name}x"] = old
    return tensors


_VALUES = (
    *("null", "true", "0", "1", "2", "-1", "1e308", "NaN", "Infinity", "-Infinity", "1000000"),
    *("1000000000000", "9223372036854775808", "0.5", '""', '"x"', '"crad"', '"NaN"', '"\\u0000"'),
    *("[]", "[1]", "[1, 2]", "[1000000, 1000000]", "[NaN, NaN]", '["x"]', "[[1]]", "{}"),
    *('{"x": 1}', '{"brick": null}', '{"a\\nb": 3}', "3", "33", "[0, 0, 0]", "[1, 1, 1]", '"2"'),
    *('"3"', '"0"', '"grid"', '"vq"', '"none"', '"attention"', '"fp32"', '"bf16"', '"scattering"'),
    *('"resnet18"', '"../../x"'),
)
_CONTENTS = (
    *(
        b"",
        b"\0",
        b"\0" * 1000,
        b"{}",
        b"\xff" * 8,
        struct.pack("<Q", 2) + b"{}",
        b"PK\x03\x04" * 9,
    ),
    save({"weight": np.zeros((2, 2), np.float32)}),
    save({}, {"format": "pt"}),
    save({}, {"format": "crad"}),
    save({}, {"format": "crad", "version": "2"}),
    save({}, {"format": "crad", "version": "2", "run": "[]"}),
    save({}, {"format": "crad", "version": "2", "run": "{" * 100_000}),
    save({}, {"format": "crad", "version": "1", "run": "[" * 100_000}),
    save({}, {"format": "crad", "version": "9" * 5000, "run": "{}"}),
)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    source: Source = draw(st.sampled_from(("version-3", "version-2", "version-1", "run")))
    damage: st.SearchStrategy[Any]
    if (kind := draw(st.integers(0, 9))) < 2:
        damage = st.builds(
            Bytes,
            st.floats(0, 1),
            st.sampled_from((b"", b"\0", b"\xff", b"\x80", b"\0" * 64, b"\xff" * 8))
            | st.binary(max_size=4),
            st.booleans(),
        )
    elif kind < 7:
        top = {"run": _run(_original(source)), "format": "", "version": ""}
        places = list(_paths(top))
        damage = st.builds(Setting, st.sampled_from(places), st.sampled_from((None, *_VALUES)))
    elif kind < 9:
        damage = st.builds(
            Tensor,
            st.integers(0, 99),
            st.sampled_from(("fill", "first", "shape", "empty", "type", "name", "gone", "scale")),
            st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30, 1e38, -1e38, 1e-40)),
        )
    else:
        damage = st.builds(Foreign, st.sampled_from(_CONTENTS))
    acts: tuple[Act, ...] = ("load", "predict", "evaluate", "strip")
    act = draw(st.sampled_from((*acts, "resume", "resume") if source == "run" else acts))
    return Case(source, draw(damage), act)


def _load(file: Path) -> None:
    """Score two images, and print the scores."""
    detector = crad.load(file)
    images = [np.zeros((20, 20), np.uint8), Path("image.png")]
    print(json.dumps([each.score for each in detector.predict(images)]))


def check(case: Case) -> Iterator[Problem]:
    """Say what is wrong: what was changed, how it ended, and whether a score is not a number."""
    with world().copy() as root:
        file = root / "run" / "checkpoint.safetensors"
        file.write_bytes(damaged(case))
        before = tree_of(root)
        if case.act == "load":
            ended = api(lambda: _load(file), root)
        else:
            ended = crad_command(_arguments(case.act), root)
        after = tree_of(root)
        yield from wrong_end(ended)
        yield from changed(within(before, but=("run",) if case.act == "resume" else ()), after)
        if ended.stuck:
            return
        yield from added(before, after, root)
        if ended.code == 0 and case.act == "load":
            scores = json.loads(ended.out)
            if not all(math.isfinite(score) for score in scores):
                yield Problem("load and predict: a score is not finite", str(scores))
        for written in root.glob("out/*.json"):
            if numbers := [
                each
                for each in _numbers(json.loads(written.read_text()))
                if not math.isfinite(each)
            ]:
                yield Problem(f"{case.act}: a number in {written.name} is not finite", str(numbers))


def _arguments(act: Act) -> list[str]:
    output = {"--checkpoint": ("run",), "--output": ("out",)}
    if act == "predict":
        return command("predict", output, ["data/brick/test", "image.png"])
    if act == "evaluate":
        return command("evaluate", output | {"--data": ("data",)})
    if act == "strip":
        return ["checkpoint", "strip", "run", "stripped.safetensors"]
    resumed = {"--data": ("data",), "--output": ("run",), "--resume": ()}
    return command("train", resumed)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, float):
        yield value


_MODEL = ("run", "settings", "model")
_EXAMPLES = (
    Case("version-2", Setting((*_MODEL, "depth"), "null"), "load"),
    Case("version-2", Setting((*_MODEL, "depth"), "1000000000000"), "predict"),
    Case("version-2", Setting((*_MODEL, "image_size"), "null"), "load"),
    Case("version-2", Setting((*_MODEL, "image_size"), None), "load"),
    Case("version-2", Setting((*_MODEL, "backbone"), "null"), "load"),
    Case("version-2", Setting((*_MODEL, "components"), "null"), "load"),
    Case("version-2", Setting((*_MODEL, "global_memory"), "{}"), "evaluate"),
    Case("version-2", Setting((*_MODEL, "cosine_weight"), "null"), "evaluate"),
    Case("version-2", Setting(("run", "n_train"), "null"), "evaluate"),
    Case("version-2", Setting(("run", "thresholds", "brick", "score"), '"x"'), "load"),
    Case("version-2", Setting(("run", "thresholds", "brick", "n_images"), "-1"), "evaluate"),
    Case("version-2", Setting(("run", "thresholds", "brick", "score"), "null"), "evaluate"),
    Case("run", Bytes(1.0, b"\0"), "predict"),
    *(Case("version-2", Tensor(0, "fill", value), "predict") for value in (math.nan, 1e38)),
)

FUZZER = Fuzzer(_cases(), check, _EXAMPLES)
