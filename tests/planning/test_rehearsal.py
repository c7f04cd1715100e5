"""What is predicted without numbers is what the run then holds, measured by other means than those of the prediction."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from torch.profiler import ProfilerActivity, profile

from thrifty.methods.memory.activation_memory import measure
from thrifty.models import wrap
from thrifty.planning.forecasting import foresee, invent_scene
from thrifty.planning.rehearsal import size
from thrifty.train.budget import Budget
from thrifty.train.choosing import choose_method, resolve
from thrifty.train.precision import choose
from thrifty.train.processes import Processes
from thrifty.train.settings import Settings
from thrifty.train.training import Training

CPU = Processes(torch.device("cpu"))


def bert() -> tuple[Any, str]:
    config = T.BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
                          max_position_embeddings=64, num_labels=2)
    return T.BertForSequenceClassification(config), "text-classification"


def llama() -> tuple[Any, str]:
    config = T.LlamaConfig(vocab_size=200, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                           intermediate_size=128, max_position_embeddings=64)
    return T.LlamaForCausalLM(config), "causal-generation"


def vit() -> tuple[Any, str]:
    config = T.ViTConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=32,
                         patch_size=4, num_labels=2)
    return T.ViTForImageClassification(config), "image-classification"


def t5() -> tuple[Any, str]:
    config = T.T5Config(vocab_size=200, d_model=64, num_layers=2, num_heads=4, d_kv=16, d_ff=128, decoder_start_token_id=0)
    return T.T5ForConditionalGeneration(config), "seq2seq-generation"


def scene_of(make: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    model, task = make()
    new = [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    length = None if task == "image-classification" else 64
    told = Settings(**{"batch": 8, "task": task, "max_length": length, **settings})
    return invent_scene(wrap(model.eval(), new=new), told, CPU, choose("float32", CPU.device), rows=100)


def start(scene: Any, method: Any) -> tuple[Any, Training]:
    job = scene.job(scene.backbone, method, resolve(scene.settings, method, scene.form, 100, 1, scene.precision.name))
    at = job.prepare(0)
    assert job.material is not None
    return job, Training(at, at.model, job.task, job.material, job.settings, 0, CPU, scene.precision)


def allocated(run: Any) -> int:
    """The most that torch's allocator gave out during ``run``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    assert watched.profiler is not None
    now = most = 0
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(("make", "method"), [
    (bert, "lora"), (bert, "full"), (bert, "prefix"), (bert, "linear-probe"), (llama, {"name": "lora", "where": "attn.?|mlp.*"}),
    (llama, "ia3"), (vit, "vpt"), (vit, "houlsby"), (t5, "compacter"),
    (bert, "dora"), (bert, "bi-tuning"), (bert, "lst"),
], ids=lambda value: getattr(value, "__name__", str(value)))
def test_memory_is_that_of_the_run(make: Any, method: Any) -> None:
    scene, chosen = scene_of(make), choose_method(method)
    said = foresee(scene, chosen, None, Budget()).memory
    job, training = start(scene, chosen)
    at, batch = training.at, job.task.collate(scene.usual)
    assert said.weights == size((*at.model.parameters(), *at.model.buffers()))
    assert said.kept >= size(at.base.values())
    at.model.train()
    assert measure(at.model, lambda: chosen.loss(at, job.task, at.model, batch)) == pytest.approx(said.activations, rel=0.02)
    training.try_step()
    assert said.gradients == sum(p.grad.nbytes for p in at.parameters() if p.grad is not None)
    states = [value for held in training.optimizer.state.values() for value in held.values()]
    assert said.optimizer == size(states)
    training.optimizer.zero_grad(set_to_none=True)
    between = size((*at.model.parameters(), *at.model.buffers(), *at.base.values(), *states))
    assert between + allocated(training.try_step) == pytest.approx(said.step, rel=0.1)


def test_a_model_with_numbers_is_as_it_was_and_its_copy_has_none() -> None:
    scene = scene_of(bert)
    before = {name: (t.clone(), t.requires_grad) for name, t in scene.backbone.model.named_parameters()}
    foresee(scene, choose_method("full"), None, Budget())
    for name, t in scene.backbone.model.named_parameters():
        assert torch.equal(t, before[name][0]) and t.requires_grad == before[name][1] and not hasattr(t, "fake_mode")


def test_accumulated_batches_hold_gradients_beside_activations() -> None:
    chosen = choose_method("full")
    once, twice, often = (foresee(scene_of(bert, batch=4, accumulate=n), chosen, None, Budget()).memory for n in (1, 2, 5))
    assert once.activations == twice.activations and once.step < twice.step == often.step <= once.step + once.gradients


@pytest.mark.parametrize(("method", "more"), [("full", {"checkpointing": True}), ("lora", {"activations": "less"}),
                                              ("lora", {"activations": "least"})])
def test_fewer_activations_are_kept_where_that_is_asked_for(method: str, more: dict[str, Any]) -> None:
    chosen = choose_method(method)
    plain, spared = (foresee(scene_of(llama, batch=32, **told), chosen, None, Budget()).memory for told in ({}, more))
    assert spared.step < plain.step and spared.activations < plain.activations
    scene = scene_of(llama, batch=32, **more)
    _, training = start(scene, chosen)
    training.try_step()
    training.optimizer.zero_grad(set_to_none=True)
    states = [value for held in training.optimizer.state.values() for value in held.values()]
    between = size((*training.at.model.parameters(), *training.at.model.buffers(), *training.at.base.values(), *states))
    assert between + allocated(training.try_step) == pytest.approx(spared.step, rel=0.1)


def test_a_linear_probe_adds_no_work_and_an_adapter_the_work_of_its_two_products() -> None:
    scene, rank = scene_of(bert), 4
    assert foresee(scene, choose_method("linear-probe"), None, Budget()).flops == 0
    found = foresee(scene, choose_method({"name": "pfeiffer", "rank": rank}), None, Budget())
    tokens = 64
    assert found.flops == 3 * tokens * 2 * (2 * 64 * rank)  # three blocks, down and up
    assert foresee(scene, choose_method("lora"), None, Budget()).flops == 0  # it merges
