"""All scores by name: what each is called with, what it costs, and what it can tell."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.rank.etran import etran
from thrifty.rank.gbc import gbc
from thrifty.rank.hscore import hscore
from thrifty.rank.leep import leep
from thrifty.rank.logme import logme
from thrifty.rank.nce import nce
from thrifty.rank.ncti import ncti
from thrifty.rank.nleep import nleep
from thrifty.rank.otce import otce
from thrifty.rank.parc import parc
from thrifty.rank.ped import ped
from thrifty.rank.score import Score
from thrifty.rank.sfda import sfda
from thrifty.rank.transrate import transrate


@dataclass(frozen=True)
class Entry:
    """One score. For all of them, higher is better.

    ``needs`` are the names of the function's positional arguments: features [N, D] and labels [N]; source_labels [N] and
    source_probs [N, S], what the model's own head says; source_... and target_... for two data sets. ``bounds`` are the lowest
    and highest value in words. ``regression``: it also takes numbers as labels. ``hub``: it ranks models only after
    `thrifty.rank.over_hub`.
    """

    name: str
    function: Callable[..., Score]
    paper: str
    needs: tuple[str, ...]
    bounds: tuple[str, str]
    cost: str
    regression: bool = False
    hub: bool = False


_FEATURES = ("features", "labels")
_CUBIC = "N D min(N, D)"

SCORES: dict[str, Entry] = {entry.name: entry for entry in (
    Entry("nce", nce, "Tran et al., ICCV 2019", ("source_labels", "labels"), ("-log C", "0"), "N log N"),
    Entry("leep", leep, "Nguyen et al., ICML 2020", ("source_probs", "labels"), ("none", "0"), "N S"),
    Entry("logme", logme, "You et al., ICML 2021", _FEATURES, ("none", "none"), f"{_CUBIC} + C min(N, D)", regression=True),
    Entry("gbc", gbc, "Pándy et al., CVPR 2022", _FEATURES, ("-C (C - 1)", "0"), f"{_CUBIC} + C^2 D"),
    Entry("otce", otce, "Tan et al., CVPR 2021", ("source_features", "source_labels", "target_features", "target_labels"),
          ("-log C", "0"), "n^3 for at most 1000 rows a side"),
    Entry("nleep", nleep, "Li et al., CVPR 2021", _FEATURES, ("none", "0"), "100 N C p^2 at most, p components"),
    Entry("hscore", hscore, "Bao et al., ICIP 2019", _FEATURES, ("0", "min(C - 1, D)"), _CUBIC),
    Entry("sfda", sfda, "Shao et al., ECCV 2022", _FEATURES, ("0", "1"), "N D^2 + D^3"),
    Entry("ncti", ncti, "Wang et al., ICCV 2023", _FEATURES, ("none", "none"), _CUBIC, hub=True),
    Entry("parc", parc, "Bolya et al., NeurIPS 2021", _FEATURES, ("-100", "100"), "N^2 D"),
    Entry("transrate", transrate, "Huang et al., ICML 2022", _FEATURES, ("none", "none"), _CUBIC),
    Entry("etran", etran, "Gholami et al., ICCV 2023", _FEATURES, ("none", "none"), "N D^2 + D^3", regression=True, hub=True),
    Entry("ped", ped, "Li et al., ICCV 2023", _FEATURES, ("0", "1"), "N D^2 + D^3"),
)}


def find(name: str) -> Entry:
    """The score of that name.

    Raises:
        NoSuchSetting: there is none.
    """
    if name not in SCORES:
        raise NoSuchSetting(f"there is no score {name!r}.{nearest(name, SCORES, most=len(SCORES))}")
    return SCORES[name]
