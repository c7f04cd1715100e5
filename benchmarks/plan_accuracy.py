"""How far predictions are off: memory and time of a step as `thrifty plan` foretells them, and as they are then measured.

    python benchmarks/plan_accuracy.py run [--only minilm,vit,llama,t5] [--steps 7] [--threads 2] [--small] [--no-time]
    python benchmarks/plan_accuracy.py table       # docs/plan.md, from benchmarks/results/plan_accuracy.jsonl

Twelve pairs of a model and a method, none of which has a part in the calibration (which knows only products, copies and the like).
Models have random weights but for MiniLM. Each pair runs in a process of its own: first the prediction, from a copy of the model
without numbers; then the model itself takes the same steps.

- activations: what autograd keeps between the passes, by `thrifty.methods.memory.activation_memory.measure`
- peak: what is there between two steps, plus the most that torch's allocator held beyond that during one, by torch's profiler
- resident: how far the process grew beyond what it held with all libraries and data before the model was made, which is the
  operating system's account; it holds what libraries keep for themselves, too
- apart: the same in another process whose C library gives every tensor pages of its own and takes them back at once
- step: the median of ``--steps`` steps; with one thread the processor's time, which others who want it do not lengthen

Errors are predicted over measured, less one.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.train.environment import processor

PAIRS: dict[str, tuple[Any, ...]] = {
    "minilm": ("lora", "prefix", "full"),
    "vit": ("vpt", "linear-probe", "full"),
    "llama": ({"name": "lora", "where": "attn.?|mlp.*"}, "ia3", "dora"),
    "t5": ("houlsby", "compacter", "lora"),
}

RESULTS = Path(__file__).resolve().parent / "results" / "plan_accuracy.jsonl"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "plan.md"
APART = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # of glibc
COLUMNS = (("activations", 1e6, 1), ("peak", 1e6, 1), ("apart", 1e6, 0), ("resident", 1e6, 0), ("step", 1e-3, 0))
TITLES = {"activations": "Activations, MB", "peak": "Peak of tensors in a step, MB", "resident": "Growth of the process, MB",
          "apart": "Growth of the process where freed memory is given back at once, MB", "step": "A step, ms"}
HEAD = """# What a plan is worth

Made by `python benchmarks/plan_accuracy.py table`. `thrifty plan` predicts memory and time of a training from one step that is
rehearsed on tensors without numbers. Here are the predictions beside what the same steps then took, for twelve pairs of a model
and a method, none of which has a part in the calibration. Batches are of 16 rows of 128 tokens (every other row is shorter), or of
16 pictures of 224 × 224; models are MiniLM and three of its size with random weights; float32 with AdamW.

Activations are what autograd keeps between the passes. The peak is what is there between two steps and the most that torch's
allocator held beyond it during one. The growth of the process is the operating system's account, and compared with the same
prediction. It is larger, mostly because the C library keeps freed pieces between others for later: where it gives them back
(`MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536`, which makes steps slower) the process grows by what is predicted and
some tens of MB that libraries hold. So a budget of a CPU's memory should leave room for half as much again.

A step is the median of several; of one thread the processor's time, which others who want it do not lengthen. Rates come from the
calibration alone, but what is charged for (that products are moved, too, and that many small ones are slower) was settled after a
first look at these pairs, where the largest error was 30 %.

Measured on:
"""

TASKS = {"minilm": "text-classification", "vit": "image-classification", "llama": "causal-generation", "t5": "seq2seq-generation"}


def make(name: str, small: bool) -> nn.Module:
    """A model by its family, with random weights but for MiniLM."""
    import transformers

    from thrifty.models import load

    torch.manual_seed(0)
    wide, deep, heads = (64, 2, 2) if small else (384, 6, 6)
    if name == "minilm":
        return load("minilm", "text-classification", ["a", "b"]).model
    if name == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(
            hidden_size=wide, num_hidden_layers=deep, num_attention_heads=heads, intermediate_size=4 * wide,
            image_size=64 if small else 224, num_labels=2)).eval()
    if name == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(
            hidden_size=wide, num_hidden_layers=deep, num_attention_heads=heads, num_key_value_heads=heads // 2,
            intermediate_size=3 * wide, vocab_size=8000, max_position_embeddings=512)).eval()
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        d_model=wide, num_layers=deep, num_heads=heads, d_kv=wide // heads, d_ff=4 * wide, vocab_size=8000,
        decoder_start_token_id=0)).eval()


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory, now or at the most since `forget`."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(wanted))
    return int(line.split()[1]) * 1024


def forget() -> None:
    """Let the most that was resident begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def allocated(step: Any) -> int:
    """The most that torch's allocator held during ``step`` beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def one(name: str, method: Any, small: bool, steps: int, timed: bool) -> dict[str, Any]:
    """Predict and measure one pair."""
    from thrifty.models import wrap
    from thrifty.planning.forecasting import foresee, invent_scene
    from thrifty.train.budget import Budget
    from thrifty.train.choosing import choose_method
    from thrifty.train.precision import choose
    from thrifty.train.processes import Processes
    from thrifty.train.settings import Settings

    processes, chosen = Processes(torch.device("cpu")), choose_method(method)
    machine = find_machine(processes.device) if timed else None
    make(name, small)  # so that what libraries load on the way is there before
    before = resident()
    model = make(name, small)
    new = [path for path, _ in model.named_parameters() if path.startswith("classifier")]
    length = None if name == "vit" else 32 if small else 128
    settings = Settings(batch=4 if small else 16, task=TASKS[name], max_length=length)
    scene = invent_scene(wrap(model, new=new, name=name), settings, processes, choose("float32", processes.device), rows=100)
    said = foresee(scene, chosen, machine, Budget())
    found = measure(scene, chosen, steps if timed else 1, before)
    return {"activations": [said.memory.activations, found["activations"]], "peak": [said.memory.step, found["peak"]],
            "resident": [said.memory.step, found["resident"]],
            "step": [said.time.step, found["step"]] if said.time is not None else None}


def find_machine(device: torch.device) -> Any:
    """What was measured of this machine, now if never before."""
    from thrifty.planning import machine as machines
    from thrifty.planning.calibrating import calibrate

    if (found := machines.recall(device)) is None:
        machines.remember(found := calibrate(device))
    return found


def measure(scene: Any, method: Any, steps: int, before: int) -> dict[str, float]:
    """Take the steps that were predicted, with the model itself."""
    from thrifty.methods.memory.activation_memory import measure as keeps
    from thrifty.planning.rehearsal import size
    from thrifty.train.choosing import resolve
    from thrifty.train.training import Training

    job = scene.job(scene.backbone, method, resolve(scene.settings, method, scene.form, 100, 1, "float32"))
    at = job.prepare(0)
    training = Training(at, at.model, job.task, job.material, job.settings, 0, job.processes, scene.precision)
    forget()
    training.try_step()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(steps):
        began = clock()
        training.try_step()
        times.append(clock() - began)
    grown = resident(peak=True) - before
    training.optimizer.zero_grad(set_to_none=True)
    states = [value for held in training.optimizer.state.values() for value in held.values()]
    between = size((*at.model.parameters(), *at.model.buffers(), *at.base.values(), *states))
    peak = between + allocated(training.try_step)
    batch = job.task.collate(scene.usual)
    kept = keeps(at.model.train(), lambda: method.loss(at, job.task, at.model, batch))
    return {"activations": kept, "peak": peak, "resident": grown, "step": statistics.median(times)}


def cell(pair: list[float] | None, unit: float, places: int) -> str:
    """Predicted, measured, and the error."""
    if pair is None:
        return "– | – | –"
    said, found = pair
    return f"{said / unit:,.{places}f} | {found / unit:,.{places}f} | {100 * (said / found - 1):+.1f} %".replace("-", "−")


def say(method: Any) -> str:
    """A method as the table calls it."""
    return method if isinstance(method, str) else f"{method['name']}, all linear layers"


def ask(words: list[str], more: dict[str, str]) -> dict[str, Any]:
    """What another process says, with ``more`` in its environment."""
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **more})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(given: argparse.Namespace) -> None:
    """Measure each pair in a process of its own, and write it down."""
    about = {"machine": f"{processor()}, threads: {given.threads}, torch {torch.__version__}", "note": given.note}
    for model in given.only.split(","):
        for method in PAIRS[model]:
            words = [sys.executable, __file__, *sys.argv[1:], "--one", model, json.dumps(method)]
            found = ask(words, {})
            found["apart"] = ask([*words, "--no-time"], APART)["resident"]
            line = json.dumps({"model": model, "method": say(method), "small": given.small, **found, **about})
            print(line, flush=True)
            if not given.small:
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


def table() -> None:
    """Write the page: of each pair what was measured last."""
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    last = {(line["model"], line["method"]): line for line in lines}
    pairs = [last[key] for model in PAIRS for key in ((model, say(method)) for method in PAIRS[model]) if key in last]
    page = [HEAD, *(f"- {text}" for text in dict.fromkeys(" ".join(filter(None, (f"{each['machine']}.", each["note"])))
                                                           for each in pairs)), ""]
    for what, unit, places in COLUMNS:
        page += [f"## {TITLES[what]}", "", "| model | method | predicted | measured | error |", "|---|---|---|---|---|"]
        page += [f"| {each['model']} | {each['method']} | {cell(each[what], unit, places)} |" for each in pairs]
        errors = [abs(each[what][0] / each[what][1] - 1) for each in pairs if each[what] is not None]
        if errors:
            page += ["", f"Largest error {100 * max(errors):.1f} %, median {100 * statistics.median(errors):.1f} %."]
        page.append("")
    PAGE.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--only", default=",".join(PAIRS))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--small", action="store_true", help="small models, to see that it runs; nothing is written down")
    parser.add_argument("--no-time", action="store_true", help="memory alone, on a machine that is not quiet")
    parser.add_argument("--note", default="", help="what the page should say of these measurements")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "METHOD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(one(given.one[0], json.loads(given.one[1]), given.small, given.steps, not given.no_time)))
    elif given.command == "run":
        run(given)
    else:
        table()


if __name__ == "__main__":
    main()
