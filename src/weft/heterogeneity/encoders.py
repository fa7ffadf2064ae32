"""From the images of a particle to its place in latent space: a mean and a variance.

Two encoders. :class:`AlignedEncoder` reads the residuals of all images of a particle after they were put
together in the particle's own frame (:mod:`weft.heterogeneity.residuals`); it starts as a principal
component analysis of them. :class:`ImageEncoder` is tomoDRGN's (Powell & Davis 2024): a network on every
image, a pooling over the tilts, and a network on what is pooled; it must learn by itself what turning a
particle does.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import nn

__all__ = ["AlignedEncoder", "ImageEncoder", "Pooling", "perceptron"]

Pooling = Literal["attention", "mean", "max", "concatenate"]
#: Log variance of an encoder that has learnt nothing yet.
_START = -1.0


def perceptron(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    sizes = [inputs, *[hidden] * layers]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))


class AlignedEncoder(nn.Module):
    """A linear map of principal components, and a network beside it that begins at zero.

    Parameters
    ----------
    latent, components, features, hidden, layers : int
        `features` numbers a particle, of which `components` principal components are read.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def __init__(self, latent: int, components: int, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.latent = latent
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("basis", torch.zeros(features, components))
        self.linear = nn.Linear(components, latent, bias=False)
        self.network = perceptron(components, hidden, layers, 2 * latent)
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(latent, components))
            last.weight.zero_()
            last.bias.zero_()
            last.bias[latent:] = _START

    def start_from(self, maps: torch.Tensor) -> None:
        """Take the principal components of some particles' residuals, (p, features).

        The first has variance 1; the others as much less as they have.
        """
        mean = maps.mean(0)
        _, spread, axes = torch.linalg.svd(maps - mean, full_matrices=False)
        count = min(self.basis.shape[1], len(axes))
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, :count] = axes[:count].T * (len(maps) ** 0.5 / spread[0].clamp(min=1e-12))

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(p, features) → mean and log variance, (p, latent) each."""
        scores = (maps - self.mean) @ self.basis
        out = self.network(scores)
        return self.linear(scores) + out[:, : self.latent], out[:, self.latent :]


class ImageEncoder(nn.Module):
    """Image by image, then pooled, then as a whole.

    Parameters
    ----------
    latent : int
    inputs : int
        Numbers of an image.
    hidden, layers : int
        Of both networks.
    pooling : {"attention", "mean", "max", "concatenate"}
    tilts : int
        Greatest number of images of a particle: what "concatenate" has places for.
    """

    def __init__(
        self, latent: int, inputs: int, hidden: int, layers: int, pooling: Pooling, tilts: int
    ) -> None:
        super().__init__()
        self.latent, self.pooling, self.tilts = latent, pooling, tilts
        self.image = perceptron(inputs, hidden, layers, hidden)
        self.attention = nn.Linear(hidden, 1) if pooling == "attention" else None
        pooled = hidden * tilts if pooling == "concatenate" else hidden
        self.particle = perceptron(pooled, hidden, layers, 2 * latent)
        last = self.particle[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias[latent:] = _START

    def forward(self, images: torch.Tensor, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(p, t, inputs) and (p, t) bool → mean and log variance, (p, latent) each.

        Whatever stands in images that are not shown changes nothing.
        """
        each = self.image(images) * shown[..., None]
        if self.pooling == "concatenate":
            missing = self.tilts - each.shape[1]
            if missing < 0:
                raise ValueError(f"a particle has {each.shape[1]} images, this encoder reads {self.tilts}")
            pooled = nn.functional.pad(each, (0, 0, 0, missing)).flatten(1)
        elif self.pooling == "mean":
            pooled = each.sum(1) / shown.sum(1, keepdim=True).clamp(min=1)
        elif self.pooling == "max":
            pooled = each.masked_fill(~shown[..., None], -torch.inf).amax(1)
        else:
            assert self.attention is not None
            score = self.attention(each)[..., 0].masked_fill(~shown, -torch.inf)
            pooled = (score.softmax(1)[..., None] * each).sum(1)
        out = self.particle(pooled)
        return out[:, : self.latent], out[:, self.latent :]
