"""Downloading the weights of a timm model from the Hugging Face hub."""

import re
import textwrap
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from crad.errors import BackboneError

_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_TIMEOUT = 10.0  # seconds


def download_weights(name: str, repository: str, file: str | None = None) -> Path:
    """Find the weights of a timm model in the local cache of the hub, or download them into it.

    The repository is empty if the model has none; without a file, the usual names are tried.
    """
    files = () if not repository else (file,) if file else _FILES
    reason = f"the hub has no {' or '.join(files) or 'files'} of this model"
    try:
        for each in files:
            cached = huggingface_hub.try_to_load_from_cache(repository, each)
            if isinstance(cached, str):
                return Path(cached)
        for each in files:
            url = huggingface_hub.hf_hub_url(repository, each)
            try:  # one request: a download retries for half a minute where there is no network
                huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_TIMEOUT)
            except EntryNotFoundError:
                continue
            return Path(huggingface_hub.hf_hub_download(repository, each))
    except Exception as error:  # the errors depend on the version of the client
        reason = summary(error)
    source = f" (https://huggingface.co/{repository})" if repository else ""
    raise BackboneError(
        f"weights: those of '{name}' are not on this machine and cannot be downloaded ({reason}); "
        f"give a copy{source} with --weights FILE, or take --backbone scattering, which needs none"
    )


def summary(error: Exception) -> str:
    """The beginning of an error in one line; errors of torch can have hundreds of lines."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}")
    return textwrap.shorten(text, 200, placeholder=" ...").rstrip(".")
