"""What is seen at every viewpoint: features of its 36 views, computed before, in a safetensors or npz file."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.core.errors import BadData, nearest
from thrifty.navigation.angles import VIEWS

NAMES = ("features.safetensors", "features.npz")


class Features:
    """Features [36, width] under the name "SCAN_VIEWPOINT", each read when it is asked for. ``place`` says whose they are."""

    def __init__(self, held: Mapping[str, Any], place: str) -> None:
        self.held, self.place = held, place
        names = list(held)
        if not names:
            raise BadData(f"{place} holds no features")
        self.width = int(self._get(names[0]).shape[-1])

    def name(self, scan: str, viewpoint: str) -> str:
        """Under which the features of a viewpoint lie.

        Raises:
            BadData: there are none.
        """
        name = f"{scan}_{viewpoint}"
        if name not in self.held:
            raise BadData(f"{self.place} has no features of viewpoint {viewpoint!r} in scan {scan!r}."
                          + nearest(name, self.held, 3))
        return name

    def at(self, scan: str, viewpoint: str) -> Tensor:
        """float32 [36, width].

        Raises:
            BadData: there are none for this viewpoint, or of another number of views, another width, or not finite.
        """
        name = self.name(scan, viewpoint)
        found = self._get(name)
        if found.shape[-1] != self.width:
            raise BadData(f"{self.place}: {name!r} has features of width {found.shape[-1]}, others of {self.width}")
        if not bool(found.isfinite().all()):
            raise BadData(f"{self.place}: features of {name!r} are not finite")
        return found

    def _get(self, name: str) -> Tensor:
        try:
            found = torch.as_tensor(self.held[name]).float()
        except (ValueError, TypeError, OSError) as error:
            raise BadData(f"{self.place}: {name!r} holds no numbers: {error}") from None
        if found.dim() != 2 or len(found) != VIEWS:
            raise BadData(f"{self.place}: {name!r} has the shape {list(found.shape)}, but a panorama is {VIEWS} views, "
                          f"[{VIEWS}, width]")
        return found


class Tensors(Mapping[str, Any]):
    """The tensors of a safetensors file, mapped into memory."""

    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        self.file: Any = safe_open(file, framework="pt")
        list_names: Any = self.file.keys
        self.names: set[str] = set(list_names())

    def __getitem__(self, name: str) -> Any:
        return self.file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Any:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_features(file: Path) -> Features:
    """The features in a .safetensors or .npz file.

    Raises:
        BadData: it cannot be read, or is of another kind.
    """
    from zipfile import BadZipFile

    import numpy as np
    from safetensors import SafetensorError

    if file.suffix not in (".safetensors", ".npz"):
        raise BadData(f"{file}: features are read from .safetensors or .npz files")
    try:
        return Features(Tensors(file) if file.suffix == ".safetensors" else np.load(file, allow_pickle=False), str(file))
    except (OSError, EOFError, ValueError, BadZipFile, SafetensorError) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(f"{file} cannot be read: {error}") from None


def find_features(folder: Path) -> Path:
    """The file of features in a folder.

    Raises:
        BadData: there is none.
    """
    found = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if found is None:
        raise BadData(f"{folder} holds no {' or '.join(NAMES)}")
    return found
