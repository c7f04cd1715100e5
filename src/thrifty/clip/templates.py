"""Sentences that a class name is put into.

The lists are those published with CLIP (Radford et al., ICML 2021, arXiv:2103.00020) for ImageNet: all 80, the first 60 of them,
which PromptSRC learns from, and the selection of 7. ``HAND`` has one sentence for each of the data sets of the CoOp protocol
(Zhou et al., IJCV 2022, arXiv:2109.01134).
"""
from __future__ import annotations

from collections.abc import Sequence

from thrifty.core.errors import NoSuchSetting, nearest

DEFAULT = "a photo of a {}."
HAND: dict[str, str] = {
    **dict.fromkeys(("imagenet", "stanford-cars", "sun397", "caltech101"), DEFAULT),
    "oxford-pets": "a photo of a {}, a type of pet.",
    "oxford-flowers": "a photo of a {}, a type of flower.",
    "fgvc-aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "food101": "a photo of {}, a type of food.",
    "ucf101": "a photo of a person doing {}.",
}
_SEVEN = """itap of a {}.|a bad photo of the {}.|a origami {}.|a photo of the large {}.|a {} in a video game.|art of the {}.|
a photo of the small {}."""
_EIGHTY = """a bad photo of a {}.|a photo of many {}.|a sculpture of a {}.|a photo of the hard to see {}.|
a low resolution photo of the {}.|a rendering of a {}.|graffiti of a {}.|a bad photo of the {}.|a cropped photo of the {}.|
a tattoo of a {}.|the embroidered {}.|a photo of a hard to see {}.|a bright photo of a {}.|a photo of a clean {}.|
a photo of a dirty {}.|a dark photo of the {}.|a drawing of a {}.|a photo of my {}.|the plastic {}.|a photo of the cool {}.|
a close-up photo of a {}.|a black and white photo of the {}.|a painting of the {}.|a painting of a {}.|
a pixelated photo of the {}.|a sculpture of the {}.|a bright photo of the {}.|a cropped photo of a {}.|a plastic {}.|
a photo of the dirty {}.|a jpeg corrupted photo of a {}.|a blurry photo of the {}.|a photo of the {}.|a good photo of the {}.|
a rendering of the {}.|a {} in a video game.|a photo of one {}.|a doodle of a {}.|a close-up photo of the {}.|
a photo of a {}.|the origami {}.|the {} in a video game.|a sketch of a {}.|a doodle of the {}.|a origami {}.|
a low resolution photo of a {}.|the toy {}.|a rendition of the {}.|a photo of the clean {}.|a photo of a large {}.|
a rendition of a {}.|a photo of a nice {}.|a photo of a weird {}.|a blurry photo of a {}.|a cartoon {}.|art of a {}.|
a sketch of the {}.|a embroidered {}.|a pixelated photo of a {}.|itap of the {}.|a jpeg corrupted photo of the {}.|
a good photo of a {}.|a plushie {}.|a photo of the nice {}.|a photo of the small {}.|a photo of the weird {}.|
the cartoon {}.|art of the {}.|a drawing of the {}.|a photo of the large {}.|a black and white photo of a {}.|
the plushie {}.|a dark photo of a {}.|itap of a {}.|graffiti of the {}.|a toy {}.|itap of my {}.|a photo of a cool {}.|
a photo of a small {}.|a tattoo of the {}."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


LISTS: dict[str, tuple[str, ...]] = {
    "clip-7": _split(_SEVEN), "clip-8": (*_split(_SEVEN), DEFAULT), "clip-60": _split(_EIGHTY)[:60], "clip-80": _split(_EIGHTY),
}


def resolve(said: str | Sequence[str] | None) -> tuple[str, ...]:
    """Templates as they are meant: the name of a list or of a data set, sentences separated by "|", or a list of sentences.

    Raises:
        NoSuchSetting: a sentence has no place for the class, written {}, or more than one; or there is no sentence.
    """
    if said is None:
        return (DEFAULT,)
    if isinstance(said, str):
        named = LISTS.get(said) or ((HAND[said],) if said in HAND else None)
        if named is not None:
            return named
        if "{" not in said and "|" not in said:
            raise NoSuchSetting(f"templates: there is no list {said!r}, and it is no sentence, as it has no {{}} where the class "
                                "goes." + nearest(said, [*LISTS, *HAND], 20))
        said = _split(said)
    for one in said:
        if not isinstance(one, str) or one.count("{}") != 1:
            raise NoSuchSetting(f"templates: {one!r} must have {{}} once, where the class goes, as {DEFAULT!r} has")
    if not said:
        raise NoSuchSetting(f"templates must be at least one sentence, such as {DEFAULT!r}")
    return tuple(said)
