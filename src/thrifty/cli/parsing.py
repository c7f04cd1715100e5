"""Command lines and files of settings into typed values; a word that nobody knows is answered with the nearest one."""
from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from thrifty.core.errors import NoSuchSetting, nearest

PAIR = re.compile(r"[\w.-]+=[^{}]*$")


class Parser(argparse.ArgumentParser):
    """As `argparse`, but mistakes are raised, options are never abbreviated, and help keeps its examples as written."""

    def __init__(self, command: str, about: str, examples: Iterable[str]) -> None:
        super().__init__(prog=f"thrifty {command}", description=about, allow_abbrev=False,
                         epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The arguments.

        Raises:
            NoSuchSetting: one is unknown, missing, or not of the kind it must be.
        """
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            kind = "option" if rest[0].startswith("-") else "argument"
            hint = nearest(rest[0].partition("=")[0], options, 40) if kind == "option" else ""
            raise NoSuchSetting(f"{self.prog} has no {kind} {rest[0]!r}.{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """A mistake in the command line, raised instead of printed."""
        raise NoSuchSetting(f"{message} ({self.prog} --help lists what there is)")


def typed(name: str, raw: str, kind: str) -> Any:
    """``raw`` as the type that a field is annotated with, such as "float | None"; texts stay as they are.

    Raises:
        NoSuchSetting: it is no such value.
    """
    kinds = [part.strip() for part in kind.split("|")]
    if "None" in kinds and raw.lower() in ("none", "null"):
        return None
    if "bool" in kinds and raw.lower() in ("true", "false", "yes", "no"):
        return raw.lower() in ("true", "yes")
    for part, make in (("int", int), ("float", float)):
        if part in kinds:
            try:
                return make(raw)
            except ValueError:
                continue
    mapped = any(part.startswith("dict") for part in kinds)
    told = mapped and all(PAIR.match(part.strip()) for part in raw.split(","))  # and no text of its own, as formats may be
    if ("str" in kinds and not told) or any(part.startswith("Literal") for part in kinds):
        return raw
    if mapped:
        return pairs([part for part in raw.split(",") if part.strip()], name)
    try:
        return json.loads(raw)
    except ValueError:
        raise NoSuchSetting(f"{name} must be {kind.replace(' | None', '')}, not {raw!r}") from None


def pairs(words: Iterable[str], option: str) -> dict[str, str]:
    """``key=value`` words as a mapping.

    Raises:
        NoSuchSetting: a word without "=", or a key twice.
    """
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise NoSuchSetting(f"{option} takes key=value, not {word!r}")
        if key.strip() in found:
            raise NoSuchSetting(f"{option} gives {key.strip()!r} twice")
        found[key.strip()] = value.strip()
    return found


def add_settings(group: argparse._ArgumentGroup, kind: type[Any]) -> None:
    """One option for each field of a dataclass of settings, with what the field says of itself."""
    for one in fields(kind):
        option, about = "--" + one.name.replace("_", "-"), one.metadata["about"]
        if one.type == "bool":
            group.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=about)
        else:
            shown = "" if one.default is None else f" (default: {one.default})"
            group.add_argument(option, metavar=_metavar(str(one.type)), help=(about + shown).replace("%", "%%"))


def _metavar(kind: str) -> str:
    return {"int": "N", "float": "X", "str": "NAME", "dict[str, Any]": "NAME=VALUE"}.get(kind.replace(" | None", ""), "NAME")


def field_kinds(kind: type[Any]) -> dict[str, str]:
    """Field of a dataclass -> its annotation as text."""
    return {f.name: str(f.type) for f in fields(kind)}


def settle(values: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Texts from a command line or file as the types of their fields; other values as they are. Unknown names pass."""
    return {name: typed(name, value, kinds[name]) if isinstance(value, str) and name in kinds else value
            for name, value in values.items()}


def read_file(path: str) -> dict[str, Any]:
    """Settings from a YAML, TOML or JSON file.

    Raises:
        NoSuchSetting: the file is missing, of another kind, or not an object of names and values.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NoSuchSetting(f"the settings file {path!r} cannot be read: {error}") from None
    try:
        found = _parse(file.suffix.lower(), text)
    except ValueError as error:
        raise NoSuchSetting(f"{path} is not what its name says: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise NoSuchSetting(f"{path} must hold names and values, not {type(found).__name__}")
    return found


def _parse(suffix: str, text: str) -> Any:
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if suffix in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(error) from None
    raise ValueError(f"settings files end in .yaml, .toml or .json, not {suffix!r}")
