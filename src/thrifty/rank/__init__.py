"""Which pretrained model? How well a model's features, or its own head's answers, foretell that it will transfer: without training.

Plain functions on arrays (NumPy, or tensors), one file per paper. Every one returns a `Score`, a float of which higher is better,
with details; none writes to what it is given; labels may be any whole numbers or strings. `SCORES` is the table of all.

    from thrifty.rank import logme, over_hub, ncti
    logme(features, labels)                                       # features [N, D], labels [N]
    over_hub([ncti(f, labels) for f in features_of_each_model])   # NCTI and ETran: parts are scaled over the candidates
    models(["minilm", "./my-bert"], "reviews.csv")                # all of it for several models: see `thrifty.candidates.rank`
"""
from typing import TYPE_CHECKING, Any

from thrifty.rank.b_tuning import blend, penalty, weigh
from thrifty.rank.etran import energy, etran
from thrifty.rank.evidence import Evidence, maximise
from thrifty.rank.gbc import gbc
from thrifty.rank.hscore import hscore
from thrifty.rank.leep import leep
from thrifty.rank.logme import logme
from thrifty.rank.naswot import naswot
from thrifty.rank.nce import nce
from thrifty.rank.ncti import ncti
from thrifty.rank.nleep import nleep
from thrifty.rank.otce import Coefficients, fit_coefficients, otce
from thrifty.rank.parc import parc
from thrifty.rank.ped import descend, ped
from thrifty.rank.score import Score, over_hub
from thrifty.rank.sfda import sfda
from thrifty.rank.table import SCORES, Entry, find
from thrifty.rank.transrate import transrate

__all__ = ["SCORES", "Candidate", "Coefficients", "Entry", "Evidence", "Score", "blend", "descend", "energy", "etran", "find",
           "fit_coefficients", "gbc", "hscore", "leep", "logme", "maximise", "models", "naswot", "nce", "ncti", "nleep", "otce",
           "over_hub", "parc", "ped", "penalty", "sfda", "transrate", "weigh"]

if TYPE_CHECKING:
    from thrifty.candidates import Candidate
    from thrifty.candidates import rank as models


def __getattr__(name: str) -> Any:
    """What ranks whole models is looked up when it is first used: it knows torch and all rooms, and the scores only NumPy."""
    if name in ("models", "Candidate"):
        from thrifty import candidates

        return candidates.rank if name == "models" else candidates.Candidate
    raise AttributeError(f"module 'thrifty.rank' has no attribute {name!r}")
