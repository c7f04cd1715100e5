"""What decides the projections, in one place: it is written beside the result."""
from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

LEARNED = ("caltech101", "cifar100", "tinyimagenet100")         # their training splits, without the names that are held out
UNSEEN = ("dtd10", "rsscn7", "pacs", "flowers5")                # whole sets that nothing is learned from
NAMES = "imagenet_1per"                                         # its class names teach, its pictures are only asked
PAIRS = "flickr8k_1k"
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a bad photo of a {}.", "a close-up photo of a {}.", "a photo of my {}.",
             "a photo of one {}.", "itap of a {}.", "a picture of a {}.")
ASKED = TEMPLATES[0]                                            # the sentence that zero-shot is measured with


@dataclass(frozen=True)
class Recipe:
    """Locked towers, and linear projections between them (X. Zhai et al., CVPR 2022, arXiv:2111.07991).

    Each step sees ``pairs`` photographs with one of their captions and ``named`` pictures with their class in a sentence. ``names``
    weighs what MobileNetV2's own classifier says of the pictures, as soft targets over the names of ImageNet's classes. One in
    ``held`` names is held out, by a hash of the name, so the same name in all sets.
    """

    seed: int = 0
    image: str = "mobilenetv2"
    width: int = 256
    steps: int = 3000
    pairs: int = 128
    named: int = 256
    names: float = 1.0
    rate: float = 1e-3
    decay: float = 0.1
    warmup: float = 0.05
    held: int = 5
    limit: int | None = None    # pictures of each split, for a trial

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def holds(self, name: str) -> bool:
        """Whether a class of this name is held out."""
        return int(hashlib.sha256(name.lower().encode()).hexdigest(), 16) % self.held == 0
