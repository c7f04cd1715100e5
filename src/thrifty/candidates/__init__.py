"""Candidates: several pretrained models and one labelled data set, and which of them will transfer best, before any is tuned.

`rank` sees every training row once with each model (`seeing`, kept on disk by `keeping`), asks every score of `thrifty.rank` with
an interval (`scoring`), and puts the models in the order that the scores agree on (`ordering`). `record` says how well each score
has foretold accuracies where that was measured, `cost` is where an estimate of the tuning comes in, `page` shows it all.

    from thrifty import rank
    print(rank.models(["minilm", "./my-bert"], "reviews.csv"))
"""
from thrifty.candidates.candidate import Candidate
from thrifty.candidates.cost import Cost
from thrifty.candidates.ranking import Ranking, rank

__all__ = ["Candidate", "Cost", "Ranking", "rank"]
