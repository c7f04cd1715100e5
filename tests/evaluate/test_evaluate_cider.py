"""CIDEr by hand, and against dense vectors written out; captions as the treebank cuts them."""
from __future__ import annotations

import math

import numpy as np
import pytest

from thrifty.evaluate.cider import cider_scores, cider_statistic
from thrifty.evaluate.ptb import cut

WRITTEN = ["a dog runs on the grass", "two men play chess in a park", "a dog", "red red red boat on the water"]
REFERENCES = [["a brown dog runs over the grass", "a dog running on grass", "the dog runs on the grass ."],
              ["two old men play chess", "men in a park play a game of chess", "two men sit in the park"],
              ["a cat sleeps on a mat", "the cat is on the mat", "a sleeping cat"],
              ["a red boat on the water", "a small boat on a lake", "red boat"]]


def by_hand(written: list[str], references: list[list[str]], robust: bool = True) -> list[float]:
    """The definition with one dense vector over all n-grams of an order."""
    def spans(text: str, n: int) -> list[str]:
        words = [word for word in text.split() if word != "."]
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = np.zeros(len(written))
    for n in (1, 2, 3, 4):
        space = sorted({g for refs in references for r in refs for g in spans(r, n)} | {g for w in written for g in spans(w, n)})
        df = np.array([sum(any(g in spans(r, n) for r in refs) for refs in references) for g in space])
        idf = np.log(len(references) / np.maximum(df, 1.0))

        def vector(text: str, n: int = n, space: list[str] = space, idf: np.ndarray = idf) -> np.ndarray:
            return np.array([spans(text, n).count(g) for g in space]) * idf

        for i, (text, refs) in enumerate(zip(written, references, strict=True)):
            for r in refs:
                h, v = vector(text), vector(r)
                if not (h.any() and v.any()):
                    continue
                value = np.minimum(h, v) @ v if robust else h @ v
                value /= np.linalg.norm(h) * np.linalg.norm(v)
                gap = len(spans(text, 2)) - len(spans(r, 2))
                total[i] += value * (math.exp(-gap * gap / 72) if robust else 1) / 4 / len(refs)
    return list(10 * total)


def test_two_pictures_on_paper() -> None:
    references = [["a b"], ["a c"]]  # "a" stands in both, so it weighs nothing; b, "a b" weigh log 2 each
    assert cider_scores(["a b", "a c"], references) == pytest.approx([5.0, 5.0])
    assert cider_scores(["a b b", "c b"], references) == pytest.approx([10 * (0.5 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72),
                                                                      10 / math.sqrt(2) / 4])
    assert cider_scores(["a b b", "x"], references, robust=False) == pytest.approx([10 * (1 + 1 / math.sqrt(2)) / 4, 0.0])


@pytest.mark.parametrize("robust", [True, False])
def test_against_dense_vectors(robust: bool) -> None:
    found = cider_scores(WRITTEN, REFERENCES, robust)
    assert found == pytest.approx(by_hand(WRITTEN, REFERENCES, robust), abs=1e-12)
    assert found[0] > found[3] > 0 and found[1] > 1


def test_bounds() -> None:
    own = cider_scores([refs[0] for refs in REFERENCES], [refs[:1] for refs in REFERENCES])
    assert own[1] == pytest.approx(10.0), "a caption of four words or more that is the only reference"
    assert (cider_scores(["zebra", "xylophone", "", "?"], REFERENCES) == 0).all(), "nothing in common"
    assert (cider_scores(["a dog"], [["a dog"]]) == 0).all(), "with one picture nothing is rare"


def test_resamples_keep_what_is_rare() -> None:
    counts = np.array([[1.0, 1, 1, 1], [4, 0, 0, 0], [0, 1, 1, 2]])
    scores = 100 * np.array(by_hand(WRITTEN, REFERENCES))
    assert cider_statistic(WRITTEN, REFERENCES)(counts) == pytest.approx([scores.mean(), scores[0], (counts[2] @ scores) / 4])


@pytest.mark.parametrize(("text", "words"), [
    ("A Dog, a cat; and a bird!", "a dog a cat and a bird"),
    ("The dogs' owner doesn't mind: it's Tom's.", "the dogs owner does n't mind it 's tom 's"),
    ("I can't, you'll, they've, we'd, I'm, we're", "i ca n't you 'll they 've we 'd i 'm we 're"),
    ("a black-and-white T-shirt", "a black-and-white t-shirt"),
    ('a sign reads "STOP" ...', "a sign reads stop"),
    ("a man - with a hat -- waits\u2014there", "a man with a hat waits there"),
    ("(one) [two]", "-lrb- one -rrb- -lsb- two -rsb-"),
    ("Mr. Smith in the U.S. on Main St.", "mr. smith in the u.s. on main st."),
    ("sits in the sun.A boy runs.", "sits in the sun a boy runs"),
    ("1,000 people at 10:30 pay $5 or 2.5%", "1,000 people at 10:30 pay $ 5 or 2.5 %"),
    ("the 3rd of 1980s cars", "the 3rd of 1980s cars"),
    ("He cannot say he's gonna go", "he can not say he 's gon na go"),
    ("rock'n'roll at AT&T &amp; co", "rock'n'roll at at&t & co"),
    ("", ""),
])
def test_tokens(text: str, words: str) -> None:
    assert cut(text) == words.split()
