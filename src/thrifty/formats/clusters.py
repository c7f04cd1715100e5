"""Which data sets of FLAN are of one kind, so that a kind can be held out from instruction tuning.

Wei, Bosma, Zhao, Guu, Yu, Lester, Du, Dai, Le: Finetuned Language Models Are Zero-Shot Learners; ICLR 2022, arXiv:2109.01652.
"""
from __future__ import annotations

from collections.abc import Iterable

from thrifty.core.errors import BadData, NoSuchSetting, nearest

CLUSTERS: dict[str, tuple[str, ...]] = {
    "summarization": ("aeslc", "cnn_dailymail", "gigaword", "multi_news", "newsroom", "samsum", "xsum", "ag_news",
                      "opinion_abstracts_rotten_tomatoes", "opinion_abstracts_idebate", "wiki_lingua"),
    "structure_to_text": ("web_nlg", "common_gen", "e2e_nlg", "dart"),
    "reading_comprehension": ("squad_v1", "squad_v2", "drop", "multirc", "openbookqa", "boolq"),
    "open_domain_qa": ("trivia_qa", "natural_questions", "arc"),
    "paraphrase": ("mrpc", "qqp", "paws", "stsb"),
    "sentiment": ("imdb", "sentiment140", "yelp", "sst2"),
    "text_formatting": ("true_case", "fix_punct", "word_segment"),
    "common_sense": ("copa", "hellaswag", "story_cloze", "piqa"),
    "translation": ("para_crawl_enes", "wmt14_enfr", "wmt16_deen", "wmt16_tren", "wmt16_csen", "wmt16_fien", "wmt16_roen",
                    "wmt16_ruen"),
    "coreference": ("definite_pronoun_resolution", "winogrande", "wsc"),
    "entailment": ("anli", "cb", "rte", "mnli", "qnli", "wnli", "snli"),
    "math": ("math_dataset",),
    "conversational_qa": ("quac", "coqa"),
    "word_disambiguation": ("wic",),
    "linguistic_acceptability": ("cola",),
    "question_classification": ("trec",),
    "read_comp_and_common_sense": ("record", "cosmos_qa"),
}
_MIXED = "read_comp_and_common_sense"
TOGETHER = ({"reading_comprehension", _MIXED}, {"common_sense", _MIXED}, {"paraphrase", "entailment"})


def hold_out(cluster: str) -> tuple[list[str], list[str]]:
    """Sets to train on and sets to be judged by, where ``cluster`` is not to be known from training: kinds that resemble it are not
    trained on either.

    Raises: NoSuchSetting for an unknown cluster.
    """
    if cluster not in CLUSTERS:
        raise NoSuchSetting(f"there is no cluster {cluster!r}.{nearest(cluster, CLUSTERS, 20)}")
    away = {cluster}.union(*(pair for pair in TOGETHER if cluster in pair))
    return [name for kind, names in CLUSTERS.items() if kind not in away for name in names], list(CLUSTERS[cluster])


def refuse_overlap(train: Iterable[str], test: Iterable[str]) -> None:
    """Raises: BadData for sets that stand on both sides."""
    both = sorted(set(train) & set(test))
    if both:
        raise BadData(f"{', '.join(both)} would be trained on and judged by: take them out of one side.")
