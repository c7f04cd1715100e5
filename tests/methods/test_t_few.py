"""T-Few: its losses against reference arrays, their invariants, and a training on choices."""
from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, golden, published, tiny
from torch import Tensor

import thrifty
from thrifty import models, tasks
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import find
from thrifty.methods.t_few import losses

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

TABLE = {"text": ["ab c d", "e"], "choices": [["f", "g hi", "jk"], ["lmn", "o"]], "label": [1, 0]}


def measured(logits: Tensor, choices: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """-log p of the tokens that are not padding, which those are, and the choices' scores."""
    tokens = choices != 0
    nll = -logits.log_softmax(-1).gather(-1, choices[..., None])[..., 0] * tokens
    return nll, tokens, -nll.sum(-1) / tokens.sum(-1) ** power


def test_reference_arrays() -> None:
    g = golden("nlp_tfew_losses")
    choices, labels = g["in/choices"], g["in/labels"]
    logits = g["in/logits"].unflatten(0, choices.shape[:2]).requires_grad_()
    nll, tokens, beta = measured(logits, choices, g["hp/length_norm"])
    lm, ul, ln = losses(nll, tokens, beta, labels)
    close = lambda found, name: torch.testing.assert_close(found.item(), g[f"out/{name}"], atol=1e-10, rtol=0)  # noqa: E731
    close(lm, "full_lm_loss"), close(ln, "full_mc_loss"), close(ul, "full_unlikely_loss_clean")
    wrong = int(tokens.sum() - tokens[torch.arange(len(labels)), labels].sum())
    official = ul - math.log(1.01) * (tokens.numel() - wrong) / wrong  # the authors' code counts these in, too
    close(official, "full_unlikely_loss"), close(lm + official + ln, "full_total")
    assert torch.equal(beta.argmax(-1), g["out/prediction"])
    (lm + ul + ln).backward()
    torch.testing.assert_close(logits.grad.flatten(0, 1), g["grad/logits_of_total"], atol=1e-10, rtol=0)
    bare = losses(*measured(logits, choices, 0.0), labels)
    close(bare[0], "nolen_lm_loss"), close(bare[2], "nolen_mc_loss")


def made(lengths: list[list[int]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.arange(6) < torch.tensor(lengths)[..., None]
    nll = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 * tokens
    return nll, tokens, (-nll.sum(-1) / tokens.sum(-1).clamp(min=1)).masked_fill(~tokens.any(-1), -torch.inf)


def test_one_candidate_and_the_least_unlikelihood() -> None:
    nll, tokens, beta = made([[4], [2]])
    lm, ul, ln = losses(nll, tokens, beta, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(lm, nll.sum() / 6)  # over the tokens of the batch, not row by row
    assert float(ul) == 0 and float(ln) == 0
    nll, tokens, beta = made([[4, 3]])
    nll = torch.where(tokens, torch.tensor([0.5, 800.0])[None, :, None], 0.0).double()
    assert float(losses(nll, tokens, beta, torch.tensor([0]))[1]) == pytest.approx(-math.log(1.01))


def test_the_order_of_choices_does_not_matter_and_empty_ones_do_not_count() -> None:
    nll, tokens, beta = made([[4, 3, 2], [1, 5, 6]])
    labels, order = torch.tensor([2, 0]), torch.tensor([1, 2, 0])
    wanted = torch.stack(losses(nll, tokens, beta, labels))
    moved = torch.stack(losses(nll[:, order], tokens[:, order], beta[:, order], torch.tensor([1, 2])))
    torch.testing.assert_close(moved, wanted)
    padded = [F.pad(t, (0, 0, 0, 2)) for t in (nll, tokens)]
    torch.testing.assert_close(torch.stack(losses(*padded, F.pad(beta, (0, 2), value=-torch.inf), labels)), wanted)
    by_hand = []
    for row, label in enumerate(labels.tolist()):
        by_hand.append(-math.log(math.exp(beta[row, label]) / sum(math.exp(b) for b in beta[row])))
    assert float(wanted[2]) == pytest.approx(sum(by_hand) / 2)


def test_a_row_of_repeated_tokens_weighs_as_one() -> None:
    once, twice = made([[1, 2]])[0], torch.zeros(1, 2, 6, dtype=torch.float64)
    twice[..., :4] = once[..., :2].repeat_interleave(2, -1)
    lengths = torch.tensor([[1, 2]])
    for nll, times in ((once, 1), (twice, 2)):
        tokens = torch.arange(6) < times * lengths[..., None]
        beta = -nll.sum(-1) / tokens.sum(-1)
        assert float(losses(nll, tokens, beta, torch.tensor([1]))[2]) == pytest.approx(
            float(F.cross_entropy(-once.sum(-1) / lengths, torch.tensor([1]))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folders.t5(tmp_path_factory.mktemp("t5")))


def test_the_loss_of_a_batch_by_hand(folder: str) -> None:
    backbone = models.load(folder, "multiple-choice")
    task = tasks.get("multiple-choice", backbone)
    batch = task.collate(task.encode(TABLE))
    at = thrifty.attach(backbone.model, thrifty.TFew(unlikelihood=2.0, ranking=3.0))
    loss, items = at.method.loss(at, task, backbone.model, batch)
    log = backbone.model(**task.inputs(backbone.model, batch)).logits.log_softmax(-1)
    targets = batch["targets"].flatten(0, 1)
    p = log.gather(-1, targets.clamp(min=0)[..., None])[..., 0].unflatten(0, (2, 3)).exp()
    kept = (targets != -100).unflatten(0, (2, 3))
    right = [(0, 1), (1, 0)]
    lm = torch.cat([-p[i][kept[i]].log() for i in right]).mean()
    wrong = torch.cat([p[i][kept[i]] for i in [(0, 0), (0, 2), (1, 1)]])
    beta = [torch.stack([p[row, c][kept[row, c]].log().mean() for c in range(n)]) for row, n in ((0, 3), (1, 2))]
    ln = sum(F.cross_entropy(b[None], torch.tensor([c])) for b, (_, c) in zip(beta, right, strict=True)) / 2
    assert items == 2
    torch.testing.assert_close(loss, lm + 2 * -(1 - wrong + 0.01).log().mean() + 3 * ln)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in at.parameters())


def test_trains_by_name_on_choices(folder: str, tmp_path: Any) -> None:
    letters = [*"abcdefghijklmnop"]
    rows = [{"text": f"{a} {b}", "choices": [a, b, "q"], "label": (i + j) % 2}
            for i, a in enumerate(letters) for j, b in enumerate(letters) if a != b]
    data = {"train": rows[:160], "validation": rows[160:200], "test": rows[200:]}
    run = thrifty.tune(folder, data, "t-few", tmp_path / "run", epochs=3, batch=16, progress=False, task="multiple-choice")
    names = {b["name"] for b in run.metrics["baselines"]}
    assert names == {"majority", "untrained"} and run.metrics["parameters"]["head"] == 0
    history = [point["loss"] for point in run.metrics["seeds"][0]["history"]]
    assert history[-1] < history[0]
    model = models.load(folder, "multiple-choice").model
    at = thrifty.load(model, tmp_path / "run" / "adapter")
    assert isinstance(at.method, thrifty.TFew)
    at.merge()


def test_counts_and_names() -> None:
    assert count(thrifty.attach(published("t5-base"), thrifty.TFew())) == 129_024
    assert find("t-few") is thrifty.TFew and find("(ia)3") is thrifty.IA3


def test_refusals(tmp_path: Any) -> None:
    for method, setting in ((thrifty.TFew(unlikelihood=-1.0), "unlikelihood"), (thrifty.TFew(ranking=-1.0), "ranking")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("t5"), method)
    backbone = models.load(str(tiny_folders.bert(tmp_path)), "multiple-choice")
    task = tasks.get("multiple-choice", backbone)
    at = thrifty.attach(backbone.model, thrifty.TFew())
    with pytest.raises(Unfit, match="ia3"):
        at.method.loss(at, task, backbone.model, task.collate(task.encode(TABLE)))
