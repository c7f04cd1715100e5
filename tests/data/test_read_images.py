"""Images: folders, tables and archives of them, every pixel format, and files that are broken."""
from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

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


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_paths_in_other_kinds_of_table(tmp_path, suffix):
    fill(tmp_path / "pictures")
    rows = [{"image": f"pictures/{name}/{i:03}.png", "label": name} for name in ("ape", "bee") for i in range(12)]
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)] if suffix == "tsv" else [*map(json.dumps, rows)]
    (tmp_path / f"data.{suffix}").write_text("\n".join(lines))
    data = read(tmp_path / f"data.{suffix}")
    assert data.task == "image-classification" and sum(data.record["rows"].values()) == 24
    assert all(data.labels[label] in path for path, label in zip(*data.splits["train"].values(), strict=True))


def test_a_table_beside_folders_of_images(tmp_path):
    fill(tmp_path / "pictures", classes=("one", "two"))
    paths = [f"pictures/{name}/{i:03}.png" for name in ("one", "two") for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label"] + [f"{path},{'ab'[i % 2]}" for i, path in enumerate(paths)]))
    assert read(tmp_path).labels == ["a", "b"], "the table names the images, so it says the classes, too"
    (tmp_path / "labels.csv").unlink()
    fill(tmp_path / "ape", classes=("x",))  # now pictures/one/000.png and ape/x/000.png
    with pytest.raises(BadData, match="are not the names of splits"):
        read(tmp_path)
    plain = fill(tmp_path / "plain")
    (plain / "sizes.csv").write_text("class,size\nape,large\n")
    (plain / "notes.json").write_text('{"by": "me"}')
    data = read(plain)
    assert data.labels == ["ape", "bee"]
    assert "files beside the folders were not read: notes.json, sizes.csv" in " ".join(data.record["decisions"])


def test_one_folder_around_the_classes(tmp_path):
    fill(tmp_path / "animals")
    assert read(tmp_path).labels == ["ape", "bee"]


def pack(folder, path, **more):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        for file in sorted(folder.rglob("*")):
            held.write(file, file.relative_to(folder))
        for name, data in more.items():
            held.writestr(name, data)
    return path


def test_a_zip_is_read_like_the_folder_in_it(tmp_path):
    whole = pack(fill(tmp_path / "set"), tmp_path / "set.zip", **{"__MACOSX/ape/._000.png": b"x", ".DS_Store": b"x"})
    data, plain = read(whole), read(tmp_path / "set")
    assert data.labels == plain.labels and data.record["rows"] == plain.record["rows"]
    assert data.record["content"] == plain.record["content"] and data.record["files"] == plain.record["files"]
    for given, path in zip(data.splits["train"]["image"], plain.splits["train"]["image"], strict=True):
        assert given == Path(path).read_bytes()
    fill(tmp_path / "parts" / "deep" / "train")
    fill(tmp_path / "parts" / "deep" / "test", start=500, count=3)
    data = read(pack(tmp_path / "parts", tmp_path / "parts.zip"))
    assert data.record["rows"]["test"] == 6 and data.labels == ["ape", "bee"]


def test_a_zip_with_a_table_of_its_images(tmp_path):
    folder = tmp_path / "set"
    fill(folder / "pictures")
    rows = [f"pictures/{name}/{i:03}.png,{name}" for name in ("ape", "bee") for i in range(12)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    data = read(pack(folder, tmp_path / "set.zip"))
    assert data.labels == ["ape", "bee"] and data.columns["image"] == "file" and isinstance(data.splits["train"]["image"][0], bytes)
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows, "pictures/ape/999.png,ape", "pictures/../../out.png,ape"]))
    with pytest.raises(BadData, match=r"(?s)2 rows.*labels.csv row 25: .*999.png is no file in the archive.*row 26: .*out.png"):
        read(pack(folder, tmp_path / "set.zip"))
    (folder / "labels.csv").unlink()
    for split, chosen in (("train", rows[::2]), ("test", rows[1::2])):
        (folder / f"{split}.csv").write_text("\n".join(["file,label", *(f"../set/{row}" for row in chosen)]))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as held:
        for file in (*folder.glob("pictures/*/*.png"), *folder.glob("*.csv")):
            held.write(file, file.relative_to(tmp_path))
    assert read(tmp_path / "set.zip").record["rows"]["test"] == 12, "a path may lead up and down again inside the archive"


def test_archives_that_are_not_read(tmp_path, monkeypatch):
    from thrifty.data import zipped

    folder = fill(tmp_path / "set")
    (tmp_path / "words.zip").write_text("words")
    with pytest.raises(BadData, match="words.zip is not a zip archive"):
        read(tmp_path / "words.zip")
    with pytest.raises(BadData, match="there is no file or folder"):
        read("nowhere.zip")
    for name in ("../out.png", "/out.png", "ape/../../out.png", "ape\\out.png", "ape//out.png"):
        with pytest.raises(BadData, match="is not a plain path inside it"):
            read(pack(folder, tmp_path / "set.zip", **{name: b"x"}))
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(BadData, match="holds 'ape/000.png' twice"), pytest.warns(UserWarning):
        read(pack(folder, tmp_path / "set.zip", **{"ape/000.png": b"x"}))
    whole = pack(folder, tmp_path / "set.zip")
    monkeypatch.setattr(zipped, "MOST", 23)
    with pytest.raises(BadData, match="holds 24 files of .* unpack it, and name the folder"):
        read(whole)
    monkeypatch.setattr(zipped, "MOST", 24)
    monkeypatch.setattr(zipped, "LARGEST", 1000)
    with pytest.raises(BadData, match="holds 24 files of"):
        read(whole)


def test_an_archive_that_unpacks_to_more_than_it_says(tmp_path):
    folder = fill(tmp_path / "set")
    (folder / "ape" / "bomb.png").write_bytes(bytes(50_000_000))
    data = bytearray(pack(folder, tmp_path / "set.zip").read_bytes())
    size = (50_000_000).to_bytes(4, "little")
    at = data.rfind(size)
    data[at : at + 4] = (1000).to_bytes(4, "little")  # what the directory says of it
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(BadData, match=r"(?s)1 row cannot be used.*ape/bomb\.png: .*cannot be read: .*CRC"):
        read(tmp_path / "set.zip")


def test_all_broken_files_are_named_at_once(tmp_path):
    fill(tmp_path / "set", count=30)
    broken = []
    for i in range(9):
        for name, content in (("ape", b""), ("bee", encode(picture(5, (90, 90)), "JPEG")[: 900 + i])):
            (tmp_path / "set" / name / f"{i:03}.png").write_bytes(content)
            broken.append(f"{name}/{i:03}.png")
    with pytest.raises(BadData) as caught:
        read(tmp_path / "set")
    assert "18 rows cannot be used" in str(caught.value) and all(f"  {name}: " in str(caught.value) for name in broken)
    data = read(tmp_path / "set", skip_bad=True)
    assert sorted(bad["file"] for bad in data.record["skipped"]) == sorted(broken) and sum(data.record["rows"].values()) == 42
    raw = bytearray(pack(tmp_path / "set", tmp_path / "set.zip").read_bytes())
    start = raw.find(b"ape/020.png") + 40
    raw[start : start + 20] = bytes(20)  # damage inside the archive is one more
    (tmp_path / "set.zip").write_bytes(raw)
    zipped = read(tmp_path / "set.zip", skip_bad=True)
    assert sorted(bad["file"] for bad in zipped.record["skipped"]) == sorted([*broken, "ape/020.png"])
    for name in ("ape", "bee"):
        for i in range(9, 30):
            (tmp_path / "set" / name / f"{i:03}.png").write_bytes(b"x" * (i + 1))
            (tmp_path / "set" / name / f"{i + 100}.png").write_bytes(b"y" * (i + 1))
            (tmp_path / "set" / name / f"{i + 200}.png").write_bytes(b"z" * (i + 1))
    with pytest.raises(BadData, match=r"(?s)144 rows cannot be used.* and 44 more"):
        read(tmp_path / "set")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_that_was_cut_short_is_broken_in_every_format(kind):
    whole = encode(picture(5, (90, 90)), kind)
    assert images.inspect(whole)
    for share in (0.3, 0.7, 0.95):
        with pytest.raises(BadData, match="cannot be decoded"):
            images.inspect(whole[: int(share * len(whole))])


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_of_holding_a_camera(kind, orientation):
    shown = numpy.repeat(numpy.repeat(numpy.array([[250, 170, 90], [200, 20, 60]], dtype=numpy.uint8), 16, 0), 16, 1)
    turns = {1: lambda a: a, 2: numpy.fliplr, 3: lambda a: numpy.rot90(a, 2), 4: numpy.flipud, 5: numpy.transpose,
             6: lambda a: numpy.rot90(a, 1), 7: lambda a: numpy.rot90(a, 2).T, 8: lambda a: numpy.rot90(a, -1)}
    stored = Image.fromarray(numpy.ascontiguousarray(turns[orientation](shown))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    seen = numpy.asarray(images.open(encode(stored, kind, exif=exif, **options)))[..., 0].astype(int)
    assert seen.shape == shown.shape and abs(seen[4::16, 4::16] - shown[4::16, 4::16]).max() < 12


def test_sixteen_bit_grey_that_is_turned_or_read_as_wider():
    wide = numpy.array([[0, 32768, 65535]], dtype=numpy.uint16)
    exif = Image.Exif()
    exif[0x0112] = 8
    seen = numpy.asarray(images.open(encode(Image.fromarray(wide), "PNG", exif=exif)))
    assert seen[..., 0].tolist() == [[255], [128], [0]]
    as_wider = Image.fromarray(wide.astype(numpy.int32))  # as older versions of PIL read 16-bit PNG files
    assert as_wider.mode == "I"
    assert numpy.asarray(images.upright("x", as_wider, wide=True))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(BadData, match="32-bit"):
        images.open(as_wider)


def test_sixteen_bit_colour_and_cmyk_in_other_files():
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for colour, values, wanted in ((2, (65535, 32768, 0), (255, 128, 0)), (6, (65535, 0, 0, 13107), (255, 204, 204)),
                                   (4, (0, 0), (255, 255, 255))):
        body = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
        data = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)) + chunk(b"IDAT", body)
                + chunk(b"IEND", b""))
        assert images.open(data).getpixel((0, 0)) == pytest.approx(wanted, abs=1)
    assert images.open(encode(Image.new("CMYK", (4, 4), (0, 255, 0, 0)), "TIFF")).getpixel((1, 1)) == (255, 0, 255)
