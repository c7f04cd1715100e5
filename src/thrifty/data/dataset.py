"""What `read` returns: canonical splits, with the test split behind a door that opens once."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data.rows import Table

READ_ONCE = (
    "the test split is read once, at the end, with Dataset.test(): a choice made after looking at it would make the "
    "score too good. Use 'validation' to compare; Dataset.test_rows gives the number of test rows."
)


class Splits(dict[str, Table]):
    """Train and validation by name. Asking for "test" is an error."""

    def __missing__(self, name: str) -> Table:
        if name == "test":
            raise BadData(READ_ONCE)
        raise BadData(f"there is no split {name!r}; there are {sorted(self)} and test, which is behind Dataset.test().")

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`, but "test" is an error here too."""
        return self[name] if name == "test" else super().get(name, default)


@dataclass
class Dataset:
    """Rows ready for a task.

    ``splits``: "train" and "validation", each a dict of columns (text, label, …) of equal length. Give "test" when
    making one; it then lies behind `test`.
    ``columns``: role -> the name the column had. ``labels``: the names of the classes; a label is an index into it.
    ``record``: plain JSON on where the rows came from and what was decided. ``format``: by name, how the rows were written as
    text, and ``words``, which spell classes otherwise; the splits then hold the texts (``text`` or ``source``, and ``target``)
    beside what they are judged by.
    """

    splits: dict[str, Table]
    columns: dict[str, str]
    task: str
    labels: list[str] | None
    record: dict[str, Any] = field(default_factory=dict)
    format: str | None = None
    words: dict[str, str] | None = None

    def __post_init__(self) -> None:
        splits = dict(self.splits)
        self._test: Table | None = splits.pop("test", None)
        self._test_rows = len(next(iter(self._test.values()), [])) if self._test else 0
        self.splits = Splits(splits)

    @property
    def test_rows(self) -> int:
        """How many rows the test split has. Asking does not open it."""
        return self._test_rows

    def number_classes(self, labels: list[str]) -> None:
        """Count the classes as ``labels`` does, which has all of them and perhaps more, in every split."""
        place = [labels.index(label) for label in self.labels or []]
        for table in (*self.splits.values(), *([self._test] if self._test else [])):
            for role in table.keys() & {"label", "tags"}:
                table[role] = [[place[tag] for tag in value] if isinstance(value, list) else place[value] for value in table[role]]
        self.labels = self.record["labels"] = labels

    def test(self) -> Table:
        """The test split.

        Raises: BadData on the second call, or if there is none.
        """
        if self._test is None:
            raise BadData("the test split was already read: " + READ_ONCE if self._test_rows else "there is no test split.")
        table, self._test = self._test, None
        return table
