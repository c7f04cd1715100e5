"""One of several answers: causes and effects, exam questions, endings, ways to reach a goal."""
from __future__ import annotations

from thrifty.formats.template import Template
from thrifty.formats.wording.making import asked, open_

CAUSE = (
    *asked(
        "{premise}\n\nWhat was the {question} of this?",
        "Find the {question}.\n\n{premise}",
        "Which of the two is the likelier {question} of the following? {premise}",
        "Event: {premise}\nIts {question}:",
        "\"{premise}\" One of the sentences below tells the {question}. Which one?",
        "{premise}\nPick the sentence that is the {question} of it.",
        "As to its {question}, what would you guess?\n\n{premise}",
    ),
    *open_("{premise} What is the {question}?"),
    Template("Tell something of which the following is the {question}: {answer}", "{premise}"),
    Template("\"{answer}\" is the {question}. Of what?", "{premise}"),
)
EXAM = (
    *asked(
        "{question}",
        "Choose the right answer.\n\n{question}",
        "Question: {question}\nAnswer:",
        "What would you tick? {question}",
        "This was asked in an exam.\n\n{question}\n\nWhich answer gets the point?",
        "{question}\n\nOnly one of these is right.",
        "Think first, then pick: {question}",
        "One of the lines below answers this. {question}",
    ),
    *open_("Answer the question. {question}"),
    Template("To which question could \"{answer}\" be the answer?", "{question}"),
)
ENDING = (
    *asked(
        "{context}\n\nHow does it go on?",
        "Choose the ending that fits.\n\n{context}",
        "What happens next? {context}",
        "Beginning: {context}\nEnd:",
        "Only one of the lines below follows sensibly from this.\n\n{context}",
        "{context}\nWhich continuation is the likeliest?",
        "A story begins: \"{context}\" Finish it.",
        "Read on in your mind: {context}\nWhat did you see?",
    ),
    *open_("Continue: {context}"),
    Template("Write a beginning that ends well with \"{answer}\"", "{context}"),
)
PASSAGE = (
    *asked(
        "{context}\n\n{question}",
        "Read the text and choose the answer.\n\nText: {context}\n\nQuestion: {question}",
        "{question} Judge by this:\n\n{context}",
        "{context}\nWith that in mind, {question}",
        "Passage: {context}\nQ: {question}\nA:",
        "Which answer does the text support best?\n\n{context}\n\n{question}",
        "Between the lines of this one can find the answer to \"{question}\"\n\n{context}",
    ),
    *open_("{context}\n\nNow answer: {question}"),
    Template("{context}\n\nAsk something about this to which the answer is \"{answer}\"", "{question}"),
    Template("The answer was \"{answer}\" and the text is below. What was asked?\n\n{context}", "{question}"),
)
GOAL = (
    *asked(
        "{goal}\n\nHow is it done?",
        "Which of these would work?\n\nAim: {goal}",
        "Somebody wants this: {goal}\nWhat should he do?",
        "Goal: {goal}\nWay:",
        "Advise a friend. He asks: {goal}",
        "{goal} Choose the more sensible way.",
        "What would a handy person do? {goal}",
        "Only one of these leads there: {goal}",
    ),
    *open_("How would you go about this? {goal}"),
    Template("What does one reach in this way? {answer}", "{goal}"),
)
