"""Short ways to write templates down."""
from __future__ import annotations

from thrifty.formats.template import OPTIONS, Template

Templates = tuple[Template, ...]


def asked(*texts: str) -> Templates:
    """Direct instructions that end, behind a blank line, with the list of answers."""
    return tuple(Template(f"{text}\n\n{{{OPTIONS}}}") for text in texts)


def open_(*texts: str) -> Templates:
    """Direct instructions that list no answers."""
    return tuple(map(Template, texts))


def inverse(**targets: str) -> Templates:
    """Instructions that tell the answer and ask for a field: ``field="instruction"``."""
    return tuple(Template(text, f"{{{field}}}") for field, text in targets.items())
