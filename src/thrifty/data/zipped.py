"""A data set in a zip archive, read in place: nothing is unpacked to disk, so nothing in it can be written anywhere."""
from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from thrifty.core.errors import BadData

LARGEST = 4 << 30   # bytes of all files together, unpacked: pictures stay in memory
MOST = 1_000_000    # files
DAMAGED = (BadZipFile, OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError)  # as `zipfile` has it


class Member:
    """A file or folder in an archive, which is asked like a `Path`. The archive itself is a folder without a parent."""

    def __init__(self, name: str, parent: Member | None, archive: ZipFile, entry: ZipInfo | None = None) -> None:
        self.name, self.archive, self.entry = name, archive, entry
        self.parent = self if parent is None else parent
        self.below: dict[str, Member] = {}

    @property
    def suffix(self) -> str:
        """From the last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without the suffix."""
        return PurePosixPath(self.name).stem

    def is_file(self) -> bool:
        """Whether it has contents."""
        return self.entry is not None

    def is_dir(self) -> bool:
        """Whether it holds others."""
        return self.entry is None

    def iterdir(self) -> Iterator[Member]:
        """What lies directly in a folder."""
        return iter(self.below.values())

    def __truediv__(self, name: str) -> Member:
        return self.below[name]

    def __lt__(self, other: Member) -> bool:
        return self.name < other.name

    def __str__(self) -> str:
        return self.name if self.parent is self else f"{self.parent}/{self.name}"

    def find(self, path: str) -> Member | None:
        """The file at ``path``, seen from this folder; None where the archive has none, or the path leads out of it."""
        here: Member | None = self
        for part in path.split("/"):
            if here is None or (part == ".." and here.parent is here):
                return None
            here = here.parent if part == ".." else here if part == "." else here.below.get(part)
        return here if here is not None and here.is_file() else None

    def read_bytes(self) -> bytes:
        """The contents of a file, verified by the archive's own checksum.

        Raises: BadData for contents that are damaged, or packed in a way that is not known.
        """
        assert self.entry is not None, f"{self} is a folder"
        try:
            with self.archive.open(self.entry) as stream:
                return stream.read(self.entry.file_size)  # never more than was said before anything was read
        except DAMAGED as error:
            raise BadData(f"{self} cannot be read: {error}.") from error


Entry = Path | Member
"""A file or folder, on disk or in an archive."""


def open_zip(path: Path, name: str) -> Member:
    """The archive at ``path`` as a folder that is called ``name``.

    Raises: BadData for a file that is no archive; one that is encrypted, too large, or holds a name twice or one that is not a
        plain path inside it.
    """
    try:
        archive = ZipFile(path)
    except DAMAGED as error:
        raise BadData(f"{name} is not a zip archive that can be read: {error}.") from error
    files = [entry for entry in archive.infolist() if not entry.is_dir()]
    refuse_unfit(name, files)
    root = Member(name, None, archive)
    for entry in files:
        *folders, last = entry.filename.split("/")
        if folders[:1] == ["__MACOSX"]:  # what macOS notes beside the files themselves
            continue
        place = root
        for part in folders:
            place = place.below.setdefault(part, Member(part, place, archive))
        if last in place.below or place.is_file():
            raise BadData(f"{name} holds {entry.filename!r} twice.")
        place.below[last] = Member(last, place, archive, entry)
    return root


def refuse_unfit(name: str, files: list[ZipInfo]) -> None:
    """Raises: BadData for files that lead out of the archive, are encrypted, too many or too large."""
    for entry in files:
        parts = entry.filename.split("/")
        if "" in parts or ".." in parts or "." in parts or "\\" in entry.filename:
            raise BadData(f"{name} holds {entry.filename!r}, which is not a plain path inside it; it is not read.")
        if entry.flag_bits & 1:
            raise BadData(f"{name} is encrypted ({entry.filename!r}): unpack it, and name the folder.")
    size = sum(entry.file_size for entry in files)
    if size > LARGEST or len(files) > MOST:
        raise BadData(f"{name} holds {len(files):,} files of {size / 2**30:.1f} GiB, and at most {MOST:,} files of "
                      f"{LARGEST / 2**30:.1f} GiB are read from an archive: unpack it, and name the folder.")
