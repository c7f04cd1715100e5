"""Words in their sentences: whom a pronoun means, and whether a word means the same twice."""
from __future__ import annotations

from thrifty.formats.wording.making import asked, open_

PRONOUN = (
    *asked(
        "{context}\n\nDoes \"{text2}\" stand for \"{text1}\" here?",
        "Say whether two expressions mean the same thing or person.\n\nText: {context}\n\nExpressions: \"{text1}\", \"{text2}\"",
        "In the following, is \"{text2}\" the same as \"{text1}\"?\n\n{context}",
        "{context}\nWhoever says \"{text2}\" in this text, does he speak of {text1}?",
        "Replace \"{text2}\" by \"{text1}\". Does the text keep its meaning?\n\n{context}",
        "Reading: {context}\nQuestion: is {text1} meant by \"{text2}\"?",
        "\"{text1}\" and \"{text2}\": one and the same in this text?\n\n{context}",
        "Follow the pronoun. Does \"{text2}\" lead back to \"{text1}\"?\n\n{context}",
    ),
    *open_(
        "{context} Is \"{text2}\" {text1}?",
        "Does \"{text2}\" mean \"{text1}\" in this text? {context}",
    ),
)
SENSE = (
    *asked(
        "{sentence1}\n{sentence2}\n\nHow does \"{word}\" compare in these two sentences?",
        "One word, two sentences. Does it have one sense?\n\nWord: {word}\n1. {sentence1}\n2. {sentence2}",
        "Look at \"{word}\" in \"{sentence1}\" and in \"{sentence2}\" What did you find?",
        "A dictionary lists several meanings of \"{word}\". Would it quote these under one of them?\n\n{sentence1}\n\n{sentence2}",
        "First use: {sentence1}\nSecond use: {sentence2}\nIn both, \"{word}\" has",
        "Is the word \"{word}\" used alike here?\n\n{sentence1}\n\n{sentence2}\n\nIt has",
        "{sentence1}\nThink of what \"{word}\" meant there. Now read on.\n{sentence2}\nAnd here?",
        "Translating both sentences, would you need two words for \"{word}\"?\n\n{sentence1}\n{sentence2}\n\nThe word has",
    ),
    *open_(
        "In \"{sentence1}\" and \"{sentence2}\", the word \"{word}\" has",
        "Does \"{word}\" have different meanings or the same meaning here? {sentence1} {sentence2}",
    ),
)
