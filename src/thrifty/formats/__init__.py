"""Tasks as text: T5's formats, instructions in several wordings, texts of your own, and demonstrations in front of a question.

A format writes a row as a text, says which text answers it, and reads an answer back. `find` gets one by name.
"""
from thrifty.formats.finding import find, names
from thrifty.formats.format import Field, Format, Unwritable

__all__ = ["Field", "Format", "Unwritable", "find", "names"]
