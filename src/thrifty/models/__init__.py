"""Get a backbone: the built-in `minilm` or `vit-mini`, a folder, a Hugging Face hub id, a timm model, or any module of your own."""
from thrifty.models.backbone import Backbone, wrap
from thrifty.models.loading import load
from thrifty.models.quantising import dequantise, quantise
from thrifty.models.readers import Readers
from thrifty.models.two_tower import TwoTower
from thrifty.models.vision_language import VisionLanguage

__all__ = ["Backbone", "Readers", "TwoTower", "VisionLanguage", "dequantise", "load", "quantise", "wrap"]
