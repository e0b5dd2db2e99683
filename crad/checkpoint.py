"""``crad checkpoint strip``: a checkpoint without what only training needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from crad.command_line import make_command
from crad.errors import OutputError
from crad.outputs import Output, check_outputs
from crad.training.checkpoint import (
    INFERENCE_PARTS,
    checkpoint_path,
    is_checkpoint,
    read_checkpoint,
)


@dataclass(frozen=True)
class CheckpointOptions:
    """What the command takes."""

    action: Positional[Literal["strip"]]
    """Leave out the state of the optimizer and of the random generators."""
    source: Positional[Annotated[Path, arg(metavar="IN")]]
    """A checkpoint, or the output folder of a training run."""
    output: Positional[Annotated[Path, arg(metavar="OUT")]]
    """The new file."""
    overwrite: bool = False
    """Replace OUT."""


def strip(options: CheckpointOptions) -> None:
    """Write a checkpoint again without what only training needs.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OutputError: the new file would replace another one.
        StorageError: the file cannot be written.
    """
    source, output = checkpoint_path(options.source), options.output
    check_outputs([Output("output", output, is_checkpoint)], [source])
    if output.exists() and not options.overwrite:
        raise OutputError(
            f"output: '{output}' exists already; --overwrite replaces it, or give another name"
        )
    read_checkpoint(source, INFERENCE_PARTS).write(output)
    before, after = source.stat().st_size, output.stat().st_size
    print(f"{before / 1e6:.1f} MB -> {after / 1e6:.1f} MB, written to {output}")


main = make_command(
    CheckpointOptions, strip, "checkpoint", "Write a checkpoint without what only training needs."
)

if __name__ == "__main__":
    main()
