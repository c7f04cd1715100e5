"""Every method of the catalogue keeps every promise on every backbone, or is refused there by name."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from thrifty.core import attachments
from thrifty.core.errors import HalfAdapted, NoSuchSite, ThriftyError, Unfit
from thrifty.methods import CATALOGUE
from thrifty.testing import PROMISES, contract, tiny
from thrifty.testing.measuring import add

BACKBONES = ("bert", "llama", "t5", "vit", "encoder", "resnet")
TIMM = {"timm_vit", "timm_swin", "timm_resnet", "timm_convnext", "open_clip"}

# Settings that suit backbones of width 16 and 32 positions: a bottleneck of one ReLU may be dead from the start.
SETTINGS: dict[str, dict[str, object]] = {
    "houlsby": {"rank": 4}, "pfeiffer": {"rank": 4}, "parallel-adapter": {"rank": 4}, "prefix": {"length": 3, "hidden": 8},
    "prompt": {"length": 4}, "adapter-drop": {"skip": 1, "settings_of": {"rank": 4}},
    "mad-x-language": {"rank": 4}, "vera": {"rank": 8},
    "vpt": {"length": 3}, "vpt-pad": {"size": 32, "width": 3}, "expres": {"length": 3}, "l2p": {"size": 5, "length": 2, "top": 3},
    "noah": {"dims": [2, 4]},
    "compacter": {"rank": 8}, "phm-adapter": {"rank": 8, "n": 4}, "low-rank-adapter": {"rank": 8}, "bapna": {"rank": 4},
    "knowledge-adapter": {"rank": 4}, "mam": {"length": 3, "rank": 4, "hidden": 8},
    "k-adapter": {"width": 8, "heads": 2}, "res-tuning-bypass": {"rank": 3},
    "hyperformer": {"rank": 4, "embedding": 8, "hidden": 8}, "pals": {"width": 12}, "monolingual-adapters": {"rank": 4},
    "udapter": {"rank": 4, "size": 3, "features": {"one": [1.0, 0.0, 1.0, 1.0], "two": [0.0, 1.0, 1.0, 0.0]}},
    "lst": {"reduction": 2, "init": "magnitude"}, "diff-pruning": {"start": 1.0, "fix": 1.0},
    "p-tuning": {"template": [[0, 2], [1, 1]]}, "unipelt": {"length": 3, "hidden": 8, "reduction": 2},
    "attempt": {"sources": [torch.linspace(-1, 1, 64).view(4, 16), torch.linspace(1, 0, 64).view(4, 16).sin()], "hidden": 8},
    "pixel-prompt": {"width": 4}, "block-drop": {"policy": "resnet8", "warm_up": 0.0},
    "adaptformer": {"rank": 4}, "convpass": {"rank": 4}, "consolidator": {"g": [4]}, "conv-adapter": {"reduction": 2},
    "fact": {"rank": 4},
    "spt": {"budget": 700, "grid": 20, "rank": 2}, "spt-adapter": {"budget": 700, "grid": 20, "rank": 2},
    "kadaptation": {"n": 4}, "subspace": {"size": 20},
    "head2toe": {"fractions": [0.5], "steps": 5},
    "delta": {"attention": False}, "distillation": {"teacher": "elsewhere"}, "distillation-token": {"teacher": "elsewhere"},
    "llama-adapter": {"length": 3}, "llama-adapter-v2": {"length": 3}, "vl-adapter": {"reduction": 4},
    "vl-pet": {"rank": 4, "heads": 2, "gate_rank": 4, "value_rank": 4},
    "u-tuning": {"length": 3, "rank": 4}, "res-tuning": {"rank": 4, "mha": "prefix+adapter", "block": "prompt"},
}
ELSEWHERE: dict[tuple[str, str], dict[str, object]] = {
    **{(m, "resnet"): {"where": "conv"} for m in ("adalora", "dynamic-rank-dora", "lora-fa")},
    ("vera", "resnet"): {"where": "head"},
    **{("ssf", b): {"where": "attn.?|mlp.*", "shift": False} for b in ("llama", "t5")},  # no biases to merge shifts into
    ("ssf", "resnet"): {"where": "norm"}, **{("consolidator", b): {"bias": False} for b in ("llama", "t5")},
    ("lora", "resnet"): {"where": "conv"}, ("dora", "resnet"): {"where": "head"},
    **{("kadaptation", b): {"bias": "none"} for b in ("llama", "t5")},  # their layers have none
    ("monolingual-adapters", "t5"): {"languages": {"one": "de-en", "two": "en-de"}},
}

# Where a method has no meaning, and how that is said.
REFUSED: dict[tuple[str, str], type[ThriftyError]] = {
    **{("bitfit", b): Unfit for b in ("llama", "t5")},  # they have no biases
    ("linear-probe", "t5"): HalfAdapted,  # its head is its embedding
    ("linear-probe", "encoder"): NoSuchSite,  # it has no head
    **{(m, "resnet"): NoSuchSite for m in ("houlsby", "pfeiffer", "parallel-adapter", "prefix", "ia3", "adapter-drop",
                                           "mad-x-language")},  # nor attention
    **{("mad-x-language", b): NoSuchSite for b in ("vit", "encoder")},
    ("mad-x-language", "t5"): HalfAdapted,  # two stacks share one table
    **{("prompt", b): Unfit for b in ("vit", "encoder", "resnet")},  # no token embeddings
    ("rdi-net", "vit"): Unfit,  # its blocks are no convolutions
    **{(m, b): Unfit for m in ("pixel-prompt", "vdp", "early-exit", "block-drop", "rdi-net", "urnet")
       for b in ("bert", "llama", "t5", "encoder")},  # no pictures
    **{(m, b): Unfit for m in ("vpt", "vqt", "expres", "l2p", "noah") for b in BACKBONES if b != "vit"},  # no patches
    **{("vpt-pad", b): Unfit for b in BACKBONES if b != "resnet"},  # no pictures, or a place for each patch
    **{(m, "resnet"): NoSuchSite for m in ("compacter", "phm-adapter", "low-rank-adapter", "knowledge-adapter", "mam", "t-few")},
    **{(m, "resnet"): Unfit for m in ("bapna", "lhuc")},  # its blocks give out images
    **{(m, "resnet"): NoSuchSite for m in ("hyperformer", "udapter", "pals")},  # no attention
    ("monolingual-adapters", "resnet"): Unfit,  # its blocks give out pictures
    **{("head2toe", b): Unfit for b in ("bert", "llama", "t5", "encoder")},  # no pictures
    **{("tinytl", b): Unfit for b in ("bert", "llama", "t5", "vit", "encoder")},  # no blocks of convolutions
    ("pals", "t5"): Unfit,  # each head of its attention adds relative positions of its own
    **{(m, "resnet"): Unfit for m in ("res-tuning-bypass", "k-adapter", "lst")},  # blocks of many widths
    **{(m, "encoder"): Unfit for m in ("k-adapter", "lst")},  # blocks that are not called and built as those of transformers
    **{(m, b): Unfit for m in ("p-tuning", "attempt") for b in ("vit", "encoder", "resnet")},  # no token embeddings
    **{(m, "llama"): Unfit for m in ("attempt", "unipelt")},  # it writes on, and they look at the whole text
    **{(m, "resnet"): NoSuchSite for m in ("unipelt", "u-tuning", "res-tuning")},  # no attention
    **{(m, b): Unfit for m in ("adaptformer", "convpass", "repadapter") for b in BACKBONES if b != "vit"},  # no patches
    **{(m, "resnet"): NoSuchSite for m in ("fact", "consolidator")},  # no linear layers
    **{("conv-adapter", b): Unfit for b in BACKBONES if b != "resnet"},  # no maps
    **{(m, "resnet"): NoSuchSite for m in ("unipelt", "u-tuning", "res-tuning", "spt", "spt-adapter",
                                           "kadaptation", "subspace")},  # no attention
    **{(m, "encoder"): Unfit for m in ("spt", "spt-adapter")},  # its q, k and v are one parameter
    **{(m, b): Unfit for m in ("bss", "bi-tuning") for b in ("llama", "t5", "encoder")},  # no one vector per example
    **{("stochnorm", b): Unfit for b in BACKBONES if b != "resnet"},  # no batch norms
    **{("delta", b): Unfit for b in ("bert", "llama", "t5")},  # no feature maps
    **{("distillation-token", b): Unfit for b in BACKBONES if b != "vit"},  # no patches
    **{(m, "resnet"): NoSuchSite for m in ("llama-adapter", "llama-adapter-v2", "vl-adapter")},  # no attention
    ("vl-pet", "resnet"): Unfit,  # its blocks have no norm in front of each half
    **{("ip-adapter", b): Unfit for b in BACKBONES},  # they draw no pictures
    **{("vln-petl", b): Unfit for b in BACKBONES},  # they walk nowhere
}
CONVOLUTIONS = {"where": "conv"}
LORA = {"resnet": CONVOLUTIONS, "timm_resnet": CONVOLUTIONS, "convolver": CONVOLUTIONS, "convnext": {"where": "mlp.*"},
        "timm_convnext": {"where": "mlp.*"}, "mobilenet_v2": {"where": "head"}, "mixtral": {"where": "attn.?"},
        "qwen2_moe": {"where": "attn.?"}, "attender": {"where": "attn.?"}}
IN_PLACE = {"full", "bitfit", "layernorm", "linear-probe", "diff-pruning", "l2-sp"}
QUICK = (contract.starts_as_promised, contract.sends_gradients)
BRIEF = (contract.starts_as_promised, contract.sends_gradients, contract.merges, contract.disables)


def _home(name: str) -> str:
    """The backbone on which a method is asked everything, every time: the first that takes it."""
    return next((b for b in ("bert", "vit", *BACKBONES) if (name, b) not in REFUSED), "")


def _quick(name: str, backbone: str, promise: contract.Promise) -> bool:
    """Elsewhere only a few promises are asked every time, and the rest by `make test-slow`."""
    return name == "lora" or backbone == _home(name) or promise in QUICK


def _asked(name: str, backbone: str, promise: contract.Promise) -> bool:
    """LoRA keeps all promises everywhere; of the others, a brief list on the two larger or plainer backbones.

    torch.compile costs seconds: each method is compiled once, on the first backbone that takes it, if it has edits at all.
    """
    if promise is contract.routes_rows:
        return CATALOGUE[name].multitask
    if name == "lora":
        return promise is not contract.compiles or backbone in ("bert", "vit")
    if promise is contract.compiles:
        return name not in IN_PLACE and backbone == _home(name)
    return backbone not in ("t5", "encoder") or promise in BRIEF


def _pairs() -> Iterator[object]:
    for name in [name for name, method in CATALOGUE.items() if not method.needs or name in SETTINGS]:  # others have their own tests
        for backbone in BACKBONES:
            for promise in PROMISES:
                if (name, backbone) not in REFUSED and _asked(name, backbone, promise):
                    marks = [] if _quick(name, backbone, promise) else [pytest.mark.slow]
                    yield pytest.param(name, backbone, promise, id=f"{name}-{backbone}-{promise.__name__}", marks=marks)


@pytest.mark.parametrize(("name", "backbone", "promise"), _pairs())
def test_method_keeps_its_promise(name: str, backbone: str, promise: contract.Promise) -> None:
    settings = {**SETTINGS.get(name, {}), **ELSEWHERE.get((name, backbone), {})}
    promise(CATALOGUE[name].make(**settings), tiny.make(backbone))


@pytest.mark.parametrize(("name", "backbone"), [pytest.param(*pair, id="-".join(pair)) for pair in REFUSED])
def test_method_is_refused_by_name(name: str, backbone: str) -> None:
    tested = tiny.make(backbone)
    model = tested.fresh()
    with pytest.raises(REFUSED[name, backbone]):
        add(CATALOGUE[name].make(**SETTINGS.get(name, {})), tested, model)
    assert not attachments(model)
    assert all(p.requires_grad for p in model.parameters())
    assert list(model.state_dict()) == list(tested.model.state_dict())


def _others() -> list[object]:
    return [pytest.param(b, marks=[pytest.mark.timm] if b in TIMM else []) for b in tiny.NAMES if b not in BACKBONES]


@pytest.mark.parametrize("promise", BRIEF, ids=lambda p: p.__name__)
@pytest.mark.parametrize("backbone", _others())
def test_lora_on_every_family(backbone: str, promise: contract.Promise) -> None:
    promise(CATALOGUE["lora"].make(rank=2, **LORA.get(backbone, {"where": "attn.?|mlp.*"})), tiny.make(backbone))
