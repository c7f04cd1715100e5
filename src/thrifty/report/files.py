"""What the files of a finished run say, key by key.

A run folder holds::

    metrics.json         one ``Metrics``                      (must be there)
    predictions.jsonl    one ``Prediction`` per line, test split, every seed
    config.json          the resolved settings, any JSON object
    environment.json     versions, processor, threads, precision, any JSON object
    data.json            the data record, any JSON object

Every key of ``Metrics`` is always present: what does not apply is ``null``, an empty list or an empty object, never absent,
and no other key is allowed. Numbers are finite (a loss that was not finite is ``null``). Shares are fractions (0.87, not 87).
"""
from __future__ import annotations

from typing import Any, Literal, TypedDict

Task = Literal["text-classification", "image-classification", "token-classification", "multiple-choice", "regression",
               "causal-generation", "seq2seq-generation", "masked-language", "contrastive", "navigation"]
Kind = Literal[Task, "several"]


class Estimate(TypedDict):
    """A number and how well it is known. With one seed the interval is over test items, with several over seeds."""

    value: float            # the point value; with several seeds their mean
    low: float | None       # lower end of the 95 % interval, null if none was computed
    high: float | None
    spread: float | None    # standard deviation over seeds, null with one seed


class Step(TypedDict):
    """One optimizer step, or the last of every few where a run is long."""

    step: int
    epoch: float
    loss: float | None      # mean training loss per item; null where it was not finite
    rate: float             # learning rate


class Evaluation(TypedDict):
    """One pass over the validation split."""

    step: int
    epoch: float
    values: dict[str, float]    # metric name -> value; holds ``Metrics.metric``, may hold "loss"


class Seed(TypedDict):
    """One training, from its seed to its test values."""

    seed: int
    history: list[Step]
    evaluations: list[Evaluation]
    best_step: int | None       # the step of the evaluation that was kept; null if there was none
    stopped: Literal["finished", "early", "interrupted"]
    test: dict[str, Estimate]   # metric name -> value, interval over items; empty if the test split was not read


class Baseline(TypedDict):
    """Something cheaper that the run has to beat, on the same test items."""

    name: str                       # "majority", "linear", ...
    title: str                      # fits into "better than <title>": "frozen features with a linear head"
    test: dict[str, Estimate]
    difference: Estimate | None     # the run minus this baseline on ``Metrics.metric``, paired over the same items


class Items(TypedDict):
    """Rows per split, after limits and skipped rows."""

    train: int
    validation: int
    test: int


class Timing(TypedDict):
    """Wall-clock, summed over seeds."""

    train_seconds: float
    evaluate_seconds: float
    steps: int                              # optimizer steps, summed over seeds
    examples_per_second: float | None       # training examples


class Memory(TypedDict):
    """The most memory that was held at once."""

    peak_bytes: int | None
    kind: Literal["process", "device"]      # resident memory of the process, or allocated on the accelerator


class Parameters(TypedDict):
    """Counts of numbers, not bytes."""

    base: int       # all parameters of the model before it was adapted
    tuner: int      # trainable, outside the head
    head: int       # trainable, in the head


class TaskPart(TypedDict):
    """One of several tasks that were learned together. Its test metrics are those of ``Metrics`` with its name before them."""

    task: Task
    metric: str                 # by which it selects
    labels: list[str] | None
    rate: float                 # its share of the steps
    items: Items
    baselines: list[Baseline]   # metrics without the name of the task


class CacheParts(TypedDict, total=False):
    """What there is to say where states are kept."""

    places: int             # files
    bytes: int
    seconds: float          # to prove, and to compute what was not there
    reused: bool            # all of it was there
    copies: int             # draws of every training row; 0 where nothing is drawn
    precision: Literal["exact", "float16", "int8"]
    lost: float             # by packing: root mean square, relative
    still: str | None       # what would be drawn by chance in the frozen part, and is not


class Cache(CacheParts):
    """What of the frozen part was computed once per row and kept, with the first seed. ``words``: how deep the cut, or why none."""

    setting: str            # auto, still, or the number of draws
    used: bool
    words: str


class MetricsParts(TypedDict, total=False):
    """What only some runs have."""

    cache: Cache                # if it was to be looked for
    tasks: dict[str, TaskPart]  # if ``task`` is "several": each of them


class Metrics(MetricsParts):
    """The whole of ``metrics.json``. Of several tasks ``test`` holds "mean_of_tasks", the metric, and "rte.accuracy" and so on."""

    schema: Literal[1]
    created: str                    # when the run ended, ISO 8601 with offset
    command: str | None             # the command line that repeats it
    task: Kind
    method: str                     # "lora"
    settings: dict[str, Any]        # the method's numbers: {"rank": 8, "where": "attn.q|attn.v"}
    model: str                      # as the user named it
    data: str                       # as the user named it
    metric: str                     # the primary metric, higher is better
    labels: list[str] | None        # the label space in order; for token classification the tags
    items: Items
    test: dict[str, Estimate]       # over all seeds; empty if the test split was not read
    baselines: list[Baseline]
    seeds: list[Seed]
    timing: Timing
    memory: Memory
    parameters: Parameters
    adapter_bytes: int | None       # size of the adapter folder on disk
    warnings: list[str]             # whole sentences in plain words, without markup; how a seed stopped is said by ``stopped``


class PredictionParts(TypedDict, total=False):
    """What only some predictions carry."""

    written: str            # what a language model wrote, where ``prediction`` was read from it
    image: str              # a small thumbnail as data:image/png;base64,... (png, jpeg, webp or gif)
    choices: list[str]      # multiple choice
    task: str               # the name of one of several tasks


class Prediction(PredictionParts):
    """One line of ``predictions.jsonl``.

    ``prediction`` is null where what was ``written`` names no label or choice, which is always wrong. Else
    ``target`` and ``prediction`` are label names for classification, lists of tag names (one per token) for token
    classification, the index of a choice for multiple choice, numbers for regression, texts for generation (there ``target``
    may be a list of references), for contrastive the captions of a picture and their cosines with it.
    """

    index: int                          # row of the test split, of its own task
    seed: int
    input: str | list[str] | None       # a text, two texts, the tokens; null for images
    target: str | int | float | list[str]
    prediction: str | int | float | list[str | float] | None
    scores: list[float] | None          # probabilities in the order of ``labels`` or ``choices``; else null
