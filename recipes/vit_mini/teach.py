"""What an ImageNet network sees in the pictures of CIFAR-10 and in their mirror images, kept in a file.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; for features instead of
answers: A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
"""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.vit_mini.recipe import TAUGHT, Recipe
from thrifty.train.files import write_json

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
CHUNK, SAVED = 100, 2000    # pictures at once, and between two notes of how far it is


def file_of(folder: Path, recipe: Recipe) -> Path:
    """Where the features lie: float16 [2, n, D], of the pictures and of their mirror images."""
    return folder / f"{recipe.teacher}-{recipe.teacher_side}.npy"


def teach(folder: Path, recipe: Recipe) -> None:
    """Write the features, or go on where an earlier call was stopped."""
    from transformers import AutoModel

    pictures = np.load(folder / f"{TAUGHT}.npz")["train"]
    teacher: Any = AutoModel.from_pretrained(folder / recipe.teacher, local_files_only=True).float().eval()
    teacher = teacher.to(memory_format=torch.channels_last)
    path, total = file_of(folder, recipe), 2 * len(pictures)
    note, done = path.with_suffix(".json"), 0
    if note.is_file() and path.is_file():
        done = json.loads(note.read_text())["done"]
        kept = np.lib.format.open_memmap(path, mode="r+")
    else:
        width = see(teacher, pictures[:1], False, recipe.teacher_side).shape[1]
        kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(2, len(pictures), width))
    began, start = time.monotonic(), done
    while done < total:
        view, place = divmod(done, len(pictures))
        chunk = pictures[place : place + CHUNK]
        kept[view, place : place + len(chunk)] = see(teacher, chunk, view == 1, recipe.teacher_side).half().numpy()
        done += len(chunk)
        if done % SAVED == 0 or done == total:
            kept.flush()
            write_json(note, {"done": done, "of": total})
            left = (time.monotonic() - began) / (done - start) * (total - done)
            print(f"{done:,} of {total:,} pictures seen, {left / 60:.1f} minutes left", flush=True)


@torch.inference_mode()
def see(teacher: nn.Module, pictures: np.ndarray[Any, Any], mirrored: bool, side: int) -> Tensor:
    """What the teacher's last layer holds of pictures uint8 [n, 32, 32, 3], averaged over places [n, D]."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x.flip(3) if mirrored else x, size=(side, side), mode="bicubic").clamp(0, 1)
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    found: Tensor = teacher(x.contiguous(memory_format=torch.channels_last)).last_hidden_state.mean(dim=(2, 3))
    return found


def read(folder: Path, recipe: Recipe) -> tuple[np.ndarray[Any, Any], Tensor, Tensor]:
    """The features, and the mean and deviation [D] of each over the pictures.

    Raises: FileNotFoundError where `teach` has not been run to its end.
    """
    path = file_of(folder, recipe)
    note = path.with_suffix(".json")
    if not note.is_file() or (said := json.loads(note.read_text()))["done"] < said["of"]:
        raise FileNotFoundError(f"{path} is not complete: run `python -m recipes.vit_mini teach {folder}`")
    kept = np.load(path, mmap_mode="r")
    plain = torch.from_numpy(kept[0].astype(np.float32))
    return kept, plain.mean(dim=0), plain.std(dim=0) + 1e-3
