"""Everything that can be set about a training, in one place: names, types, defaults, bounds, and what each is for."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from thrifty.train.checking import Checked, need, said
from thrifty.train.schedule import SCHEDULES

MIXING = ("temperature", "cap", "one_head")  # what has a meaning for several datasets only


@dataclass(frozen=True)
class Settings(Checked):
    """How to train. The defaults are for small sets on a small machine; each field is a setting of `thrifty tune` too."""

    purpose = "training"

    task: str | dict[str, Any] | None = said(None, "what the data is for; inferred from its columns unless told. Of several "
                                                   "datasets: name=task pairs")
    columns: dict[str, Any] | None = said(None, "role=column pairs where names leave a choice: text=review,label=stars; of one "
                                                "of several datasets name.text=review")
    limit: int | None = said(None, "train on at most this many rows, drawn with the split seed")
    shots: int | None = said(None, "train on this many rows of every class, drawn with the split seed, and select on as many, but "
                                   "at most four")
    allow_leak: bool = said(False, "go on although equal rows lie in different splits; the report says so")
    skip_bad: bool = said(False, "leave out rows that cannot be used; the report says so")
    split_seed: int = said(0, "for carving splits where the data has none; stays the same over seeds")
    max_length: int | None = said(None, "tokens after which a text is cut (default: 256, or what the model has positions for)")
    max_new_tokens: int | None = said(None, "tokens that generation may write")
    format: str | dict[str, Any] | None = said(None, "answer in words, rows written as this says: t5:mrpc, flan:rte, 'Is this "
                                                     "good? {review}'. Of several datasets: name=format pairs")
    words: dict[str, Any] | None = said(None, "label=word pairs that spell classes in a format otherwise than it does; of one of "
                                              "several datasets name.label=word")
    answer: Literal["auto", "written", "ranked", "ranked-mean"] = said(
        "auto", "with a format, how answers are found: written, or ranked by likelihood (its sum, or mean per token)")
    templates: str | None = said(None, "of an image-text model: sentences with {} where the class goes, separated by |; or the "
                                       "name of a list, such as clip-7 (default: a photo of a {}.)")
    max_steps: int | None = said(None, "of navigation: decisions after which a walk ends (default: 15)")
    feedback: None | Literal["teacher", "student", "both"] = said(
        None, "of navigation: training walks along the given paths, where the agent itself would go, or both (default: teacher)")
    metric: str | dict[str, Any] | None = said(None, "validation metric that decides when to stop and what to keep. Of several "
                                                     "datasets: name=metric pairs; the mean of them decides")
    temperature: float | None | Literal["equal", "annealed"] = said(
        None, "of several datasets: how often a batch comes from each, in proportion to rows^(1/temperature) (default: 1, by "
              "size); equal; or annealed, from by size towards equal")
    cap: int | None = said(None, "of several datasets: count at most this many rows of each")
    one_head: bool | None = said(None, "of several datasets of one kind, such as languages: one head with the classes of all")

    augment: str | dict[str, Any] | None = said(None, "pictures of training rows changed by chance: none, flip, crop-flip, "
                                                      "randaugment, or vtab (see thrifty.data.augmenting). Of several datasets: "
                                                      "name=recipe pairs")
    epochs: float | None = said(None, "passes over the training rows (default: as many as make 300 steps, 3 to 12)")
    batch: int = said(32, "rows per process that go through the model at once")
    accumulate: int = said(1, "batches that are summed up before each step")
    rate: float | None = said(None, "peak learning rate (default: by method, see thrifty.train.rates)")
    head_rate: float | None = said(None, "peak learning rate of the head, whatever the method says (default: rate)")
    decay: float = said(0.0, "weight decay of tensors with two or more dimensions")
    warmup: float = said(0.06, "share of the steps over which the rate rises from zero")
    schedule: Literal["linear", "cosine", "constant"] = said("linear", "how the rate falls after the warm-up")
    clip: float = said(1.0, "largest norm of the gradient; longer ones are scaled down")
    evaluations: float = said(1.0, "passes over the validation rows per epoch")
    patience: int = said(5, "stop after this many evaluations without a better one; 0 never stops early")
    start: str | None = said(None, "folder of a saved adapter of the same method whose values training starts from")
    seeds: int = said(1, "trainings from different seeds; the report gives mean, spread and interval")
    seed: int = said(0, "of the new weights, the order of the data and dropout; the first of several")

    weights: Literal["full", "nf4"] = said("full", "how the frozen weights of linear layers are held: full, or nf4, in four bits "
                                                   "(QLoRA; bitsandbytes)")
    optimizer: Literal["adamw", "paged-adamw"] = said(
        "adamw", "what takes the steps; paged-adamw takes the same ones with states that a CUDA card may push out of its memory "
                 "(bitsandbytes)")
    precision: Literal["auto", "float32", "bfloat16"] = said("auto", "auto computes in bfloat16 where the processor has it")
    cache: int | Literal["off", "auto", "still"] = said(
        "off", "run what lies below all that trains once per row, and keep what it gave: auto, where that changes nothing but "
               "rounding; still, without dropout there; or N draws of every training row")
    cache_as: Literal["exact", "float16", "int8"] = said("exact", "how kept states are stored; the report says what that loses")
    activations: Literal["all", "less", "least"] = said(
        "all", "which stay in memory for the backward pass: all that torch keeps; less, computing cheap ones again; or the least, "
                "computing outputs of frozen layers again too")
    checkpointing: bool = said(False, "compute activations twice instead of keeping them")
    device: str = said("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one")
    checkpoint_every: int = said(200, "steps between checkpoints; there is one after each evaluation too")
    baselines: bool = said(True, "measure the majority class and a linear head on frozen features too")

    def refuse_odd(self) -> None:
        """Raises: NoSuchSetting."""
        for name in ("batch", "accumulate", "seeds", "checkpoint_every"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.temperature == float("inf"):  # which JSON cannot write down
            object.__setattr__(self, "temperature", "equal")
        heat = self.temperature
        need(heat is None or isinstance(heat, str) or heat >= 1, "temperature", heat, "at least 1, equal or annealed")
        for name in ("limit", "shots", "max_new_tokens", "max_steps", "cap"):
            need(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("epochs", "rate", "head_rate", "clip", "evaluations"):
            need(getattr(self, name) is None or 0 < getattr(self, name) < float("inf"), name, getattr(self, name), "positive")
        for name in ("decay", "patience", "seed", "split_seed"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        need(isinstance(self.cache, str) or self.cache >= 1, "cache", self.cache, "off, auto, still or at least 1")
        need(0 <= self.warmup < 1, "warmup", self.warmup, "in [0, 1)")

    def plain(self) -> dict[str, Any]:
        """As JSON holds it. What only several datasets have is left out where it is not set."""
        return {name: value for name, value in super().plain().items() if value is not None or name not in MIXING}


def kinds() -> dict[str, Any]:
    """Setting -> its type."""
    return get_type_hints(Settings)


assert set(SCHEDULES) == set(get_args(kinds()["schedule"]))
