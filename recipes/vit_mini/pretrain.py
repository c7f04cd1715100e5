"""The training of `vit-mini`: deterministic for a seed and a number of threads, in small steps that can be resumed."""
from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.vit_mini import teach
from recipes.vit_mini.pupil import Pupil, begin
from recipes.vit_mini.recipe import TAUGHT, Recipe
from recipes.vit_mini.views import color_views, grey_views, plain_views
from thrifty.core.errors import ThriftyError
from thrifty.train.files import write_bytes
from thrifty.train.order import Order
from thrifty.train.schedule import share

MIRRORED = ("fashion_mnist",)   # grey sets in which a mirror image is of the same class
LOGGED, WATCHED, SAVED = 20, 400, 50  # steps


@dataclass
class Pictures:
    """The training pictures of one set, those that only watch, and their labels; uint8."""

    train: Tensor
    train_labels: Tensor
    held: Tensor
    held_labels: Tensor


class Training:
    """One training, from its start values or its last checkpoint in ``out``."""

    def __init__(self, folder: Path, out: Path, recipe: Recipe) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.recipe = out, recipe
        self.sets = {name: read_set(folder / f"{name}.npz", recipe.held) for name in recipe.batch}
        self.hints, self.centre, self.spread = teach.read(folder, recipe)
        torch.manual_seed(recipe.seed)
        classes = {name: int(held.train_labels.max()) + 1 for name, held in self.sets.items()}
        self.pupil = Pupil(recipe, classes, len(self.centre))
        begin(self.pupil, plain_views(self.sets[TAUGHT].train[:2000]))
        flat = [p for name, p in self.pupil.named_parameters() if p.dim() < 2 or "embeddings." in name]
        known = {id(p) for p in flat}
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in self.pupil.parameters() if id(p) not in known], "weight_decay": recipe.decay},
             {"params": flat, "weight_decay": 0.0}], lr=recipe.rate, betas=(0.9, 0.98))
        self.orders = {name: Order(len(held.train), recipe.batch[name], recipe.seed * 101 + i)
                       for i, (name, held) in enumerate(self.sets.items())}
        self.step, self.seconds = 0, 0.0

    def run(self, minutes: float) -> bool:
        """Train until the end or for so many minutes; whether it is the end."""
        self.resume()
        until = time.monotonic() + 60 * minutes
        self.pupil.train()
        while self.step < self.recipe.steps and time.monotonic() < until:
            began = time.monotonic()
            said = self.learn()
            self.seconds += time.monotonic() - began
            if self.step % LOGGED == 0 or self.step == self.recipe.steps:
                left = (self.recipe.steps - self.step) * self.seconds / self.step / 60
                self.note({**said, "seconds": round(self.seconds, 1), "minutes_left": round(left, 1)})
            if self.step % WATCHED == 0 or self.step == self.recipe.steps:
                self.note({"accuracy": self.watch()})
            if self.step % SAVED == 0 or self.step == self.recipe.steps:
                self.save()
        return self.step == self.recipe.steps

    def learn(self) -> dict[str, Any]:
        """One step on a few pictures of every set; what it was like."""
        recipe, source = self.recipe, torch.Generator().manual_seed((self.recipe.seed + 1) * 1_000_003 + self.step)
        pixels, labels, wanted = [], [], torch.empty(0)
        for name, held in self.sets.items():
            order = self.orders[name]
            rows = order.step(self.step)
            labels.append(held.train_labels[rows].long())
            if name == TAUGHT:
                seen, mirrored = color_views(held.train[rows], source)
                kept = self.hints[mirrored.numpy().astype(int), np.array(rows)].astype(np.float32)
                wanted = (torch.from_numpy(kept) - self.centre) / self.spread
            else:
                seen = grey_views(held.train[rows], source, name in MIRRORED)
            pixels.append(seen)
        rate = recipe.rate * share(self.step, recipe.steps, recipe.warmup, "cosine")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        first, mean = self.pupil(torch.cat(pixels))
        losses, distance = self.judge(first, mean, labels, wanted)
        total = sum(len(y) * loss for y, loss in zip(labels, losses.values(), strict=True)) / len(first)
        self.optimizer.zero_grad(set_to_none=True)
        (total + recipe.distil * distance).backward()
        torch.nn.utils.clip_grad_norm_(self.pupil.parameters(), recipe.clip)
        self.optimizer.step()
        self.step += 1
        if not bool(torch.isfinite(distance + total)):
            raise ThriftyError(f"the loss is no longer finite at step {self.step}")
        return {"loss": {name: round(float(loss.detach()), 4) for name, loss in losses.items()},
                "distance": round(float(distance.detach()), 4), "rate": rate}

    def judge(self, first: Tensor, mean: Tensor, labels: list[Tensor], wanted: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy by set, and the mean squared distance of the hints from the teacher's standardised features."""
        losses, at, distance = {}, 0, torch.zeros(())
        for (name, head), y in zip(self.pupil.answers.items(), labels, strict=True):
            part = slice(at, at + len(y))
            losses[name] = F.cross_entropy(head(first[part]), y, label_smoothing=self.recipe.smoothing)
            if name == TAUGHT:
                distance = F.mse_loss(self.pupil.hints(mean[part]), wanted)
            at += len(y)
        return losses, distance

    @torch.inference_mode()
    def watch(self) -> dict[str, float]:
        """The share of held-out training pictures that is answered rightly, by set."""
        self.pupil.eval()
        found = {}
        for name, held in self.sets.items():
            head = self.pupil.answers[name]
            said = torch.cat([head(self.pupil(plain_views(part))[0]).argmax(1) for part in held.held.split(250)])
            found[name] = round(float((said == held.held_labels).double().mean()), 4)
        self.pupil.train()
        return found

    # -- what lies in the folder ------------------------------------------------------------------------------------------
    def note(self, line: dict[str, Any]) -> None:
        """A line in log.jsonl, and on the screen."""
        text = json.dumps({"step": self.step, **line})
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)

    def save(self) -> None:
        """Everything that the next step depends on, in one file and one rename."""
        from safetensors.torch import save

        tensors = {f"pupil:{name}": value.detach().contiguous() for name, value in self.pupil.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer:{i}:{key}": value for key, value in state.items()}
        about = {"recipe": self.recipe.plain(), "step": self.step, "seconds": self.seconds, "threads": torch.get_num_threads()}
        write_bytes(self.out / "checkpoint.safetensors", save(tensors, {"about": json.dumps(about)}))

    def resume(self) -> None:
        """Put the last checkpoint back, and cut the log where it was written.

        Raises: ThriftyError for the checkpoint of another recipe or number of threads.
        """
        found = read_checkpoint(self.out)
        if found is None:
            (self.out / "log.jsonl").unlink(missing_ok=True)
            return
        about, tensors = found
        if about["recipe"] != self.recipe.plain() or about["threads"] != torch.get_num_threads():
            raise ThriftyError(f"the checkpoint in {self.out} was made with {about['recipe']} and {about['threads']} threads, not "
                               f"with {self.recipe.plain()} and {torch.get_num_threads()}: choose another folder")
        self.step, self.seconds = about["step"], about["seconds"]
        self.pupil.load_state_dict({name.removeprefix("pupil:"): t for name, t in tensors.items() if name.startswith("pupil:")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer:"):
                _, i, key = name.split(":")
                state.setdefault(int(i), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        log = self.out / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        write_bytes(log, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= self.step).encode())


def read_set(path: Path, held: int) -> Pictures:
    """A set as `fetch` wrote it; its last ``held`` training pictures only watch."""
    with np.load(path) as found:
        pictures, labels = torch.from_numpy(found["train"].copy()), torch.from_numpy(found["train_labels"].copy())
    return Pictures(pictures[:-held], labels[:-held], pictures[-held:], labels[-held:])


def read_checkpoint(out: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What the checkpoint in ``out`` says of itself, and its tensors; None if there is none."""
    from safetensors import safe_open

    path = out / "checkpoint.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
