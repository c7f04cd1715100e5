"""Every method of the catalogue keeps every promise on every backbone, or is refused there by name."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from thrifty.core import Method
from thrifty.core.errors import ThriftyError
from thrifty.methods import CATALOGUE
from thrifty.testing import PROMISES, contract, tiny

BACKBONES = ("bert", "llama", "t5", "vit", "encoder", "resnet")
COMPILED = {"bert", "vit"}  # where every method is compiled; LoRA is compiled on all of BACKBONES
TIMM = {"timm_vit", "timm_swin", "timm_resnet", "timm_convnext", "open_clip"}

# Settings that give a method a meaning on a backbone where its defaults have none, or the error that says there is none.
SETTINGS: dict[tuple[str, str], dict[str, object] | type[ThriftyError]] = {
    ("lora", "resnet"): {"where": "conv"},
}
CONVOLUTIONS = {"where": "conv"}
LORA = {"resnet": CONVOLUTIONS, "timm_resnet": CONVOLUTIONS, "convolver": CONVOLUTIONS, "convnext": {"where": "mlp.*"},
        "timm_convnext": {"where": "mlp.*"}, "mobilenet_v2": {"where": "head"}, "mixtral": {"where": "attn.?"},
        "qwen2_moe": {"where": "attn.?"}, "attender": {"where": "attn.?"}}
BRIEF = (contract.starts_as_promised, contract.acts, contract.sends_gradients, contract.keeps_the_keys, contract.merges,
         contract.disables, contract.takes_bfloat16)


def _pairs() -> Iterator[object]:
    for name in CATALOGUE:
        for backbone in BACKBONES:
            for promise in PROMISES:
                compiled = backbone in COMPILED or name == "lora"
                if promise is not contract.compiles or compiled:
                    yield pytest.param(name, backbone, promise, id=f"{name}-{backbone}-{promise.__name__}")


def _make(name: str, backbone: str) -> Method:
    settings = SETTINGS.get((name, backbone), {})
    assert isinstance(settings, dict)
    return CATALOGUE[name].make(**settings)


@pytest.mark.parametrize(("name", "backbone", "promise"), _pairs())
def test_method_keeps_its_promise(name: str, backbone: str, promise: contract.Promise) -> None:
    wanted = SETTINGS.get((name, backbone), {})
    if isinstance(wanted, type):
        with pytest.raises(wanted):
            contract.put(CATALOGUE[name].make(), tiny.make(backbone))
        return
    promise(_make(name, backbone), tiny.make(backbone))


def _others() -> list[object]:
    return [pytest.param(b, marks=[pytest.mark.timm] if b in TIMM else []) for b in tiny.NAMES if b not in BACKBONES]


@pytest.mark.parametrize("promise", BRIEF, ids=lambda p: p.__name__)
@pytest.mark.parametrize("backbone", _others())
def test_lora_on_every_family(backbone: str, promise: contract.Promise) -> None:
    promise(CATALOGUE["lora"].make(rank=2, **LORA.get(backbone, {"where": "attn.?|mlp.*"})), tiny.make(backbone))
