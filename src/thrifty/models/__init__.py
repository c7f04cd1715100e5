"""Get a backbone: the built-in `minilm` or `vit-mini`, a folder, a Hugging Face hub id, a timm model, or any module of your own."""
from thrifty.models.backbone import Backbone, wrap
from thrifty.models.loading import load

__all__ = ["Backbone", "load", "wrap"]
