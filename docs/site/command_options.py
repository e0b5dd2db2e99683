"""A Sphinx extension that lists the options of a command as its ``--help`` says them.

``.. command-options:: serve`` makes an entry of each option of ``crad serve``; what follows the
name of the command is put before ``--help``, as defaults may depend on it.
"""

import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from crad.__main__ import COMMANDS

EDGE = "crad-edge"
"""The command of the distribution of that name, beside those of `crad`."""

_TITLE = re.compile(r"^(?:╭─ (.*?) ─*╮|(\w[\w ]*):)$")
_NAMES = {"positional arguments": "Arguments", "options": "Options"}


@dataclass
class Option:
    """An option or an argument.

    Attributes:
        names: its names and what it takes, such as ``--port INT``.
        words: what it is, with its default.
    """

    names: str
    words: str = ""


@dataclass
class Group:
    """Options that belong together; ``about`` says what they are for."""

    title: str
    about: str = ""
    options: list[Option] = field(default_factory=list)


def show_help(command: str, *arguments: str) -> str:
    """The text that ``crad COMMAND ARGUMENTS --help`` prints in 80 columns."""
    name = "crad.edge.__main__" if command == EDGE else COMMANDS[command][0]
    buffer = io.BytesIO()
    out = io.TextIOWrapper(buffer, encoding="utf-8")  # else it is laid out in ASCII
    with (
        mock.patch.dict("os.environ", COLUMNS="80"),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(name).main([*arguments, "--help"])
    out.flush()
    return buffer.getvalue().decode()


def read_help(text: str) -> list[Group]:
    """Read the groups of options, but for ``--help`` itself, from the text of ``--help``.

    Raises:
        ValueError: it has none, so it is laid out in another way than it was.
    """
    groups: list[Group] = []
    margin = 0
    for line in text.splitlines():
        if found := _TITLE.match(line):
            groups.append(Group(found[1] or found[2]))
            margin = 0 if found[1] else 2
            continue
        inside = line[2:-2].rstrip() if line.startswith("│") else line.rstrip()
        inside = inside[margin:] if inside[:margin].isspace() else inside
        if not groups or not inside or inside[0] in "╰─":
            continue
        group = groups[-1]
        begins = group.title == "positional arguments" or inside.startswith("-")
        if inside[0] != " " and begins:
            names, _, words = inside.partition("  ")
            group.options.append(Option(names, words.strip()))
        elif inside[0] != " ":
            group.about = f"{group.about} {inside}".strip()
        elif group.options:
            last = group.options[-1]
            last.words = f"{last.words} {inside.strip()}".strip()
    for group in groups:
        group.options = [each for each in group.options if not each.names.startswith("-h")]
    groups = [group for group in groups if group.options]
    if not groups:
        raise ValueError("--help: no options are found in its text")
    return groups


def _names_of(option: Option) -> str:
    """What a reader types; that an option may be left out, ``{None}|INT``, goes without saying."""
    names = option.names.replace("{None}|", "").replace("{None,", "{")
    names = re.sub(r"\{(\[.*\])\}", r"\1", names)
    return re.sub(r"\[+(\S+) (?:\[\S+ )?\[?\.\.\.\]+", r"\1 ...", names)


def _words_of(option: Option) -> str:
    """What an option is, as reStructuredText, and its default unless that is said or is nothing."""
    found = re.fullmatch(r"(.*?) ?(?:\((required|default: (.*))\))?", option.words)
    assert found  # the empty text does match
    words, note, default = found.groups()
    shown = re.sub(r"([\\`*|_])", r"\\\1", words)
    shown = re.sub(r"(?<![\w-])(--[a-z][\w.-]*\w)", r"``\1``", shown)
    shown = re.sub(r"(pip install '\S+')", r"``\1``", shown)  # with the quotes of a shell
    if note == "required":
        return f"{shown} **Required.**"
    if default in (None, "", "None", "False") or "Default: " in words:
        return shown
    return f"{shown} Default: ``{default}``."


def to_rst(command: str, groups: list[Group]) -> Iterator[str]:
    """The entries of a command as lines of reStructuredText."""
    yield f".. program:: {command if command == EDGE else f'crad {command}'}"
    for group in groups:
        title = _NAMES.get(group.title, group.title.capitalize())
        yield from ("", f".. rubric:: {title}")
        if group.about:
            yield from ("", group.about)
        for option in group.options:
            yield from ("", f".. option:: {_names_of(option)}", "", f"   {_words_of(option)}")


class _CommandOptions(SphinxDirective):
    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        command, *rest = self.arguments
        arguments = rest[0].split() if rest else []
        lines = [*to_rst(command, read_help(show_help(command, *arguments)))]
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, source=command), 0, parent)
        return parent.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directive."""
    app.add_directive("command-options", _CommandOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
