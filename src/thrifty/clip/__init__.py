"""Two towers as one classifier: a picture belongs to the class whose sentence lies nearest to it.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020 (CLIP);
X. Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv:2303.15343 (SigLIP).
"""
from .classifier import ImageTextModel
from .templates import HAND, LISTS, resolve
from .texts import Texts
from .towers import Towers, towers

__all__ = ["HAND", "LISTS", "ImageTextModel", "Texts", "Towers", "resolve", "towers"]
