"""Captions as tokens, as the Penn Treebank cuts them: M. Marcus, B. Santorini, M. A. Marcinkiewicz, "Building a Large Annotated
Corpus of English: The Penn Treebank", Computational Linguistics, 1993.

`pycocoevalcap` cuts captions with Stanford's PTBTokenizer, a Java program (corenlp 3.4.1, -preserveLines -lowerCase), and then
drops punctuation. These are its rules for what captions hold: words, numbers, contractions, possessives, hyphens, abbreviations,
brackets, quotes, dashes and ellipses. What differs: British spellings stay (there "colour" is read as "color"), and so do web
addresses, mail addresses, smileys, fractions with a slash and marks that stand for letters, none of which is known here as one
token; every other sign is a token of its own.
"""
from __future__ import annotations

import re

DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""What `pycocoevalcap` drops. Brackets are written in small letters by then ("-lrb-"), so they stay: its list misses them."""

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
ABBREVIATIONS = frozenset(["adm", "ave", "bros", "capt", "cmdr", "co", "col", "corp", "cpl", "dept", "dr", "etc", "gov", "inc",
                           "jr", "lt", "ltd", "messrs", "mr", "mrs", "ms", "mt", "ph.d", "prof", "rev", "sgt", "sr", "st", "vs"])
"""Those that mean nothing else at the end of a caption: "in the sun." is no Sunday."""
JOINED = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me",
          "'tis": "'t is", "'twas": "'t was"}
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "--", "\u2014": "--",
                        "\u2026": "...", "\u00a0": " "})
_TOKEN = re.compile(r"""
    '(?:tis|twas)\b                              # read as two words below
  | (?:[^\W\d_]\.){2,}                           # u.s.a.
  | \d+(?:[,.:]\d+)*(?:st|nd|rd|th|s)?(?![\w])   # 3  1,000  2.5  10:30  3rd  1980s
  | \w+(?:['&.](?=\w)\w+|-(?=\w)\w+)*            # word  t-shirt  rock'n'roll  at&t  don't
  | '(?:s|re|ve|ll|d|m|t)\b                      # behind a space or a quote
  | \.{2,} | -{2,} | .                           # any other sign alone
""", re.VERBOSE)
_ENDING = re.compile(r"(?P<word>.+?)(?P<tail>n't|'(?:s|re|ve|ll|d|m))$")
_SENTENCE = re.compile(r"(?<=[a-z]{2})\.(?=[a-z])")


def cut(text: str) -> list[str]:
    """A caption as tokens in small letters, punctuation dropped.

    >>> cut("The dog's owner doesn't see a black-and-white ball (here).")
    ['the', 'dog', "'s", 'owner', 'does', "n't", 'see', 'a', 'black-and-white', 'ball', '-lrb-', 'here', '-rrb-']
    """
    found: list[str] = []
    for piece in text.translate(_PLAIN).replace("&amp;", "&").lower().split():
        found += cut_piece(piece)
    return [token for token in found if token not in DROPPED]


def cut_piece(piece: str) -> list[str]:
    """What stands between two spaces, in small letters, as tokens with their punctuation."""
    whole = piece.rstrip("\"')]},;:!?")
    if whole.endswith(".") and (whole[:-1] in ABBREVIATIONS or re.fullmatch(r"(?:[^\W\d_]\.){2,}", whole)):
        return [whole, *signs(piece[len(whole):])]
    tokens: list[str] = []
    for token in _TOKEN.findall(_SENTENCE.sub(" . ", piece)):
        tokens += split_word(token) if token[0].isalnum() or token[0] in "_'" else signs(token)
    return tokens


def split_word(token: str) -> list[str]:
    """A word without what was contracted to it, and that."""
    if token in JOINED:
        return JOINED[token].split()
    ending = _ENDING.fullmatch(token)
    return [ending["word"], ending["tail"]] if ending else [token]


def signs(text: str) -> list[str]:
    """Punctuation as the treebank writes it."""
    if re.fullmatch(r"\.{2,}", text):
        return ["..."]
    if re.fullmatch(r"-{2,}", text):
        return ["--"]
    return [BRACKETS.get(sign, "''" if sign == '"' else sign) for sign in text if not sign.isspace()]
