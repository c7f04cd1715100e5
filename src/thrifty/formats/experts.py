"""What other models read in a picture, put before the text: captions, words found by OCR, answers of a search.

LLaMA-Adapter V2: Parameter-Efficient Visual Instruction Model (Gao et al., 2023, arXiv:2304.15010) does so at inference: the
experts are not trained, and the language model is told what they say.

    consult(["What does the sign say?"], [picture], {"Caption": caption, "Text in the image": ocr})
    # ["Caption: a road sign\\nText in the image: STOP\\nWhat does the sign say?"]
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thrifty.core.errors import BadData

Expert = Callable[[Any], str]  # a picture, as its owner holds it -> what is in it, in words


def consult(prompts: Sequence[str], pictures: Sequence[Any], experts: Mapping[str, Expert],
            line: str = "{name}: {said}\n") -> list[str]:
    """Each prompt behind a ``line`` for every expert that has something to say about its picture; each picture is shown once.

    Raises:
        BadData: there are not as many pictures as prompts, the line names no ``{said}``, or an expert does not answer in words.
    """
    if len(prompts) != len(pictures):
        raise BadData(f"{len(prompts)} prompts come with {len(pictures)} pictures: give one for each")
    if "{said}" not in line:
        raise BadData(f"a line for what an expert said must hold {{said}}, as '{{name}}: {{said}}' does, not {line!r}")
    told = []
    for row, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        lines = []
        for name, expert in experts.items():
            said = expert(picture)
            if not isinstance(said, str):
                raise BadData(f"the expert {name!r} answers row {row} with {type(said).__name__}: it must give a string, empty "
                              "for nothing")
            if said.strip():
                lines.append(said.strip().join(line.replace("{name}", name).split("{said}")))
        told.append("".join(lines) + prompt)
    return told
