"""The document around a page's parts: one file that shows everything and loads nothing."""
from __future__ import annotations

from collections.abc import Iterable

from thrifty.report.markup import text
from thrifty.report.style import STYLE

# Even if something slipped through the escaping, a browser would neither run nor fetch it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def document(title: str, parts: Iterable[str]) -> str:
    """HTML with this title (plain text) and the ready ``parts`` that are not empty."""
    return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(part for part in parts if part)
            + "\n<footer>Written by thrifty. This file is complete in itself and loads nothing from a network.</footer>\n"
            "</main>\n</body>\n</html>\n")
