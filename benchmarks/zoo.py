"""A zoo: the backbones with real weights that studies share, and copies of some that were cut at a depth.

A cut copy keeps the first blocks of a stack (of both stacks of an encoder and decoder), the embeddings and the last norm, as they
were saved; nothing is trained to make up for the blocks that are gone. So it is a weaker relative of a real model, made by a recipe
that anybody can repeat, and no model that somebody published.
"""
from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from study import WEIGHTS

CUTS = Path(os.environ.get("THRIFTY_CACHE") or Path.home() / ".cache" / "thrifty") / "cuts"
BLOCK = re.compile(r"\.(?:layers?|block)\.(\d+)\.")
DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers")
STAGES = ("stage_names", "out_features", "out_indices", "layer_types")  # what a configuration also says block by block
POINTWISE = "*expand_1x1.convolution|*reduce_1x1.convolution"


@dataclass(frozen=True)
class Backbone:
    """Real weights called ``weights``, cut after so many ``blocks`` if that is a number; LoRA goes ``where``."""

    weights: str
    blocks: int | None = None
    where: str = "attn.q|attn.v"

    @property
    def name(self) -> str:
        """minilm, minilm-2."""
        return self.weights if self.blocks is None else f"{self.weights}-{self.blocks}"

    def exists(self) -> bool:
        """Whether its weights lie on this machine."""
        from thrifty.core.errors import ThriftyError

        try:
            return (self.folder() / "config.json").is_file()
        except ThriftyError:
            return False

    def folder(self) -> Path:
        """Where the uncut model lies."""
        from thrifty.models.finding import BUILT_IN, find

        return find(self.weights).folder if self.weights in BUILT_IN else WEIGHTS / self.weights

    def place(self) -> str:
        """What `thrifty.tune` takes for it; a cut copy is made when it is first asked for."""
        if self.blocks is None:
            return str(self.folder())
        made = CUTS / self.name
        if not made.is_dir():
            cut(self.folder(), self.blocks, made)
        return str(made)


def cut(folder: Path, blocks: int, made: Path) -> None:
    """Write a copy of the model in ``folder`` with its first ``blocks`` blocks to ``made``."""
    from safetensors.torch import load_file, save_file

    partial = made.with_name(f".{made.name}.{os.getpid()}")
    shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json"))
    for file in sorted(folder.glob("*.safetensors")):
        kept = {name: tensor for name, tensor in load_file(file).items() if not (at := BLOCK.search(name)) or int(at[1]) < blocks}
        save_file(kept, partial / file.name, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    depths = {key: min(blocks, config[key]) for key in DEPTHS if key in config}
    config = {key: value for key, value in config.items() if key not in STAGES} | depths
    (partial / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    partial.rename(made)


TEXTS = (Backbone("minilm"), Backbone("minilm", 4), Backbone("minilm", 2), Backbone("flan-t5-small"), Backbone("flan-t5-small", 4),
         Backbone("stories15m"), Backbone("stories15m", 3), Backbone("smollm2-135m"), Backbone("smollm2-135m", 10))
PICTURES = (Backbone("resnet50", where="conv"), Backbone("mobilenetv2", where=POINTWISE), Backbone("dinov2-small"),
            Backbone("dinov2-small", 8), Backbone("dinov2-small", 4), Backbone("vit-mini"))
