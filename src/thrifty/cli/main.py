"""The program `thrifty`: its table of contents, and the way from a command to its file.

Nothing heavy is imported before a command is chosen, so that help is there at once.
"""
from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "tune": "adapt a model to your data, and measure it once on test rows it never saw",
    "in-context": "answer from demonstrations in front of each question, without any training",
    "rank": "which pretrained model will transfer best to your data, before any is tuned",
    "predict": "answer new rows with a trained adapter",
    "plan": "what a training would take, by every method, before anything is loaded",
    "inspect": "sites and roles of a model; what a method would touch, before touching it",
    "methods": "every method there is, with its paper and what it trains",
    "compress": "distil an image-text model into smaller ones that begin with its weights",
    "merge": "fold an adapter into its base model",
    "convert": "between this library's adapter folders and those of Hugging Face PEFT",
    "report": "make the report of a run again from its files",
}
EXAMPLES = (
    "thrifty tune --model minilm --data cityline --method lora --out runs/first",
    'thrifty predict runs/first --text "The lamp at our corner has been dark for a week"',
    "thrifty inspect minilm --method lora --set rank=16",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 in part, 2 a mistake that the message explains, 130 stopped by the user."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(words)
    except KeyboardInterrupt as stopped:
        print(f"thrifty: {str(stopped) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from thrifty.core.errors import ThriftyError

        if not isinstance(error, ThriftyError):
            raise
        print(f"thrifty: {error}", file=sys.stderr)
        return 2


def run(words: list[str]) -> int:
    """Find the command and hand it the rest of the line.

    Raises:
        NoSuchSetting: there is no such command.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(contents())
        return 0
    if words[0] in ("-V", "--version"):
        from thrifty import __version__

        print(f"thrifty {__version__}")
        return 0
    if words[0] not in COMMANDS:
        from thrifty.core.errors import NoSuchSetting, nearest

        raise NoSuchSetting(f"there is no command {words[0]!r}." + nearest(words[0], COMMANDS))
    command = importlib.import_module(f"thrifty.cli.{words[0].replace('-', '_')}")
    code: int | None = command.run(command.parser().parse_args(words[1:]), words)
    return code or 0


def contents() -> str:
    """What `thrifty --help` prints."""
    wide = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{wide}}  {about}" for name, about in COMMANDS.items())
    examples = "\n".join(f"  {example}" for example in EXAMPLES)
    return (f"thrifty adapts large pretrained models with little memory, time, data and storage.\n\nCommands:\n{listed}\n\n"
            f"Examples:\n{examples}\n\nthrifty COMMAND --help says more; thrifty --version says which.")
