"""Images from bytes or files, always as upright 8-bit RGB."""
from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.core.errors import BadData, Missing

if TYPE_CHECKING:
    from PIL.Image import Image


def open(value: bytes | str | Path | Image) -> Image:
    """An image as PIL RGB: turned as its EXIF says, on white where it is transparent, 16-bit grey scaled to 8.

    ``value`` is the encoded bytes, a path, or a PIL image.

    Raises: Missing without pillow; BadData naming the file for an image that is empty, cut short, not an image, or has
        pixels whose range is not known.
    """
    name = describe(value)
    if isinstance(value, bytes | str | Path):
        return decode(name, load(value), shrink=False)
    return upright(name, value)


def inspect(value: bytes | str | Path) -> str:
    """sha256 of the encoded bytes of an image that can be decoded to its end.

    Raises: as `open`.
    """
    data = load(value)
    decode(describe(value), data, shrink=True)
    return hashlib.sha256(data).hexdigest()


def describe(value: Any) -> str:
    """What errors call an image."""
    return str(value) if isinstance(value, str | Path) else "the image"


def load(value: bytes | str | Path) -> bytes:
    """The encoded bytes.

    Raises: BadData for a file that cannot be read, or no bytes.
    """
    try:
        data = value if isinstance(value, bytes) else Path(value).read_bytes()
    except (OSError, ValueError) as error:
        raise BadData(f"{describe(value)} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not data:
        raise BadData(f"{describe(value)} is empty (zero bytes).")
    return data


def decode(name: str, data: bytes, shrink: bool) -> Image:
    """Bytes as RGB. ``shrink`` lets JPEG decode at an eighth of its size, which still reads every byte."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Missing('reading images needs pillow: pip install "thrifty[images]".') from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            if shrink:
                image.draft("RGB", (1, 1))
            image.load()
            return upright(name, image, wide=image.format == "PNG")
    except BadData:
        raise
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise BadData(f"{name} cannot be decoded: {type(error).__name__}: {error}.") from error


def upright(name: str, image: Image, wide: bool = False) -> Image:
    """A decoded image of any mode as upright RGB. ``wide`` says that pixels of 32 bit hold no more than 16.

    Raises: BadData for 32-bit pixels, whose range is not known.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (wide and image.mode == "I"):  # PNG has no more, but some versions of PIL read it as I
        image = narrow(image)
    elif image.mode in ("I", "F"):
        raise BadData(f"{name} has 32-bit pixels (mode {image.mode}) whose range is not known: convert it to 8 or 16 bit.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def narrow(image: Image) -> Image:
    """16-bit grey as 8-bit grey: 65535 becomes 255. PIL's own conversion cuts everything above 255 off."""
    import numpy
    from PIL import Image

    wide = numpy.asarray(image).astype(numpy.float64)
    return Image.fromarray(numpy.rint(wide / 257).astype(numpy.uint8))
