"""Do two sentences, or two questions, mean the same? How near are they?"""
from __future__ import annotations

from thrifty.formats.template import Template
from thrifty.formats.wording.making import asked, open_

PARAPHRASE = (
    *asked(
        "{sentence1}\n{sentence2}\n\nDo these two sentences say the same thing?",
        "Compare the sentences.\n\nA: {sentence1}\nB: {sentence2}\n\nIs one a rewording of the other?",
        "Could an editor put \"{sentence2}\" in the place of \"{sentence1}\" without changing what is reported?",
        "First version: {sentence1}\nSecond version: {sentence2}\nIs the meaning unchanged?",
        "Here are two sentences from the news. Do they tell the same?\n\n{sentence1}\n\n{sentence2}",
        "{sentence1}\nIn other words: {sentence2}\nIs \"in other words\" right here?",
        "Two writers, one fact? The first wrote: {sentence1} The second wrote: {sentence2}",
    ),
    *open_(
        "Do \"{sentence1}\" and \"{sentence2}\" have the same meaning?",
        "{sentence1}\nDoes the next sentence repeat this in different words?\n{sentence2}",
    ),
    Template("Give two sentences. Whether they mean the same is to be answered with \"{answer}\".", "{sentence1}\n{sentence2}"),
)
DUPLICATE = (
    *asked(
        "{question1}\n{question2}\n\nWould one answer serve both questions?",
        "Two people ask.\n\nOne: {question1}\nOther: {question2}\n\nDo they want to know the same?",
        "A forum already has the question \"{question1}\" Is \"{question2}\" a repetition of it?",
        "Question A: {question1}\nQuestion B: {question2}\nAre A and B the same question?",
        "Whoever can answer \"{question1}\", has he answered \"{question2}\" too?",
        "Decide whether the second question asks again what the first asked.\n\n{question1}\n\n{question2}",
        "{question1}\nIs this only another way to put it? {question2}",
    ),
    *open_(
        "Is \"{question2}\" the same question as \"{question1}\"?",
        "Should these two be merged into one question?\n{question1}\n{question2}",
    ),
    Template("Give two questions. Whether they ask the same is to be answered with \"{answer}\".", "{question1}\n{question2}"),
)
SIMILARITY = (
    *asked(
        "{sentence1}\n{sentence2}\n\nFrom 0 (nothing in common) to 5 (equal in meaning), how near are these sentences?",
        "Rate how much two sentences agree in meaning, 5 being complete agreement.\n\nA: {sentence1}\nB: {sentence2}",
        "How alike in meaning are \"{sentence1}\" and \"{sentence2}\"? Answer with a number from 0 to 5.",
        "First: {sentence1}\nSecond: {sentence2}\nGive a mark from 0 to 5 for how well the second could stand for the first.",
        "On a scale that ends at 5 for the same meaning, where do these belong?\n\n{sentence1}\n\n{sentence2}",
        "{sentence1}\nHow much of this is also said here, from 0 to 5? {sentence2}",
        "Judge the likeness of two statements (0 none, 5 full).\nOne: {sentence1}\nTwo: {sentence2}",
    ),
    *open_(
        "From 0 to 5, how similar is \"{sentence1}\" to \"{sentence2}\"?",
        "Sentence one: {sentence1}\nSentence two: {sentence2}\nSimilarity, 0 to 5:",
    ),
    Template("Write two sentences whose likeness in meaning deserves {answer} out of 5.", "{sentence1}\n{sentence2}"),
)
