"""Questions about a passage: yes or no, right or wrong, or answered with words of it."""
from __future__ import annotations

from thrifty.formats.template import Template
from thrifty.formats.wording.making import asked, open_

YES_NO = (
    *asked(
        "{text}\n\nGoing by this passage: {question}?",
        "Answer from the text, with one word.\n\nText: {text}\n\nQuestion: {question}?",
        "{question}? The following should tell.\n\n{text}",
        "{title}\n\n{text}\n\nQ: {question}?",
        "Somebody who has read only this was asked \"{question}?\" What did he say?\n\n{text}",
        "Passage: {text}\nNow say whether this is so: {question}?",
        "Consult the article on {title} and answer: {question}?\n\n{text}",
    ),
    *open_(
        "{text}\n\nTrue to the text, {question}?",
        "Yes or no: {question}?\n\n{text}",
    ),
    Template("Ask something about this text that is to be answered with \"{answer}\".\n\n{text}", "{question}"),
)
RESPONSE = (
    *asked(
        "{paragraph}\n\nQuestion: {question}\nSuggested answer: {response}\n\nIs the suggestion right?",
        "A pupil read the paragraph, was asked \"{question}\" and said \"{response}\" Does he get the point?\n\n{paragraph}",
        "Check an answer against the text.\n\nText: {paragraph}\n\nAsked: {question}\n\nAnswered: {response}",
        "{question}\nIs \"{response}\" a correct answer, if this is what we know?\n\n{paragraph}",
        "{paragraph}\n\nOne may answer the question \"{question}\" with \"{response}\". Is that true?",
        "Going by the paragraph, does \"{response}\" answer \"{question}\"?\n\n{paragraph}",
        "Mark the answer.\nParagraph: {paragraph}\nQuestion: {question}\nAnswer: {response}\nRight?",
        "{paragraph}\n{question} Perhaps {response}?",
    ),
    *open_("{paragraph}\n\nTo \"{question}\", is \"{response}\" a good answer?"),
    Template("{paragraph}\n\nThink of an answer to \"{question}\" that a teacher would mark with \"{answer}\".", "{response}"),
)
READING = (
    *open_(
        "{context}\n\n{question} If the text does not say, write \"unanswerable\".",
        "Answer with words of the text, or with \"unanswerable\".\n\nText: {context}\n\nQuestion: {question}",
        "{question}\nLook it up in the following. If it is not there, say \"unanswerable\".\n\n{context}",
        "{title}\n\n{context}\n\nQ: {question} (\"unanswerable\" is an answer too)",
        "Copy the part of the passage that answers \"{question}\", or write \"unanswerable\" if there is none.\n\n{context}",
        "Passage: {context}\nQuestion: {question}\nAnswer, or \"unanswerable\":",
        "Whoever knows only this text, what does he reply to \"{question}\"? Or is it unanswerable for him?\n\n{context}",
        "Does the text tell? {question} If not, the answer is \"unanswerable\".\n\n{context}",
    ),
    Template("{context}\n\nThink of a question about this text to which the right reply is \"{answer}\".", "{question}"),
    Template("The text below gets the reply \"{answer}\". What was the question?\n\n{context}", "{question}"),
)
