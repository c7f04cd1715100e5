"""What was trained, and what it took."""
from __future__ import annotations

from thrifty.report import numbers
from thrifty.report.files import Cache, Memory, Metrics, Parameters, Timing
from thrifty.report.markup import facts, section
from thrifty.report.reading import Results

Fact = tuple[str, str, str]


def cost(results: Results) -> str:
    """Parameters, bytes, memory, time."""
    m = results.metrics
    kept = [_cache(m["cache"])] if "cache" in m else []
    entries = [*_parameters(m["parameters"]), _adapter(m), _memory(m["memory"]), *_timing(m["timing"], len(m["seeds"])), *kept]
    return section("Cost", "What was trained, and what it took.", facts(entries))


def _parameters(p: Parameters) -> list[Fact]:
    base = p["base"]
    trained = p["tuner"] + p["head"]
    whole = f"{numbers.share(trained, base)} of {numbers.short(base)} in the base"
    return [("Trainable parameters", numbers.count(trained), whole),
            ("of these in the tuner", numbers.count(p["tuner"]), f"{numbers.share(p['tuner'], base)} of the base"),
            ("of these in the head", numbers.count(p["head"]), f"{numbers.share(p['head'], base)} of the base")]


def _adapter(m: Metrics) -> Fact:
    held = m["adapter_bytes"]
    return ("Adapter on disk", "–", "not saved") if held is None else ("Adapter on disk", numbers.size(held), "with its head")


def _memory(memory: Memory) -> Fact:
    if memory["peak_bytes"] is None:
        return "Peak memory", "–", "not measured"
    where = "of the process" if memory["kind"] == "process" else "on the accelerator"
    return "Peak memory", numbers.size(memory["peak_bytes"]), where


def _cache(cache: Cache) -> Fact:
    if not cache["used"]:
        return "Frozen part", "computed", f"in every step: {cache['words']}"
    made = "found" if cache["reused"] else "computed once"
    return "Frozen part", numbers.size(cache["bytes"]), f"{made} in {numbers.seconds(cache['seconds'])}: {cache['words']}"


def _timing(t: Timing, seeds: int) -> list[Fact]:
    over = f"over {seeds} seeds" if seeds > 1 else ""
    rate = t["examples_per_second"]
    return [("Time to train", numbers.seconds(t["train_seconds"]), over),
            ("Time to evaluate", numbers.seconds(t["evaluate_seconds"]), over),
            ("Steps", numbers.count(t["steps"]), over),
            ("Speed", "–", "not measured") if rate is None else
            ("Speed", f"{numbers.rounded(rate)}{numbers.GAP}/{numbers.GAP}s", "training examples")]
