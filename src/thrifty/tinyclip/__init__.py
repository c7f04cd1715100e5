"""TinyCLIP: K. Wu, H. Peng, Z. Zhou, B. Xiao, M. Liu, L. Yuan, H. Xuan, M. Valenzuela, X. Chen, X. Wang, H. Chao, H. Hu, "TinyCLIP:
CLIP Distillation via Affinity Mimicking and Weight Inheritance", ICCV 2023, arXiv:2309.12314.

A whole image-text model becomes a smaller one, stage by stage: the student begins with weights of the model before it, chosen by
hand (`inherit`) or by gates that learn what can be left out (`Masks`, `prune`), and learns the teacher's affinities between
pictures and texts. No adapter comes out but a model of its own.
"""
from thrifty.tinyclip.affinity import affinity_loss
from thrifty.tinyclip.inheriting import inherit
from thrifty.tinyclip.masks import Masks
from thrifty.tinyclip.pruning import prune
from thrifty.tinyclip.settings import Distilling
from thrifty.tinyclip.shapes import SHAPES, Shape, Tower, count
from thrifty.tinyclip.stages import compress

__all__ = ["SHAPES", "Distilling", "Masks", "Shape", "Tower", "affinity_loss", "compress", "count", "inherit", "prune"]
