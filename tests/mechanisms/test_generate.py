"""generate() with and without its key-value cache writes the same tokens, with edits of every port."""
from __future__ import annotations

import pytest
import torch

import thrifty
from thrifty.methods import CATALOGUE
from thrifty.testing import tiny
from thrifty.testing.measuring import put, stir

METHODS = {name: CATALOGUE[name].make() for name in ("lora", "ia3", "prefix", "pfeiffer", "prompt") if name in CATALOGUE}
ASK = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def _write(model: torch.nn.Module, cache: bool) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 17, 4]])
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=cache, **ASK)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_the_cache_changes_nothing(name: str, method: str) -> None:
    model, at = put(METHODS[method], tiny.make(name))
    base = _write(tiny.make(name).fresh(), cache=True)
    stir(at, size=0.5)
    written = _write(model, cache=True)
    assert torch.equal(written, _write(model, cache=False))
    with at.disabled():
        assert torch.equal(_write(model, cache=True), base)
    if method == "lora":
        assert not torch.equal(written, base)


def test_beam_search_of_an_encoder_decoder() -> None:
    model, at = put(thrifty.LoRA(rank=2, where="attn.?"), tiny.make("t5"))
    stir(at, size=0.5)
    ids = torch.tensor([[5, 9, 17, 4]])
    found = [model.generate(input_ids=ids, num_beams=3, use_cache=cache, **ASK) for cache in (True, False)]
    assert torch.equal(*found)
