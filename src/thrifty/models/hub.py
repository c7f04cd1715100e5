"""Fetch a model from the Hugging Face hub: only configuration, vocabulary and safetensors, never code."""
from __future__ import annotations

import json
from pathlib import Path

from thrifty.core.errors import BrokenArtifact, NoSuchSetting
from thrifty.models.finding import REMINDER

_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
_POOLING = "1_Pooling/config.json"
_SECONDS = 5.0  # for a first answer; a download that runs may take as long as it likes


def fetch(repository: str, revision: str | None = None, *, offline: bool = False) -> tuple[Path, str]:
    """The local copy of a hub repository and its commit, downloaded unless a complete copy is already there.

    Raises: NoSuchSetting if the repository does not exist or the hub cannot be reached within a few seconds;
        BrokenArtifact if it has no safetensors.
    """
    cached = _cached(repository, revision)
    if cached is not None:
        return cached, cached.name
    if offline:
        raise NoSuchSetting(
            f"model {repository!r} is no folder here and no complete copy lies in the hub's local cache; "
            f"offline, it cannot be fetched. {REMINDER}")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        wanted = repository + (f"@{revision}" if revision else "")
        raise NoSuchSetting(f"model {wanted!r} is neither a folder here nor public on the hub. {REMINDER}") from error
    except Exception as error:  # every way in which a network can fail has its own type; the user's question is one
        raise NoSuchSetting(
            f"model {repository!r} is no folder here, and the hub cannot be reached ({type(error).__name__}: {_first(error)}). "
            f"{REMINDER}") from error
    files = [name for name in (file.rfilename for file in info.siblings or ()) if _wanted(name)]
    if not any(name.endswith(".safetensors") for name in files):
        raise BrokenArtifact(f"model {repository!r} has no *.safetensors; pickled weights can run code and are refused.")
    try:
        folder = Path(snapshot_download(repository, revision=info.sha, allow_patterns=files, etag_timeout=_SECONDS))
    except Exception as error:
        raise NoSuchSetting(
            f"model {repository!r} could not be fetched ({type(error).__name__}: {_first(error)}). {REMINDER}") from error
    return folder, folder.name


def _wanted(file: str) -> bool:
    if file == _POOLING:
        return True
    return "/" not in file and file.endswith(_SUFFIXES) and not file.startswith("consolidated")


def _cached(repository: str, revision: str | None) -> Path | None:
    """The cached snapshot, if its weights are all there: an earlier download may have fetched only a part."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # not cached, or a name the hub itself refuses: asking the hub says which
        return None
    index = folder / "model.safetensors.index.json"
    needed = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    return folder if all((folder / file).is_file() for file in {"config.json", *needed}) else None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
