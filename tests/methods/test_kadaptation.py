"""KAdaptation: reference arrays, published counts, and what its Kronecker sums promise."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, golden, run, shake, tiny
from torch import nn

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods import make
from thrifty.methods.kadaptation import KroneckerSum


def small(**more: Any) -> Any:
    return thrifty.KAdaptation(**{"n": 4, "dropout": 0.0, **more})


def pair(width: int, **more: Any) -> tuple[nn.Sequential, thrifty.Attachment]:
    """A query and a value projection, one after the other, of one layer."""
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    return model, thrifty.attach(model, small(**more), roles={"^0$": "attn.q", "^1$": "attn.v"}, example=torch.zeros(1, width))


def kronecker(at: thrifty.Attachment) -> list[KroneckerSum]:
    return [e for e in at.edits.values() if isinstance(e, KroneckerSum)]


def test_reference_arrays() -> None:
    g = golden("vision_kadaptation_adapter")
    model, at = pair(16, n=g["hp/phm_dim"], scale=g["hp/scale"])
    q, v = kronecker(at)
    slow = at.context.shared
    with torch.no_grad():
        slow.bias[0].copy_(g["w/bias"])
        for kind, (edit, name) in enumerate(((q, "q"), (v, "v"))):
            slow.a[kind].copy_(g[f"w/rule_{name}_left"])
            slow.b[kind].copy_(g[f"w/rule_{name}_right"])
            edit.u.copy_(g[f"w/{name}_left"])
            edit.v.copy_(g[f"w/{name}_right"])
    x, none = g["in/x"], torch.zeros_like(g["in/x"])
    torch.testing.assert_close(q(none, x), g["out/delta_q"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v(none, x), g["out/delta_v_intended"], rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # what the released code computes instead: the query's factors under the rule of the values
        v.u.copy_(q.u)
        v.v.copy_(q.v)
    torch.testing.assert_close(v(none, x), g["out/delta_v"], rtol=1e-4, atol=1e-4)


def test_against_kron() -> None:
    from thrifty.methods.compacter import kronecker as product

    A, B = torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[[0.0, 1], [1, 0]]])
    assert product(A, B).tolist() == [[0, 1, 0, 2], [1, 0, 2, 0], [0, 3, 0, 4], [3, 0, 4, 0]]
    model, at = pair(8, n=2, rank=2)
    shake(at)
    edit, x = kronecker(at)[1], torch.randn(5, 8)
    A, B = (at.context.shared.a[1] @ at.context.shared.b[1]).detach().numpy(), (edit.u @ edit.v).detach().numpy()
    H = sum(np.kron(A[i], B[i]) for i in range(2))
    wanted = 160 * x @ torch.from_numpy(H) + at.context.shared.bias[0]
    torch.testing.assert_close(edit(torch.zeros(5, 8), x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[1](x), F.linear(x, model[1].weight, model[1].bias) + wanted, rtol=1e-4, atol=1e-4)


def test_rank_is_bounded_by_the_ranks_of_the_factors() -> None:
    for rank, slow, n in ((1, 1, 2), (2, 1, 2), (1, 2, 4)):
        _, at = pair(16, n=n, rank=rank, slow=slow)
        shake(at)
        edit = kronecker(at)[0]
        found = int(torch.linalg.matrix_rank(edit.matrix().double(), rtol=1e-6))
        assert found == n * slow * rank, "of n products, whose ranks multiply"


def test_one_product_is_lora() -> None:
    _, at = pair(8, n=1, rank=3)
    edit, slow = kronecker(at)[0], at.context.shared
    shake(at)
    with torch.no_grad():
        slow.a[0].fill_(1.0)
        slow.b[0].fill_(1.0)
    torch.testing.assert_close(edit.delta(torch.empty(0)), 160 * (edit.u[0] @ edit.v[0]).T)


def test_the_start() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, small())
    assert torch.equal(run(model), run(tiny("vit")))
    run(model).square().sum().backward()
    for edit in kronecker(at):
        assert bool(edit.v.grad.any()) and not bool(edit.u.grad.any())
    slow = at.context.shared
    assert all(float(p.abs().max()) <= 0.01 and float(p.std()) > 0.004 for p in (*slow.a, *slow.b))
    assert all(not p.any() for p in slow.bias)


def test_all_layers_see_the_same_slow_weights() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, small())
    assert len(kronecker(at)) == 4 and len(at.context.shared.a) == 2 and len(at.context.shared.bias) == 2
    shake(at)
    one, two = (e for e in kronecker(at) if e.site.role == "attn.q")
    assert one.context.shared is two.context.shared is not None
    slow = at.context.shared
    before = [e.matrix().clone() for e in kronecker(at)]
    with torch.no_grad():
        slow.a[0].mul_(2)
    moved = [not torch.equal(e.matrix(), b) for e, b in zip(kronecker(at), before, strict=True)]
    assert moved == [e.site.role == "attn.q" for e in kronecker(at)]


def test_dropout_acts_on_the_matrix() -> None:
    model, at = pair(16, dropout=0.5, bias="none")
    shake(at)
    edit = kronecker(at)[0].train()
    torch.manual_seed(0)
    answer = edit(torch.zeros(16, 16), torch.eye(16))  # rows of s drop(H)
    kept = answer != 0
    assert 0.3 < float(kept.float().mean()) < 0.7
    torch.testing.assert_close(answer[kept], 2 * 160 * edit.matrix()[kept], rtol=1e-4, atol=1e-4)
    torch.manual_seed(1)
    two = edit(torch.zeros(2, 16, 16), torch.eye(16).expand(2, 16, 16))
    assert torch.equal(two[0], two[1]), "one mask for all rows of a batch"


def test_merged_is_unmerged() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, small())
    shake(at, 0.1)
    logits = run(model)
    at.merge()
    torch.testing.assert_close(run(model), logits, rtol=1e-4, atol=1e-4)
    bare = nn.Sequential(nn.Linear(8, 8, bias=False))
    at = thrifty.attach(bare, small(where="0"), example=torch.zeros(1, 8))
    shake(at)
    with pytest.raises(CannotMerge, match="train with bias='none'"):
        at.merge()


def test_published_counts() -> None:
    with torch.device("meta"):
        clip = hf.CLIPVisionModel(hf.CLIPVisionConfig(patch_size=32))
    assert count(thrifty.attach(clip, thrifty.KAdaptation())) == 12 * (4 * 768 + 768) + 2 * 2 * 32 * 32 == 50_176
    with torch.device("meta"):
        clip = hf.CLIPVisionModel(hf.CLIPVisionConfig(patch_size=32))
    at = thrifty.attach(clip, thrifty.KAdaptation(bias="own", slow=0, rank=2))
    assert count(at) == 12 * (2 * 4 * 768 + 2 * 768) + 2 * 32**3


def test_refusals() -> None:
    for settings, named in (({"n": 0}, "n"), ({"rank": 0}, "rank"), ({"slow": -1}, "slow"), ({"scale": 0.0}, "scale"),
                            ({"dropout": 1.0}, "dropout"), ({"bias": "shared"}, "bias")):
        with pytest.raises(NoSuchSetting, match=f"{named} must be"):
            thrifty.attach(tiny("vit"), make("kadaptation", **settings))
    with pytest.raises(NoSuchSetting, match=r"n = 32 does not divide the widths 16 and 16 of .*; 1, 2, 4, 8, 16 do"):
        thrifty.attach(tiny("vit"), thrifty.KAdaptation())
    with pytest.raises(Unfit, match="set bias='own'"):
        thrifty.attach(tiny("llama"), small())
    with pytest.raises(NoSuchSite):
        thrifty.attach(tiny("resnet"), small())
