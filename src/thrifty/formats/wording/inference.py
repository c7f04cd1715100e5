"""Does one text follow from another? And: does a sentence answer a question?"""
from __future__ import annotations

from thrifty.formats.template import Template
from thrifty.formats.wording.making import asked, open_

ENTAILMENT = (
    *asked(
        "{premise}\n\nGiven only this, does it follow that \"{hypothesis}\"?",
        "Read the text and judge the claim.\n\nText: {premise}\n\nClaim: {hypothesis}\n\nIs the claim a consequence of the text?",
        "Suppose that the following holds: {premise}\nMay one then conclude that {hypothesis}",
        "Statement A: {premise}\nStatement B: {hypothesis}\nWhoever accepts A, must he accept B?",
        "Would a careful reader of the first passage agree with the second?\n\nFirst: {premise}\n\nSecond: {hypothesis}",
        "{premise}\nSomebody concludes: \"{hypothesis}\" Is that conclusion warranted?",
        "Here is what we know.\n{premise}\n\nHere is what somebody says.\n{hypothesis}\n\nDo the known facts make the saying true?",
    ),
    *open_(
        "{premise}\nDoes this imply the following? {hypothesis}",
        "Decide whether the second sentence can be inferred from the first.\n1. {premise}\n2. {hypothesis}",
    ),
    Template("Invent a pair: a text, and a claim about it. To the question whether the claim follows from the text, the answer "
             "must be \"{answer}\".", "Text: {premise}\nClaim: {hypothesis}"),
)
ANSWERED = (
    *asked(
        "{sentence}\n\nCan the question \"{question}\" be answered from this sentence?",
        "Question: {question}\nSentence: {sentence}\nDoes the sentence hold the answer?",
        "Somebody asks: {question}\nYou may quote one sentence: {sentence}\nWould the quotation answer him?",
        "Look for an answer.\n\nIn: {sentence}\n\nTo: {question}\n\nIs it there?",
        "Is what this question wants to know told by the sentence below it?\n\n{question}\n\n{sentence}",
        "{sentence}\nHaving read that, do you know the answer to this? {question}",
        "A search for \"{question}\" brought up the sentence \"{sentence}\" Is that a hit?",
    ),
    *open_(
        "Does \"{sentence}\" answer the question \"{question}\"?",
        "{question}\nIs the answer in this sentence? {sentence}",
    ),
    Template("Write a question and a sentence. Asked whether the sentence answers the question, one must say \"{answer}\".",
             "Question: {question}\nSentence: {sentence}"),
)
