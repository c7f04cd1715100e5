"""A training on kept states takes the steps of one that computes them; where it would not, nothing is kept, and it is said why."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn

import thrifty
from thrifty import trunk
from thrifty.core.errors import BrokenArtifact, Unfit
from thrifty.core.hooks import main
from thrifty.methods import make
from thrifty.testing import tiny
from thrifty.trunk.cut import find
from thrifty.trunk.timeline import record

PROBE, TOP, DROP = {"name": "linear-probe"}, {"name": "lora", "where": "attn.q[1:]|attn.v[1:]"}, {"name": "adapter-drop", "skip": 1}
LST = {"name": "lst", "reduction": 2, "keep": [0, 1], "init": "magnitude"}
BYPASS = {"name": "res-tuning-bypass", "rank": 4}
EVERY = {**{(family, name): one for family in ("bert", "llama", "vit", "swin", "distilbert") for name, one in
            {"probe": PROBE, "top": TOP, "drop": DROP}.items()},
         **{(family, name): one for family in ("bert", "llama", "vit") for name, one in {"lst": LST, "bypass": BYPASS}.items()},
         ("resnet", "probe"): PROBE, ("resnet", "top"): {"name": "lora", "where": "conv[1:]"}, ("convnext", "probe"): PROBE,
         ("deberta_v2", "top"): TOP, ("mpnet", "bypass"): BYPASS, ("dinov2", "bypass"): BYPASS, ("gemma3", "drop"): DROP}


def method(settings: dict[str, Any]) -> Any:
    return make(**settings)


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_losses_and_gradients_are_those_of_a_model_that_computes(family: str, name: str) -> None:
    kept, worst = toy.compare(family, method(EVERY[family, name]))
    assert worst < 2e-5
    depths = [int(path.split("layer.")[1][0]) for path in kept["ran"] if ".layer." in path and family == "bert"]
    assert all(depth >= (2 if name in ("probe", "lst", "bypass") else 1) for depth in depths), "blocks below the cut do not run"
    if name == "probe" and family in ("bert", "vit", "resnet"):
        assert len(kept["ran"]) == 1, "only the head runs"


def test_padding_may_stand_on_the_left() -> None:
    assert toy.compare("llama", method(TOP), side="left")[1] < 2e-5
    with pytest.raises(Unfit, match="answers otherwise"):  # BERT reads its first place, where there is no text then
        toy.compare("bert", method(TOP), side="left")


@pytest.mark.parametrize(("precision", "most"), [("float16", 5e-3), ("int8", 0.1)])
def test_states_may_be_packed(precision: str, most: float) -> None:
    kept, worst = toy.compare("vit", method(TOP), precision=precision)
    exact, _ = toy.compare("vit", method(TOP))
    assert 1e-6 < worst < most and 0 < kept["lost"] < most and kept["bytes"] < 0.75 * exact["bytes"]


# -- how deep -----------------------------------------------------------------------------------------------------------------
def places(family: str, settings: dict[str, Any], alive: bool) -> tuple[int, list[str]]:
    task = toy.Toy(family in ("vit", "swin"))
    rows = task.rows(3, 1)
    at = toy.attach(toy.fresh(family), task, method(settings), rows)
    cut = find(at, record(at.model, task.collate(rows[:2]), 2), alive)
    return len(cut.below), [str(place) for place in cut.places]


def test_the_cut_lies_under_all_that_trains_and_acts() -> None:
    assert places("bert", TOP, True) == (1, ["what bert.encoder.layer.0 gives"])
    assert places("bert", {"name": "layernorm"} | {"where": "block[1:]"}, True)[0] == 1
    assert places("bert", PROBE, True) == (0, ["what enters dropout"])
    assert places("vit", PROBE, False) == (0, ["what enters classifier"])
    assert places("distilbert", PROBE, True) == (2, ["what enters pre_classifier"])  # its head has two layers


def test_what_taps_hear_is_kept_too() -> None:
    ends = ["what bert.encoder.layer.0 gives", "what bert.encoder.layer.1 gives"]
    assert places("bert", BYPASS, True) == (2, ends)
    assert places("bert", BYPASS, False) == (2, ["what enters bert.encoder.layer.0", *ends])
    found = places("bert", LST, False)
    assert found[0] == 2 and found[1][-2:] == ends and "what enters bert.encoder" in found[1]


@pytest.mark.parametrize(("settings", "why"), [
    ({"name": "lora"}, r"'low-rank' acts on the output of 'bert\.encoder\.layer\.0\.attention\.self\.query'"),
    ({"name": "bitfit"}, r"'bert\.embeddings\.LayerNorm\.bias' trains"),
    ({"name": "prompt"}, "'prompt' acts on the call of 'bert'"),
    ({"name": "adapter-drop", "robust": True}, "'draw-depth' acts on the call of the model"),
])
def test_where_there_is_no_cut_it_is_said_why(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(Unfit, match=why):
        places("bert", settings, True)


@pytest.mark.parametrize(("family", "why"), [("t5", r"'encoder\.block\.0' of T5\w+ gives 2 tensors"),
                                             ("convolver", "no blocks of Convolver are known")])
def test_models_without_a_known_stack_are_refused(family: str, why: str) -> None:
    backbone = tiny.make(family)
    example: Any = backbone.example if isinstance(backbone.example, dict) else {"x": backbone.example}
    with pytest.raises(Unfit, match=why):
        record(backbone.fresh(), example, 2)


def test_a_second_attachment_is_in_the_way() -> None:
    task = toy.Toy(False)
    rows = task.rows(3, 1)
    at = toy.attach(toy.fresh("bert"), task, method(TOP), rows)
    thrifty.attach(at.model, thrifty.LoRA(), "other", example=task.collate(rows))
    with pytest.raises(Unfit, match="another attachment"):
        find(at, record(at.model, task.collate(rows[:2]), 2), True)


# -- chance, and company ------------------------------------------------------------------------------------------------------
def setting(model: nn.Module, settings: dict[str, Any] = TOP, pictures: bool = False,
            kind: Any = toy.Toy) -> tuple[Any, Any, Any, Any]:
    task = kind(pictures)
    train, validation = trunk.number(task.rows(10, 1), task.rows(5, 2))
    return toy.attach(model, task, method(settings), train), task, train, validation


def test_dropout_below_the_cut_is_found_and_named() -> None:
    at, task, train, validation = setting(tiny.make("bert").fresh())
    kept = trunk.keep(at, task, train, validation, toy.terms("auto"))
    assert kept.record is not None and not kept.record["used"]
    assert "dropout acts in the frozen part (at 'bert.embeddings.dropout', with 0.1)" in kept.record["words"]


def test_dropout_above_the_cut_is_not_in_the_way_and_draws_the_same() -> None:
    model = toy.fresh("bert")
    for module in model.bert.encoder.layer[1].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.dropout.p = 0.5
    for settings, batch in ((TOP, 4), (PROBE, 4)):
        at, task, train, validation = setting(toy.copy_of(model) if settings is TOP else drop_head(), settings)
        torch.manual_seed(3)
        expected = toy.step(at, task, train[:batch], trunk.Direct())
        kept = trunk.keep(at, task, train, validation, toy.terms("auto"))
        assert kept.record is not None and kept.record["used"], kept.record
        torch.manual_seed(3)
        assert toy.apart(toy.step(at, task, train[:batch], kept), expected) < 2e-5


def drop_head() -> nn.Module:
    model = toy.fresh("bert")
    model.dropout.p = 0.5
    return model


def test_functional_dropout_is_found_too() -> None:
    model = toy.fresh("bert")
    first = model.bert.encoder.layer[0].intermediate
    own = first.forward
    first.forward = lambda x: nn.functional.dropout(own(x), 0.3, first.training)
    at, task, train, validation = setting(model)
    kept = trunk.keep(at, task, train, validation, toy.terms("auto"))
    assert kept.record is not None and "drawn by chance" in kept.record["words"]


def test_held_still_it_trains_as_if_there_were_no_dropout_below() -> None:
    at, task, train, validation = setting(tiny.make("bert").fresh())
    for part in (at.model.bert.encoder.layer[1], at.model.dropout):
        toy.still(part)
    below = toy.copy_of(at.model)
    toy.still(below)
    expected = toy.step(thrifty.core.ledger.attachments(below)["default"], task, train[:4], trunk.Direct())
    kept = trunk.keep(at, task, train, validation, toy.terms("still"))
    assert kept.record is not None and "bert.embeddings.dropout" in kept.record["still"]
    assert toy.apart(toy.step(at, task, train[:4], kept), expected) < 2e-5


def test_drawn_copies_take_turns_and_validation_is_never_drawn() -> None:
    at, task, train, validation = setting(tiny.make("bert").fresh())
    toy.still(at.model.bert.encoder.layer[1]), toy.still(at.model.dropout)
    kept = trunk.keep(at, task, train, validation, toy.terms(2))
    losses = [toy.step(at, task, train[:4], kept, turn)[0] for turn in range(4)]
    assert losses[0] == losses[2] != losses[1] == losses[3] and kept.record is not None and kept.record["copies"] == 2
    rows = validation[:3]
    at.model.eval()
    batch = kept.collate(task, rows)
    with torch.no_grad():
        direct = main(at.model(**batch))
        with kept.giving(rows, batch, 1):
            torch.testing.assert_close(main(at.model(**batch)), direct, rtol=1e-4, atol=1e-5)


def test_pictures_changed_by_chance_need_copies() -> None:
    model = toy.fresh("vit")
    at, task, train, validation = setting(model, PROBE, True, toy.Varied)
    kept = trunk.keep(at, task, train, validation, toy.terms("auto"))
    assert kept.record is not None and "pictures of training rows are changed by chance: cache=N" in kept.record["words"]
    with pytest.raises(Unfit, match="cache=N"):
        trunk.keep(at, task, train, validation, toy.terms("still"))
    expected = [toy.step(at, task, task.vary(train[:4], 0, copy), trunk.Direct()) for copy in range(3)]
    kept = trunk.keep(at, task, train, validation, toy.terms(3))
    for turn in range(3):
        assert toy.apart(toy.step(at, task, train[:4], kept, turn + 3), expected[turn]) < 2e-5


def test_copies_of_what_is_not_drawn_are_refused() -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    with pytest.raises(Unfit, match="all copies would be equal"):
        trunk.keep(at, task, train, validation, toy.terms(2))


def test_batch_statistics_below_the_cut_are_refused() -> None:
    model = toy.fresh("vit")
    mean = nn.BatchNorm1d(17, affine=False, track_running_stats=False)
    block = model.vit.layers[0] if hasattr(model.vit, "layers") else model.vit.encoder.layer[0]
    own = block.forward
    block.forward = lambda x, *a, **k: mean(own(x, *a, **k))
    at, task, train, validation = setting(model, pictures=True)
    with pytest.raises(Unfit, match="depends on the other rows of the batch"):
        trunk.keep(at, task, train, validation, toy.terms("still"))


def test_what_reads_past_the_blocks_is_refused_by_name() -> None:
    """A model that adds the patches to what its blocks gave: zeros instead of them would not be noticed otherwise."""
    model = toy.fresh("vit")
    held: dict[str, Tensor] = {}
    model.vit.embeddings.register_forward_hook(lambda m, a, y: held.update(y=y))
    model.vit.layernorm.register_forward_pre_hook(lambda m, a: (a[0] + held["y"],))
    at, task, train, validation = setting(model, pictures=True)
    with pytest.raises(Unfit, match="ViTForImageClassification answers otherwise"):
        trunk.keep(at, task, train, validation, toy.terms("still"))


def test_a_task_that_asks_about_more_than_its_rows_is_refused() -> None:
    class Asking(toy.Toy):
        def judge(self, model: nn.Module, batch: Any) -> list[Any]:
            return main(model(**{**batch, "input_ids": batch["input_ids"].flip(1)})).tolist()

    at, task, train, validation = setting(toy.fresh("bert"), kind=Asking)
    with pytest.raises(Unfit, match="asked about other inputs"):
        trunk.keep(at, task, train, validation, toy.terms("still"))


def test_a_loss_that_looks_at_the_pictures_is_refused() -> None:
    class Looking(toy.Toy):
        def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
            return toy.loss_of(model, batch) + batch["pixel_values"].mean(), 1

    at, task, train, validation = setting(toy.fresh("vit"), pictures=True, kind=Looking)
    with pytest.raises(Unfit, match="more of the pictures"):
        trunk.keep(at, task, train, validation, toy.terms("still"))


@pytest.mark.parametrize(("what", "why"), [("second_view", "linear-probe compares two views"), ("solved", "takes no steps")])
def test_methods_that_want_more_than_states_or_nothing_are_refused(monkeypatch: pytest.MonkeyPatch, what: str, why: str) -> None:
    at, task, train, validation = setting(toy.fresh("vit"), PROBE, True, toy.Varied)
    monkeypatch.setattr(type(at.method), what, True)
    with pytest.raises(Unfit, match=why):
        trunk.keep(at, task, train, validation, toy.terms(2))


def test_batches_that_are_made_by_chance_are_refused() -> None:
    class Hiding(toy.Toy):
        def collate(self, examples: Any) -> dict[str, Tensor]:
            batch = super().collate(examples)
            return {**batch, "input_ids": torch.where(torch.rand(batch["input_ids"].shape) < 0.3, 1, batch["input_ids"])}

    at, task, train, validation = setting(toy.fresh("bert"), kind=Hiding)
    with pytest.raises(Unfit, match="another batch every time"):
        trunk.keep(at, task, train, validation, toy.terms("still"))


def test_dropping_of_paths_is_found_however_rare() -> None:
    at, task, train, validation = setting(tiny.make("swin").fresh(), PROBE, True)
    for module in at.model.modules():
        if getattr(module, "drop_prob", 0):
            module.drop_prob = 1e-6
    kept = trunk.keep(at, task, train, validation, toy.terms("auto"))
    assert kept.record is not None and "drop_path', with 1e-06" in kept.record["words"]


def test_several_processes_are_refused() -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    with pytest.raises(Unfit, match="2 processes"):
        trunk.keep(at, task, train, validation, toy.terms("still", world=2))


# -- reuse, and damage --------------------------------------------------------------------------------------------------------
def test_methods_and_seeds_share_what_they_have_in_common(stores: Path) -> None:
    at, task, train, validation = setting(toy.fresh("bert"), BYPASS)
    first = trunk.keep(at, task, train, validation, toy.terms())
    files = sorted(path.name for path in stores.iterdir())
    assert first.record is not None and not first.record["reused"] and len(files) == 2
    other = toy.attach(toy.fresh("bert"), task, method(TOP), train, seed=5)
    second = trunk.keep(other, task, train, validation, toy.terms())
    assert second.record is not None and second.record["reused"] and sorted(path.name for path in stores.iterdir()) == files


@pytest.mark.parametrize("change", ["weights", "rows", "precision", "preparation", "dropout"])
def test_what_depends_on_something_else_is_made_anew(stores: Path, change: str) -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    trunk.keep(at, task, train, validation, toy.terms()).remove()
    model, more = toy.fresh("bert"), {}
    if change == "weights":
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[5, 3] += 1e-3
    if change == "rows":
        train = [*train[:-1], {**train[-1], "input_ids": [*train[-1]["input_ids"][:-1], 59]}]
    if change == "precision":
        more = {"precision": "int8"}
    if change == "preparation":
        more = {"prepared": {"size": 3}}
    if change == "dropout":
        model = tiny.make("bert").fresh()
    at = toy.attach(model, task, method(TOP), train)
    again = trunk.keep(at, task, train, validation, toy.terms("still" if change == "dropout" else "auto", **more))
    assert again.record is not None and again.record["reused"] == (change == "dropout"), "evaluation mode is one and the same"
    assert len(list(stores.iterdir())) == (1 if change == "dropout" else 2)


def test_weights_above_the_cut_do_not_matter(stores: Path) -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    trunk.keep(at, task, train, validation, toy.terms()).remove()
    model = toy.fresh("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias += 1
    again = trunk.keep(toy.attach(model, task, method(TOP), train), task, train, validation, toy.terms())
    assert again.record is not None and again.record["reused"]


def test_a_stale_store_is_refused(stores: Path) -> None:
    """Computed by a model with the same tensors that computes otherwise: no key can know that, but the model itself says so."""
    at, task, train, validation = setting(toy.fresh("bert"))
    trunk.keep(at, task, train, validation, toy.terms()).remove()
    model = toy.fresh("bert")
    model.bert.encoder.layer[0].output.LayerNorm.eps = 1.0
    at = toy.attach(model, task, method(TOP), train)
    with pytest.raises(BrokenArtifact, match="does not hold what the model gives"):
        trunk.keep(at, task, train, validation, toy.terms())


def test_a_damaged_store_is_refused_even_where_keeping_is_optional(stores: Path) -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    trunk.keep(at, task, train, validation, toy.terms()).remove()
    (path,) = stores.iterdir()
    data = bytearray(path.read_bytes())
    data[-40] ^= 4
    path.write_bytes(data)
    with pytest.raises(BrokenArtifact, match="delete it"):
        trunk.keep(at, task, train, validation, toy.terms())


def test_disk_use_is_shown_and_bounded_before_it_is_spent(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    at, task, train, validation = setting(toy.fresh("bert"))
    kept = trunk.keep(at, task, train, validation, toy.terms(say=said.append))
    size = sum(path.stat().st_size for path in stores.iterdir())
    assert said[0] == f"frozen part: 15 rows, {size / 1e6:,.1f} MB into {stores}" and kept.record is not None
    kept.remove()
    for path in stores.iterdir():
        path.unlink()
    monkeypatch.setattr("thrifty.trunk.store.free_bytes", lambda folder: size - 1)
    with pytest.raises(Unfit, match=f"take {size:,} bytes"):
        trunk.keep(at, task, train, validation, toy.terms("still"))
    kept = trunk.keep(at, task, train, validation, toy.terms("auto"))
    assert kept.record is not None and not kept.record["used"] and list(stores.iterdir()) == []


def test_what_fails_while_it_is_written_leaves_no_file(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    monkeypatch.setattr("thrifty.trunk.store.Writer.close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trunk.keep(at, task, train, validation, toy.terms())
    assert list(stores.iterdir()) == []


# -- while it trains ----------------------------------------------------------------------------------------------------------
def test_a_model_asked_about_other_rows_says_so() -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    kept = trunk.keep(at, task, train, validation, toy.terms())
    batch, other = task.collate(train[:4]), task.collate(train[4:8])
    with kept.giving(train[:4], batch), pytest.raises(Unfit, match="asked about other inputs"):
        at.model(**other)
    with contextlib.suppress(Unfit), kept.giving(train[:4], other):
        raise AssertionError("texts of other lengths are refused at once")
    at.model(**other)
    kept.remove()
    assert all("forward" not in module.__dict__ for module in at.model.modules())


def test_a_method_that_begins_to_train_below_is_stopped() -> None:
    at, task, train, validation = setting(toy.fresh("bert"))
    kept = trunk.keep(at, task, train, validation, toy.terms())
    row = next(key for key in at.edits)
    at.take_away(row)
    toy.step(at, task, train[:4], kept)
    at.train("bert.encoder.layer.0.output.dense.bias")
    at._changed()
    with pytest.raises(Unfit, match=r"has changed what it does to the frozen part.*layer\.0\.output\.dense\.bias' trains"):
        toy.step(at, task, train[:4], kept)


def test_the_first_of_two_stacks_is_cut() -> None:
    """Whisper's encoder stays, its decoder learns: what the encoder's last block gives is all that is needed of it."""
    backbone = tiny.make("whisper")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(where="model.decoder.*.q_proj"), example=backbone.example)
    timeline = record(model, backbone.example, 2)  # type: ignore[arg-type]
    assert timeline.blocks == ["model.encoder.layers.0", "model.encoder.layers.1"]
    assert [str(place) for place in find(at, timeline, False).places] == ["what model.encoder.layers.1 gives"]
