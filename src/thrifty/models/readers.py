"""What stands before a model that takes pictures and texts."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.models.preprocessing import describe


@dataclass(frozen=True)
class Readers:
    """An image processor and a tokenizer, both of Hugging Face."""

    images: Any
    texts: Any

    def save_pretrained(self, folder: Path) -> None:
        """Both, into one folder."""
        self.images.save_pretrained(folder)
        self.texts.save_pretrained(folder)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by which pictures are prepared."""
        return describe(self.images) or {}
