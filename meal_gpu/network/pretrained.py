"""ImageNet's weights of a backbone: a file, found where timm keeps it or fetched; soon said where it cannot be.

Left to itself the download tries for a minute before it gives up, and asks the network even for what is there.
"""

import queue
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLError
from typing import Any

import timm
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from ..errors import InputError, first_line
from ..paths import may_write, user_cache

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Of a repository's weights, the better first."""
ANSWERS_S = 5.0
"""Within this time a host that can be reached has answered; its name is looked up in as much again."""


@dataclass(frozen=True)
class Source:
    """Where timm has a backbone's weights."""

    repository: str
    """On the Hugging Face Hub; empty where there is an address alone."""
    revision: str | None
    names: tuple[str, ...]
    url: str
    own: bool
    """timm reads them in a way of their own."""

    @classmethod
    def of(cls, backbone: str) -> "Source | None":
        """None where timm has no weights of it."""
        known = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
        if known is None:
            return None
        if known.hf_hub_id:
            repository, _, revision = known.hf_hub_id.partition("@")
            names = (known.hf_hub_filename,) if known.hf_hub_filename else NAMES
            url = f"{constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/{names[0]}"
            return cls(repository, revision or None, names, url, bool(known.custom_load))
        if not known.url:
            return None
        return cls("", None, (Path(known.url).name,), known.url, bool(known.custom_load))


def overlay(backbone: str) -> dict[str, Any] | None:
    """What timm is to be told of its weights: the file, or what a pickle holds. None leaves it to timm: it has none, or
    reads them in a way of their own. Raises as `fetch` does."""
    source = Source.of(backbone)
    if source is None:
        return None
    file = find(source) or fetch(source, backbone)
    if source.own:
        return None
    if file.suffix == ".safetensors":
        return {"file": str(file)}
    return {"state_dict": torch.load(file, map_location="cpu", weights_only=True)}


def find(source: Source) -> Path | None:
    """The file, where an earlier run or timm has kept it."""
    if not source.repository:
        file = _torch_folder() / source.names[0]
        return file if file.is_file() else None
    for folder in dict.fromkeys((constants.HF_HUB_CACHE, _hub_folder())):
        for name in source.names:
            kept = try_to_load_from_cache(source.repository, name, cache_dir=folder, revision=source.revision)
            if isinstance(kept, str):
                return Path(kept)
    return None


def fetch(source: Source, backbone: str) -> Path:
    """The file, downloaded. Raises `InputError`, within seconds where nothing can be reached."""
    trouble = unreachable(source.url)
    if trouble:
        raise InputError(missing(source, backbone, trouble))
    try:
        if not source.repository:
            file = _torch_folder() / source.names[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.url, str(file), progress=False)
            return file
        for name in source.names:
            try:
                return Path(hf_hub_download(source.repository, name, revision=source.revision,
                                            cache_dir=_hub_folder()))
            except EntryNotFoundError:
                if name == source.names[-1]:
                    raise
    except Exception as error:  # the clients of both hosts raise what their libraries raise
        raise InputError(missing(source, backbone, first_line(error))) from error
    raise AssertionError


def missing(source: Source, backbone: str, why: str) -> str:
    """What to do where the weights cannot be had."""
    return (f"model.weights is 'imagenet', and the weights of {backbone} are neither kept here nor can they be "
            f"downloaded: {why}. Fetch {source.url} on a machine that can, and name the file: --set model.weights=FILE "
            "(a .safetensors file; none starts from random weights).")


def unreachable(url: str) -> str | None:
    """Why a host does not answer; None where it does, whatever it says. Proxies of the environment are used."""
    if constants.HF_HUB_OFFLINE and url.startswith(constants.ENDPOINT):
        return "HF_HUB_OFFLINE is set"
    answer: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=lambda: answer.put(_asked(url)), daemon=True).start()  # looking up a name has no time limit
    try:
        return answer.get(timeout=2 * ANSWERS_S)
    except queue.Empty:
        return f"{_host(url)} is not found within {2 * ANSWERS_S:.0f} s"


def _asked(url: str) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWERS_S):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        if isinstance(error.reason, SSLError):  # the client that downloads may know other certificates
            return None
        why = first_line(error.reason) if isinstance(error.reason, Exception) else error.reason
        return f"{_host(url)} cannot be reached ({why})"
    except (OSError, ValueError) as error:
        return f"{_host(url)} cannot be reached ({first_line(error)})"


def _host(url: str) -> str:
    return url.split("/")[2]


def _hub_folder() -> str:
    """Where the Hub's files go: its own place, unless that would be below a home directory that is not there."""
    folder = Path(constants.HF_HUB_CACHE)
    return str(folder if folder.is_absolute() and may_write(folder) else user_cache() / "hub")


def _torch_folder() -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return folder if folder.is_absolute() and may_write(folder) else user_cache() / "checkpoints"
