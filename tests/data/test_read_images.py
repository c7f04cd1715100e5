"""Images: folders and columns, every pixel format, and files that are broken."""
from __future__ import annotations

import io

import numpy
import pytest

from thrifty.core.errors import BadData
from thrifty.data import images, read

Image = pytest.importorskip("PIL.Image")


def picture(seed, size=(12, 9)):
    noise = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(noise)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def fill(folder, classes=("ape", "bee"), count=12, start=0):
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i:03}.png").write_bytes(encode(picture(start + 1000 * c + i)))
    return folder


def test_classes_are_folders(tmp_path):
    fill(tmp_path)
    (tmp_path / "ape" / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    data = read(tmp_path)
    assert data.task == "image-classification" and data.labels == ["ape", "bee"]
    assert data.record["rows"] == {"train": 20, "validation": 2, "test": 2}
    train = data.splits["train"]
    assert all(data.labels[label] in path for path, label in zip(train["image"], train["label"], strict=True))
    assert images.open(train["image"][0]).size == (12, 9)
    assert "notes.txt" in " ".join(data.record["decisions"])


def test_splits_of_classes(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", start=100, count=5)
    fill(tmp_path / "test", start=200, count=4)
    assert read(tmp_path).record["rows"] == {"train": 24, "validation": 10, "test": 8}
    (tmp_path / "test" / "bee" / "000.png").write_bytes((tmp_path / "train" / "ape" / "003.png").read_bytes())
    with pytest.raises(BadData, match=r"train/ape/003\.png and test/bee/000\.png"):
        read(tmp_path)
    assert read(tmp_path, allow_leak=True).record["leaks"]["pairs"] == 1


def test_layouts_that_cannot_be_meant(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(BadData, match="class folder train/empty holds no image"):
        read(tmp_path)
    (tmp_path / "train" / "empty").rmdir()
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "x.png").write_bytes(encode(picture(1)))
    with pytest.raises(BadData, match="two depths"):
        read(tmp_path)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "x.png").write_bytes(encode(picture(1)))
    with pytest.raises(BadData, match="1 images without a class folder"):
        read(tmp_path / "flat")


@pytest.mark.parametrize("content, words", [
    (b"", "is empty"), (encode(picture(5, (90, 90)))[:4000], "cannot be decoded"),
    (encode(picture(5, (90, 90)), "JPEG")[:2000], "cannot be decoded"), (b"words", "cannot be decoded"),
])  # fmt: skip
def test_broken_files_are_named_and_can_be_skipped(tmp_path, content, words):
    fill(tmp_path)
    (tmp_path / "bee" / "004.png").write_bytes(content)
    with pytest.raises(BadData, match=f"(?s)1 row cannot be used.*bee/004.png.*{words}"):
        read(tmp_path)
    data = read(tmp_path, skip_bad=True)
    assert sum(data.record["rows"].values()) == 23 and data.record["skipped"][0]["file"] == "bee/004.png"
    with pytest.raises(BadData, match=words):
        images.open(tmp_path / "bee" / "004.png")


def test_images_in_tables(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    held = [encode(picture(i)) for i in range(30)]
    labels = [i % 2 for i in range(30)]
    for column in (held, [{"bytes": value, "path": "x.png"} for value in held]):
        table = pa.table({"image": column, "label": labels, "source_path": ["a/b.jpg"] * 30})
        parquet.write_table(table, tmp_path / "d.parquet")
        data = read(tmp_path / "d.parquet")
        assert data.task == "image-classification" and data.columns == {"image": "image", "label": "label"}
        assert sorted(data.splits["train"]["image"] + data.splits["validation"]["image"] + data.test()["image"]) == sorted(held)
    column = [*held[:7], b"", *held[8:]]
    parquet.write_table(pa.table({"image": column, "label": labels}), tmp_path / "d.parquet")
    with pytest.raises(BadData, match=r"d\.parquet row 8: the image is"):
        read(tmp_path / "d.parquet")


def test_paths_are_relative_to_the_table(tmp_path):
    fill(tmp_path / "pictures")
    lines = ["file,label"] + [f"pictures/{name}/{i:03}.png,{name}" for name in ("ape", "bee") for i in range(12)]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    data = read(tmp_path / "data.csv")
    assert data.task == "image-classification" and data.columns["image"] == "file"
    assert images.open(data.splits["train"]["image"][0]).mode == "RGB"
    (tmp_path / "pictures" / "ape" / "000.png").unlink()
    with pytest.raises(BadData, match=r"data\.csv row 1: .*000\.png cannot be read: No such file"):
        read(tmp_path / "data.csv")


def test_text_beside_an_image_is_ambiguous():
    table = {"image": [encode(picture(i)) for i in range(30)], "label": [0, 1] * 15,
             "sentence": [f"there is one yellow tower, {i}" for i in range(30)]}  # fmt: skip
    with pytest.raises(BadData, match="image-classification and text-classification"):
        read(table)
    assert read(table, task="image-classification").columns == {"image": "image", "label": "label"}
    assert read(table, columns={"text": "sentence"}).task == "text-classification"


def pixel(image):
    return images.open(encode(image)).getpixel((0, 0))


def test_every_mode_becomes_rgb():
    red = Image.new("RGB", (4, 4), (200, 30, 40))
    assert images.open(red).getpixel((0, 0)) == pixel(red) == (200, 30, 40)
    assert pixel(Image.new("L", (4, 4), 77)) == (77, 77, 77)
    assert pixel(Image.new("1", (4, 4), 1)) == (255, 255, 255)
    assert pixel(Image.new("RGBA", (4, 4), (0, 0, 0, 0))) == (255, 255, 255)
    assert pixel(Image.new("RGBA", (4, 4), (255, 0, 0, 51))) == (255, 204, 204)
    assert pixel(Image.new("LA", (4, 4), (0, 0))) == (255, 255, 255)
    palette = red.quantize(4)
    assert pixel(palette) == (200, 30, 40)
    stream = encode(palette, transparency=0)
    assert images.open(stream).getpixel((0, 0)) == (255, 255, 255)
    cyan = images.open(encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95)).getpixel((4, 4))
    assert cyan[0] < 12 and cyan[1] > 240 and cyan[2] > 240


def test_sixteen_bit_grey_is_scaled_not_cut():
    wide = numpy.array([[0, 257, 32768, 65535]], dtype=numpy.uint16)
    for kind in ("PNG", "TIFF"):
        shown = numpy.asarray(images.open(encode(Image.fromarray(wide), kind)))
        assert shown[0, :, 0].tolist() == [0, 1, 128, 255] and shown.shape == (1, 4, 3)
    with pytest.raises(BadData, match="32-bit"):
        images.open(encode(Image.fromarray(wide.astype(numpy.float32)), "TIFF"))


def test_exif_turns_the_image():
    image = Image.new("RGB", (30, 20), "white")
    image.paste((0, 0, 0), (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned a quarter to the right
    turned = images.open(encode(image, "JPEG", exif=exif, quality=95))
    assert turned.size == (20, 30) and turned.getpixel((10, 4))[0] < 20 and turned.getpixel((10, 25))[0] > 235
