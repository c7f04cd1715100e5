"""The README says what is there."""
from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from thrifty.methods import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]


def catalogue():
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "docs" / "catalogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lists_of_methods_are_those_of_the_catalogue():
    made = catalogue()
    text = (ROOT / "README.md").read_text()
    assert made.written(text) == text, "run `python docs/catalogue.py`"
    rows = [line.split(" | ") for line in made.METHODS.read_text().splitlines() if line.startswith("| `")]
    there = [[row[0].removeprefix("| "), row[1], *(cell.removesuffix(" |") for cell in row[-3:])] for row in rows]
    wanted = [[made.names(m), m.trains, *made.about(m)] for route in made.ROUTES for m in CATALOGUE.values() if m.route == route]
    assert there == wanted, "run `python docs/catalogue.py`"


def test_the_counts_in_the_catalogue_are_those_of_the_papers():
    """LoRA on q and v of BERT-base at rank 8, Houlsby at 64, CoOp's 16 vectors, TaskRes."""
    made = catalogue()
    wanted = {("lora", "BERT"): 12 * 2 * 2 * 8 * 768, ("houlsby", "BERT"): 24 * (2 * 768 * 64 + 64 + 768) + 25 * 2 * 768,
              ("coop", "CLIP"): 16 * 512, ("taskres", "CLIP"): 10 * 512}
    for (name, shape), number in wanted.items():
        found = made.count(CATALOGUE[name], made.SHAPES[shape])
        assert found == f"{number:,}", (name, shape, found)


def test_every_method_cites_its_paper_and_says_what_it_trains():
    for method in CATALOGUE.values():
        assert re.search(r"\b(19|20)\d\d\b", method.paper) or method.name in ("full", "linear-probe"), method
        assert method.route and method.trains and method.inference, method


def test_every_file_with_a_method_names_its_paper():
    for method in CATALOGUE.values():
        about = sys.modules[method.__module__].__doc__
        assert re.search(r"(19|20)\d\d", about) or method.name in ("full", "linear-probe"), method.__module__


def test_importing_thrifty_imports_nothing_heavy():
    heavy = ["transformers", "accelerate", "pyarrow", "PIL", "datasets", "peft", "sklearn", "scipy", "timm", "yaml"]
    code = f"import sys, thrifty; thrifty.LoRA, thrifty.attach, thrifty.load; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_links_in_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
