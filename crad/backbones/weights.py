"""Weights from the Hugging Face hub, with an answer in seconds when it cannot be reached."""

import threading
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

_FILES = ("model.safetensors", "pytorch_model.bin")
_PROBE_SECONDS = 10.0


def download_weights(repository: str, file: str | None = None) -> Path:
    """Find a weights file in the local hub cache, or download it there.

    Args:
        repository: hub repository, ``"owner/name"``.
        file: the file in it; None takes ``model.safetensors`` or else ``pytorch_model.bin``.

    Raises:
        OSError: the hub does not answer within 10 seconds, has no such file, or the download fails.
    """
    names = (file,) if file else _FILES
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        if _on_hub(repository, name):
            try:
                return Path(huggingface_hub.hf_hub_download(repository, name))
            except Exception as error:
                raise OSError(f"the download from {repository} failed: {error}") from error
    raise OSError(f"{repository} on the hub has no {' or '.join(names)}")


def _on_hub(repository: str, file: str) -> bool:
    """Ask the hub once. Its client retries for a minute, and a name lookup knows no timeout."""
    url = huggingface_hub.hf_hub_url(repository, file)
    answer: list[bool | Exception] = []

    def ask() -> None:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=_PROBE_SECONDS / 2)
            answer.append(True)
        except EntryNotFoundError:
            answer.append(False)
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if not answer:
        raise OSError(f"no answer from the hub within {_PROBE_SECONDS:.0f} s")
    if isinstance(answer[0], Exception):
        raise OSError(f"the hub cannot be reached: {answer[0]}") from answer[0]
    return answer[0]
