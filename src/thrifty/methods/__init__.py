"""Every method, one import line each. ``CATALOGUE`` lists them by name, ``find`` looks one up, ``make`` sets it up."""
from __future__ import annotations

from typing import Any

from ..core import Method
from ..core.errors import NoSuchSetting, nearest
from .adalora import AdaLoRA
from .adapter_drop import AdapterDrop
from .adapter_fusion import AdapterFusion
from .adaptformer import AdaptFormer
from .ape import APE, APET
from .attempt import Attempt
from .b_tuning import BTuning
from .bapna import Bapna
from .bi_tuning import BiTuning
from .bitfit import BitFit
from .block_drop import BlockDrop
from .bss import BSS
from .clip_adapter import CLIPAdapter
from .clip_lora import CLIPLoRA
from .co_tuning import CoTuning
from .cocoop import CoCoOp
from .compacter import Compacter, PHMAdapter
from .consolidator import Consolidator
from .conv_adapter import ConvAdapter
from .convpass import Convpass
from .coop import CoOp
from .defo import DeFo
from .delta import DELTA
from .dery import DeRy
from .diff_pruning import DiffPruning
from .distillation import Distillation
from .distillation_token import DistillationTokens
from .dora import DoRA
from .dynamic_rank_dora import DynamicRankDoRA
from .early_exit import EarlyExit
from .expres import EXPRES
from .fact import FacT
from .full import FullFineTuning
from .head2toe import Head2Toe
from .heads import Heads
from .houlsby import Houlsby
from .hub_pathway import HubPathway
from .hyperformer import HyperFormer
from .ia3 import IA3
from .ip_adapter import IPAdapter
from .ivlp import IVLP
from .k_adapter import KAdapter
from .kadaptation import KAdaptation
from .kgcoop import KgCoOp
from .knowledge_adapter import KnowledgeAdapter
from .l2_sp import L2SP
from .l2p import L2P
from .lhuc import LHUC
from .llama_adapter import LLaMAAdapter
from .llama_adapter_v2 import LLaMAAdapterV2
from .lora import LoRA
from .lora_fa import LoRAFA
from .low_rank_adapter import LowRankAdapter
from .lp_plus_plus import LPPlusPlus
from .lst import LST
from .lwf import LWF
from .mad_x import MADX, MADXLanguage
from .mam import MAM
from .maple import MaPLe
from .monolingual import MonolingualAdapters
from .noah import NOAH
from .norm import LayerNormTuning
from .p_tuning import PTuning
from .pals import PALs
from .parallel_adapter import ParallelAdapter
from .pfeiffer import Pfeiffer
from .pixel_prompt import PixelPrompt
from .prefix import PrefixTuning
from .probe import LinearProbe
from .prograd import ProGrad
from .prompt import PromptTuning
from .promptsrc import PromptSRC
from .rdi_net import RDINet
from .repadapter import RepAdapter
from .res_tuning import ResTuning
from .res_tuning_bypass import ResTuningBypass
from .spt import SPT, SPTAdapter
from .ssf import SSF
from .stoch_norm import StochNorm
from .subspace import Subspace
from .sus_x import SuSX
from .t_few import TFew
from .task_res import TaskRes
from .tinytl import TinyTL
from .tip_adapter import TipAdapter, TipAdapterF
from .u_tuning import UTuning
from .udapter import UDapter
from .unipelt import UniPELT
from .ur_net import URNet
from .vdp import VDP
from .vera import VeRA
from .vl_adapter import VLAdapter
from .vl_pet import VLPET
from .vln_petl import VLNPETL
from .vpt import VPT
from .vpt_pad import VPTPad
from .vqt import VQT
from .zoo_tuning import ZooTuning

__all__ = [  # one a line, so that two new methods do not meet
    "AdaLoRA",
    "AdapterDrop",
    "AdapterFusion",
    "AdaptFormer",
    "APE",
    "APET",
    "Attempt",
    "Bapna",
    "BitFit",
    "BiTuning",
    "BlockDrop",
    "BSS",
    "BTuning",
    "CLIPAdapter",
    "CLIPLoRA",
    "CoCoOp",
    "Compacter",
    "Consolidator",
    "ConvAdapter",
    "Convpass",
    "CoOp",
    "DeFo",
    "CoTuning",
    "DELTA",
    "DeRy",
    "DiffPruning",
    "Distillation",
    "DistillationTokens",
    "DoRA",
    "DynamicRankDoRA",
    "EarlyExit",
    "EXPRES",
    "FacT",
    "FullFineTuning",
    "Head2Toe",
    "Houlsby",
    "HubPathway",
    "HyperFormer",
    "IA3",
    "IPAdapter",
    "IVLP",
    "KAdaptation",
    "KAdapter",
    "KgCoOp",
    "KnowledgeAdapter",
    "L2P",
    "L2SP",
    "LayerNormTuning",
    "LHUC",
    "LinearProbe",
    "LLaMAAdapter",
    "LLaMAAdapterV2",
    "LoRA",
    "LoRAFA",
    "LowRankAdapter",
    "LPPlusPlus",
    "LST",
    "LWF",
    "MADX",
    "MADXLanguage",
    "MAM",
    "MaPLe",
    "MonolingualAdapters",
    "NOAH",
    "PALs",
    "ParallelAdapter",
    "Pfeiffer",
    "PHMAdapter",
    "PixelPrompt",
    "PrefixTuning",
    "ProGrad",
    "PromptSRC",
    "PromptTuning",
    "PTuning",
    "RDINet",
    "RepAdapter",
    "ResTuning",
    "ResTuningBypass",
    "SPT",
    "SPTAdapter",
    "SSF",
    "StochNorm",
    "Subspace",
    "SuSX",
    "TaskRes",
    "TFew",
    "TinyTL",
    "TipAdapter",
    "TipAdapterF",
    "UDapter",
    "UniPELT",
    "URNet",
    "UTuning",
    "VDP",
    "VeRA",
    "VLAdapter",
    "VLNPETL",
    "VLPET",
    "VPT",
    "VPTPad",
    "VQT",
    "ZooTuning",
]

CATALOGUE: dict[str, type[Method]] = {m.name: m for m in (globals()[name] for name in __all__)}


def names(method: type[Method]) -> tuple[str, ...]:
    """Everything that ``method`` is called: its name, its aliases, and the names of its presets."""
    return (method.name, *method.aliases, *method.presets)


def find(name: str) -> type[Method]:
    """The method called ``name``, or known under that alias or preset; ``make`` also applies the preset.

    Raises:
        NoSuchSetting: there is none; the message names the nearest.
    """
    wanted = name.strip().lower()
    for method in CATALOGUE.values():
        if wanted in names(method):
            return method
    if wanted in ("in-context", "icl", "in-context-learning"):
        raise NoSuchSetting(f"{name!r} trains nothing, so it is a command of its own: thrifty in-context (thrifty.in_context)")
    raise NoSuchSetting(f"unknown method {name!r}." + nearest(wanted, [n for m in CATALOGUE.values() for n in names(m)], 40))


def make(name: str, **settings: Any) -> Method:
    """The method called ``name`` with these settings: "rslora" is LoRA with ``stable=True``, and so on.

    Raises:
        NoSuchSetting: no such method or setting; the message names the nearest.
    """
    method = find(name)
    return method.make(**{**method.presets.get(name.strip().lower(), {}), **settings})
