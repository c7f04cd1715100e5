"""Every measurement of speed and memory, one after the other, on one page with what the machine can do at most.

    python benchmarks/bench.py [--only machine,train_step] [--small]

Writes docs/bench.md as it goes: a section for each script, with its command and what it printed. What fails, or lacks a package,
is said in its place. The machine should do nothing else meanwhile; all of it takes hours on two cores. ``--small`` is a short round
that shows that everything runs, and prints instead of writing.
"""
from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "bench.md"
SCRIPTS: dict[str, tuple[str, str]] = {  # what it says, and the arguments of a short round
    "machine": ("What the machine can do at most", ""),
    "train_step": ("A training step", "--small --repeats 1"),
    "trunk": ("The frozen trunk, once per row", "--rows 32 --repeats 1 --only minilm --methods linear-probe"),
    "plan_accuracy": ("What `thrifty plan` foretells, and what is then measured", "--small --steps 2 --only llama"),
    "four_bits": ("A base in four bits", "--repeats 1 --batch 1 --length 32"),
    "mixed_batch": ("Rows with adapters of their own", "--repeats 1 --adapters 1,4 --rows 8 --tokens 1"),
    "overheads": ("What is not arithmetic", "--repeats 1 --only import,site,load"),
    "logme": ("A transferability score", "--rows 1000 --dimensions 64 --classes 10 --repeats 1"),
}


def run(name: str, small: bool) -> str:
    """A script's section."""
    title, brief = SCRIPTS[name]
    words = [f"benchmarks/{name}.py", *(brief.split() if small else [])]
    print(f"{' '.join(words)} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *words], cwd=HERE.parent, capture_output=True, text=True)
    said = done.stdout.strip()
    if done.returncode:
        said = f"{said}\n\nNot measured to the end: {(done.stderr.strip().splitlines() or ['?'])[-1]}".strip()
    body = said if said.startswith("|") or "\n|" in said else f"```\n{said}\n```"
    return f"## {title}\n\n`python {' '.join(words)}`\n\n{body}\n"


def main() -> None:
    """Run them, and keep the page up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCRIPTS))
    parser.add_argument("--small", action="store_true", help="a short round, printed")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := [name for name in names if name not in SCRIPTS]:
        parser.error(f"there is no measurement {unknown[0]!r}, but {', '.join(SCRIPTS)}")
    page = [f"# Measured by `make bench`\n\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.\n"]
    for name in names:
        page.append(run(name, args.small))
        if not args.small:
            PAGE.write_text("\n".join(page))
    if args.small:
        print("\n".join(page))


if __name__ == "__main__":
    main()
