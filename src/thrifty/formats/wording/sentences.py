"""What is said of one text: how it feels, whether it is well formed, what it is about, which class it has."""
from __future__ import annotations

from thrifty.formats.template import Template
from thrifty.formats.wording.making import asked, open_

SENTIMENT = (
    *asked(
        "{text}\n\nHow does the writer feel about it?",
        "Read this and name its mood.\n\n{text}",
        "Somebody wrote: \"{text}\" Was that praise or blame?",
        "Opinion: {text}\nIs this opinion good or bad?",
        "Would the person who wrote the following recommend it?\n\n{text}\n\nName the sentiment.",
        "Which sentiment speaks from these words? {text}",
        "{text}\nJudging by the words alone, which feeling prevails?",
    ),
    *open_("What is the sentiment of \"{text}\"?"),
    Template("Write a short opinion whose sentiment is {answer}.", "{text}"),
    Template("How might somebody put it whose feelings are {answer}?", "{text}"),
)
ACCEPTABILITY = (
    *asked(
        "{sentence}\n\nWould a native speaker find this sentence well formed?",
        "Judge the grammar of one sentence.\n\n{sentence}",
        "An editor reads \"{sentence}\" Does its grammar pass?",
        "Sentence: {sentence}\nIs this English as it is spoken and written?",
        "Is anything wrong with the way the following sentence is built?\n\n{sentence}\n\nCall it by one of the words below.",
        "{sentence}\nLinguistically speaking, what is that?",
        "Mark the sentence for its form, not for what it says: {sentence}",
        "Could this stand in a grammar book without an asterisk? {sentence}",
    ),
    *open_("Is the sentence \"{sentence}\" acceptable or unacceptable English?"),
    Template("Make up a sentence whose grammar is {answer}.", "{sentence}"),
)
TOPIC = (
    *asked(
        "{text}\n\nIn which section of a newspaper does this belong?",
        "Sort the article by its subject.\n\n{text}",
        "What is the following report about?\n\n{text}",
        "Report: {text}\nSubject?",
        "\"{title}\"\n\n{text}\n\nWhich desk of the newsroom wrote that?",
        "{text}\nUnder which heading would you file it?",
        "A reader follows one subject only. Which one makes this piece interesting to him?\n\n{text}",
    ),
    *open_("Name the topic of this news item: {text}"),
    Template("Write the beginning of an article for the section {answer}.", "{text}"),
    Template("Write an article headed \"{title}\" for the section {answer}.", "{text}"),
)
CLASSES = (
    *asked(
        "{text}\n\nWhich of these fits?",
        "Choose the right class for the text.\n\n{text}",
        "Text: {text}\nClass?",
        "How would you label the following?\n\n{text}",
        "Sort \"{text}\" into one of the groups below.",
        "{text}\nTo which group does that belong?",
        "Read the text and pick one of the answers.\n\n{text}",
        "One of the words below describes this text. Which one?\n\n{text}",
    ),
    Template("Write a text that would be labelled \"{answer}\".", "{text}"),
    Template("What could be an example of \"{answer}\"?", "{text}"),
)
