"""The augmentations of CoTTA: Continual Test-Time Domain Adaptation (Wang, Fink, Van Gool, Dai; CVPR 2022, arXiv:2203.13591)."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)


class Augment:
    """A random view of pictures [B, C, H, W]: one draw for all of a batch, as in the authors' code.

        clip, colour jitter (brightness 0.6 to 1.4, contrast 0.7 to 1.3, saturation 0.5 to 1.5, hue ± 0.06, gamma 0.7 to 1.3, in
        random order), rotation by ± 15°, shift by up to 1/16, scale 0.9 to 1.1 (edges repeated), blur of 5 pixels (sigma 0.001
        to 0.5), mirror with probability 1/2, noise of deviation 0.005, clip

    Pictures that the model takes normalised are brought back to [0, 1] by ``mean`` and ``std`` and normalised again; with none
    given they are in [0, 1] already. Pictures without three channels keep their colours.
    """

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), seed: int = 0) -> None:
        self.mean, self.std = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Another view of x, of the same shape."""
        mean, std = self.mean.to(x), self.std.to(x)
        y = (x * std + mean).clamp(0, 1)
        if y.shape[1] == 3:
            y = self.jitter(y)
        y = blur(self.move(y), self.uniform(0.001, 0.5))
        if self.uniform(0, 1) < 0.5:
            y = y.flip(3)
        y = y + 0.005 * torch.randn(y.shape, generator=self.generator).to(y)
        return (y.clamp(0, 1) - mean) / std

    def uniform(self, low: float, high: float) -> float:
        """A number drawn between the two."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def jitter(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] in [0, 1] with other colours."""
        bright, contrast, saturation = self.uniform(0.6, 1.4), self.uniform(0.7, 1.3), self.uniform(0.5, 1.5)
        hue, gamma = self.uniform(-0.06, 0.06), self.uniform(0.7, 1.3)
        changes: list[Callable[[Tensor], Tensor]] = [
            lambda y: bright * y,
            lambda y: contrast * y + (1 - contrast) * grey(y).mean((1, 2, 3), keepdim=True),
            lambda y: saturation * y + (1 - saturation) * grey(y),
            lambda y: turn_hue(y, hue),
            lambda y: y**gamma]
        for i in torch.randperm(len(changes), generator=self.generator).tolist():
            x = changes[i](x).clamp(0, 1)
        return x

    def move(self, x: Tensor) -> Tensor:
        """x rotated, scaled and shifted about its middle; beyond its edges they are repeated."""
        angle, scale = math.radians(self.uniform(-15, 15)), self.uniform(0.9, 1.1)
        across, down = (2 * self.uniform(-1 / 16, 1 / 16) for _ in range(2))  # grids run from -1 to 1
        h, w = x.shape[2:]
        c, s = math.cos(angle) / scale, math.sin(angle) / scale
        turned = torch.tensor([[c, s * h / w, across], [-s * w / h, c, down]]).to(x)
        grid = F.affine_grid(turned.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def grey(x: Tensor) -> Tensor:
    """The brightness of x [B, 3, H, W]: [B, 1, H, W]."""
    return (x * torch.tensor(GREY).view(1, 3, 1, 1).to(x)).sum(1, keepdim=True)


def turn_hue(x: Tensor, turns: float) -> Tensor:
    """x [B, 3, H, W] in [0, 1] with every hue moved on by that many turns of the colour wheel; saturation and value stay."""
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    r, g, b = x.unbind(1)
    some = chroma.clamp_min(1e-12)
    sixth = torch.where(value == r, (g - b) / some % 6, torch.where(value == g, (b - r) / some + 2, (r - g) / some + 4))
    sixth = (sixth + 6 * turns) % 6
    parts = [(n + sixth) % 6 for n in (5.0, 3.0, 1.0)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in parts], 1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """x [B, C, H, W] under a Gaussian of 5 × 5 pixels; edges are mirrored."""
    if min(x.shape[2:]) < 3:
        return x
    weights = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / sigma) ** 2).to(x)
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 5)
    y = F.pad(x, (2, 2, 2, 2), mode="reflect")
    y = F.conv2d(y, weights.unsqueeze(3), groups=x.shape[1])
    return F.conv2d(y, weights.unsqueeze(2), groups=x.shape[1])
