"""From the files of a finished run to one page that explains it."""
from __future__ import annotations

import os
from pathlib import Path

from thrifty.report.page import compose
from thrifty.report.reading import read

__all__ = ["write"]


def write(run_folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into ``run_folder`` from the files that lie there, and return its path.

    Raises:
        BrokenArtifact: the folder holds no metrics.json, or a file does not say what ``thrifty.report.files`` says it must.
    """
    folder = Path(run_folder)
    page = compose(read(folder))
    path = folder / "report.html"
    partial = folder / f".report.html.{os.getpid()}"
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
