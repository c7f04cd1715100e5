"""The Hugging Face hub, and folders that `datasets` saved."""
from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from thrifty.core.errors import BadData, Missing
from thrifty.data.memory import digest
from thrifty.data.rows import Given, Rows, from_columns
from thrifty.data.splitnames import name_splits
from thrifty.data.tables import find_class_names


def looks_like_id(source: str) -> bool:
    """Whether ``source`` could be a hub id: "name", "owner/name", either with ":config" behind it."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?", source) is not None


def is_saved(folder: Path) -> bool:
    """Whether ``folder`` was written by `datasets.save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_hub(source: str) -> Given:
    """All splits of the hub data set ``source``, which is "owner/name" or "owner/name:config".

    Raises: Missing without `datasets`; BadData when the hub cannot be reached or has no such set.
    """
    built_in = "The set that ships with thrifty and needs no network is 'cityline'."
    try:
        import datasets
    except ImportError as error:
        raise Missing(
            f"{source!r} is no file or folder here, and reading it from the Hugging Face hub needs datasets: "
            f'pip install "thrifty[hub]". {built_in}'
        ) from error
    name, _, config = source.partition(":")
    try:
        with offline_if_unreachable():
            loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # the hub's client raises a dozen unrelated classes; all mean "could not be had"
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        raise BadData(
            f"{source!r} is no file or folder here, and it could not be read from the Hugging Face hub ({reason}). {built_in}"
        ) from error
    return give("hub", source, loaded)


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Without a network, look only in the hub's cache: its client would otherwise try again for half a minute."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not can_resolve(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def can_resolve(endpoint: str) -> bool:
    """Whether the host of a URL has an address; behind a proxy that is the proxy's business, so yes."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True


def read_saved(folder: Path) -> Given:
    """A folder written by `datasets.save_to_disk`, of one table or of splits.

    Raises: Missing without `datasets`; BadData when the folder is incomplete.
    """
    try:
        import datasets
    except ImportError as error:
        raise Missing(f'{folder} was saved by datasets, which is needed to read it: pip install "thrifty[hub]".') from error
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow, json and OS errors alike mean a broken folder
        raise BadData(f"{folder} was saved by datasets but cannot be read: {type(error).__name__}: {error}") from error
    return give("saved", str(folder), loaded)


def give(kind: str, name: str, loaded: Any) -> Given:
    """A `Dataset` or `DatasetDict` as splits."""
    given = Given(kind, name, {})
    tables = loaded if isinstance(loaded, dict) else {"": loaded}
    meant, unknown = ({"": ""}, []) if "" in tables else name_splits(tables, name)
    for key, split in meant.items():
        rows = given.splits[split] = read_dataset(key or "data", tables[key])
        given.files.append({"name": key or "data", "sha256": digest(rows), "rows": len(rows)})
    if unknown:
        given.notes.append(f"splits other than train, validation and test were not read: {', '.join(unknown)}.")
    return given


def read_dataset(name: str, table: Any) -> Rows:
    """One `datasets.Dataset` as rows, images as bytes rather than decoded."""
    import datasets

    table = table.with_format(None)
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    rows = from_columns(name, table.to_dict())
    rows.class_names = find_class_names(table.features.to_dict())
    return rows
