"""The ``crad`` command: the table of sub-commands, and what to type first."""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from crad import __version__

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "train": ("crad.train", "train a detector on normal images and measure it"),
        "evaluate": ("crad.evaluate", "measure a trained detector on a data set"),
        "predict": ("crad.predict", "score images, and decide which have a defect"),
        "serve": ("crad.serve", "score images that come over HTTP, and show them in a page"),
        "watch": ("crad.watch", "score the images that arrive in a folder, and sort them"),
        "calibrate": ("crad.calibrate", "set thresholds anew from new good images"),
        "export": ("crad.export", "write a file that other programs run"),
        "data": ("crad.data.__main__", "download a data set"),
        "checkpoint": ("crad.checkpoint", "remove from a checkpoint what only training needs"),
        "convert": ("crad.convert", "convert a checkpoint of the authors' implementation"),
    }
)
"""The module of each sub-command, and what it does. A module has ``main(arguments)``."""

_HELP = """usage: crad COMMAND [OPTIONS]

Find and locate defects, after training on normal images only.

{commands}

Start with:
  crad train                                          train and measure on the demo set
  crad train --data PATH                              train on your images
  crad predict --checkpoint runs/NAME --output OUT IMAGE_OR_FOLDER...

crad COMMAND --help lists the options of a command; crad --version prints the version.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sub-command that the command line names."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in COMMANDS:
        try:
            os.getcwd()
        except FileNotFoundError:  # PyTorch would end the process
            print("error: the current folder is gone; change to another one", file=sys.stderr)
            sys.exit(1)
        _import(COMMANDS[name][0]).main(rest)
    elif name == "--version":
        print(f"crad {__version__}")
    elif name in ("--help", "-h"):
        lines = [f"  {command:12}{does}" for command, (_, does) in COMMANDS.items()]
        print(_HELP.format(commands="\n".join(lines)), end="")
    else:
        print(
            f"error: unknown command '{name}'; choose one of {', '.join(COMMANDS)}", file=sys.stderr
        )
        sys.exit(2)


def _import(name: str) -> Any:
    """Import a module, which takes seconds; Ctrl-C meanwhile ends the process with one line."""

    def end(*_: object) -> None:  # an exception could be swallowed by what is being imported
        os.write(2, b"\ninterrupted\n")
        os._exit(130)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return importlib.import_module(name)
    signal.signal(signal.SIGINT, end)
    try:
        return importlib.import_module(name)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main()
