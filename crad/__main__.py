"""The ``crad`` command: the table of sub-commands, and what to type first."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from crad import __version__

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "train": ("crad.train", "train a detector on normal images and measure it"),
        "evaluate": ("crad.evaluate", "measure a trained detector on a data set"),
        "predict": ("crad.predict", "score images, and decide which have a defect"),
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
        try:
            module = importlib.import_module(COMMANDS[name][0])
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)
        module.main(rest)
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


if __name__ == "__main__":
    main()
