"""`thrifty merge`: an adapter folded into its base model."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from thrifty.cli.parsing import Parser
from thrifty.core import Attachment, base
from thrifty.core.errors import ThriftyError
from thrifty.core.weight import is_quantised, read
from thrifty.models import dequantise
from thrifty.train.files import write_json
from thrifty.train.predict import open_adapter

EXAMPLES = (
    "thrifty merge runs/first --out merged/",
    "thrifty merge shared/adapter --model ./bert --out merged/ --limit 0.01",
    "thrifty merge runs/in-four-bits --onto full --out merged/",
)


def parser() -> Parser:
    """Its options."""
    made = Parser("merge", "Fold an adapter into its base model and save the whole. The rounding that this costs is measured "
                  "against the adapter's own effect, and printed.", EXAMPLES)
    made.add_argument("run", help="folder of a run, or of an adapter")
    made.add_argument("--out", required=True, help="a new folder for the merged model")
    made.add_argument("--model", help="the base model, if it is no longer where it was in training")
    made.add_argument("--limit", type=float, default=0.05, metavar="X",
                      help="refuse if rounding would lose more than this share of the adapter's effect (default: 0.05)")
    made.add_argument("--onto", choices=["trained", "full"], default="trained",
                      help="of an adapter trained on weights in four bits: into what they stand for, as in training (default), "
                           "or into the full weights; how far these lie apart is said")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Merge, save, and say what it cost."""
    for line in merge(args.run, Path(args.out), args.model, args.limit, args.onto):
        print(line)
    print(f"model in {args.out}")


def merge(run: str, out: Path, model: str | None = None, limit: float = 0.05, onto: str = "trained") -> list[str]:
    """Write the merged model of ``run`` into the new folder ``out``; returns what is to be said of it.

    Raises:
        ThriftyError: ``out`` exists, or the model cannot be saved.
        CannotMerge: the adapter is no change of weights, or rounding would lose more than ``limit``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ThriftyError(f"{out} exists and is not empty: choose a new folder for the merged model")
    opened = open_adapter(run, model)
    if opened.about.get("weights", "full") == "full":
        said = [str(opened.at.merge(limit, keep_base=False))]
    elif onto == "trained":
        said = [str(opened.at.merge(limit, "dequantise", keep_base=False)),
                "into the base as its four bits stand for it, which training saw, now in full precision"]
        dequantise(opened.backbone.model)
    else:
        trained, opened = opened, open_adapter(run, model, weights="full")
        said = [compare(trained.at, opened.at), str(opened.at.merge(limit, keep_base=False))]
    save(opened.backbone, out)
    return said


def compare(trained: Attachment, full: Attachment) -> str:
    """How far the weights in four bits that an adapter was trained on lie from the full ones."""
    apart, sizes = [], []
    for path in [path for path, module in base.modules(trained.model) if is_quantised(module)]:
        held, whole = (read(at.model.get_submodule(path), path).double() for at in (trained, full))
        apart.append(float((held - whole).norm()))
        sizes.append(float(whole.norm()))
    worst = max(a / s for a, s in zip(apart, sizes, strict=True))
    return (f"into the full base: the weights that training saw lie {sum(apart) / sum(sizes):.1%} of their size from it (worst "
            f"layer {worst:.1%}); the adapter learned beside those, so evaluate what came out")


def save(backbone: Any, out: Path) -> None:
    """Model and tokenizer or image processor in Hugging Face's layout."""
    out.mkdir(parents=True, exist_ok=True)
    model = backbone.model
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(out)
    elif hasattr(model, "config") and hasattr(model, "base_model_prefix"):
        _save_sentence_classifier(model, out)
    else:
        raise ThriftyError(f"{type(model).__name__} has no save_pretrained: merge in Python with at.merge() and save it your way")
    if hasattr(backbone.preprocess, "save_pretrained"):
        backbone.preprocess.save_pretrained(out)


def _save_sentence_classifier(model: Any, out: Path) -> None:
    """A sentence encoder with its head: weights by their names, and the file that tells how tokens are pooled."""
    from safetensors.torch import save_file

    model.config.save_pretrained(out)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, out / "model.safetensors", {"format": "pt"})
    (out / "1_Pooling").mkdir(exist_ok=True)
    write_json(out / "1_Pooling" / "config.json", {"word_embedding_dimension": model.config.hidden_size,
                                                  "pooling_mode_mean_tokens": True})
    write_json(out / "modules.json", json.loads(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}, '
        '{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]'))
