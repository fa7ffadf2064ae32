"""The picking network: a residual encoder and decoder that says of every pixel what it belongs to.

In the spirit of BoxNet (Tegunov & Cramer 2019, "Particle picking with a residual neural net"): residual
blocks (He et al. 2016, with the activation first), a contracting part in which every group of blocks but
the first halves the grid, an expanding part that doubles it and is joined with its mirror image, and a
projection onto three classes. What differs is where the first group works: four neighbours become channels
of a grid twice as coarse, and the last layer takes that back, which leaves a fraction of the work where
most of it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn import functional

from weft.errors import RequestError

__all__ = ["ARTEFACT", "BACKGROUND", "CLASSES", "PARTICLE", "PickingModel", "SegmentationNetwork", "Shape"]

#: Classes of pixels.
CLASSES = ("background", "particle", "artefact")
BACKGROUND, PARTICLE, ARTEFACT = range(3)
_FORMAT = "weft picking model 1"


@dataclass(frozen=True)
class Shape:
    """Width and depth of a network.

    Attributes
    ----------
    channels : tuple of int
        Of each level, the finest first; the finest is half as fine as the image, each other half as fine as
        the one before.
    down : tuple of int
        Residual blocks of each level in the contracting part.
    up : tuple of int
        Residual blocks of each level but the coarsest in the expanding part.
    """

    channels: tuple[int, ...] = (32, 64, 96, 128)
    down: tuple[int, ...] = (1, 2, 3, 3)
    up: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self) -> None:
        if len(self.down) != len(self.channels) or len(self.up) != len(self.channels) - 1:
            raise ValueError("a network has blocks for each level, and one level less on the way up")

    @property
    def stride(self) -> int:
        """Sizes of images must be multiples of this."""
        return int(2 ** len(self.channels))


class _Block(nn.Module):
    """x + convolutions(x), the normalisation and activation before each convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normal1, self.normal2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # a new block changes nothing, so that deep networks begin as shallow ones
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.relu(self.normal1(x)))
        out: torch.Tensor = x + self.conv2(functional.relu(self.normal2(y)))
        return out


class SegmentationNetwork(nn.Module):
    """Logits of three classes for every pixel of an image.

    Parameters
    ----------
    shape : Shape
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        widths = shape.channels
        self.first = nn.Conv2d(4, widths[0], 5, padding=2)
        self.down = nn.ModuleList(
            nn.Sequential(*(_Block(c) for _ in range(n))) for c, n in _zip(widths, shape.down)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in _zip(widths[:-1], widths[1:]))
        self.widen = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in _zip(widths[:-1], widths[1:]))
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 1) for a in widths[:-1])
        self.up = nn.ModuleList(
            nn.Sequential(*(_Block(c) for _ in range(n))) for c, n in _zip(widths[:-1], shape.up)
        )
        self.normal = nn.BatchNorm2d(widths[0])
        self.last = nn.Conv2d(widths[0], 4 * len(CLASSES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, 1, y, x) -> (b, 3, y, x) logits; sizes are multiples of ``shape.stride``."""
        x = self.first(functional.pixel_unshuffle(x, 2))
        kept: list[torch.Tensor] = []
        for level, blocks in enumerate(self.down):
            if level > 0:
                kept.append(x)
                x = self.narrow[level - 1](x)
            x = blocks(x)
        for level in reversed(range(len(self.up))):
            x = functional.interpolate(self.widen[level](x), scale_factor=2.0, mode="nearest")
            x = self.up[level](self.join[level](torch.cat([kept[level], x], 1)))
        out: torch.Tensor = functional.pixel_shuffle(self.last(functional.relu(self.normal(x))), 2)
        return out


def _zip(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(a, b, strict=True))


@dataclass(frozen=True)
class PickingModel:
    """A trained network and all that is needed to use it.

    Attributes
    ----------
    state : mapping
        Of a :class:`SegmentationNetwork`.
    shape : Shape
    pixel_size : float
        Å, of the images that it knows.
    least_chance : float
        Candidates that are less likely than this to be particles are not picked by themselves.
    chances : tuple of float
        Coefficients of :class:`~weft.picking.chances.Chances`, from data that were kept from the training.
    label_scale : float
        Radius of the discs that it was taught to draw, relative to the particles'.
    diameter : float
        Å, of the particles of a retrained model; 0 for one that knows many.
    about : mapping
        What it was trained on and how well it did: plain values.
    """

    state: Mapping[str, torch.Tensor] = field(repr=False)
    shape: Shape = field(default_factory=Shape)
    pixel_size: float = 8.0
    least_chance: float = 0.3
    label_scale: float = 0.55
    diameter: float = 0.0
    chances: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)
    about: Mapping[str, Any] = field(default_factory=dict)

    def network(self, device: torch.device | str = "cpu") -> SegmentationNetwork:
        """Ready for use."""
        network = SegmentationNetwork(self.shape)
        network.load_state_dict({name: tensor.float() for name, tensor in self.state.items()})
        return network.to(device).eval().requires_grad_(False)

    def to_bytes(self) -> bytes:
        """As a safetensors file: the state in half precision, the rest as JSON in its metadata."""
        about = {name: value for name, value in vars(self).items() if name not in ("state", "shape")}
        about["shape"] = vars(self.shape)
        tensors = {
            name: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous()
            for name, t in self.state.items()
            if not name.endswith("num_batches_tracked")
        }
        return save_tensors(tensors, {"format": _FORMAT, "model": json.dumps(about)})

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the model") -> PickingModel:
        """The inverse of :meth:`to_bytes`; `name` is what messages call it.

        Raises
        ------
        RequestError
            If it is not the file of a picking model.
        """
        try:
            state = load_tensors(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            if header["format"] != _FORMAT:
                raise KeyError(header["format"])
            about = json.loads(header["model"])
            shape = Shape(**{key: tuple(value) for key, value in about.pop("shape").items()})
            state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
            for key, tensor in SegmentationNetwork(shape).state_dict().items():
                if key.endswith("num_batches_tracked"):
                    state[key] = torch.zeros_like(tensor)
            about["chances"] = tuple(float(value) for value in about["chances"])
            found = cls(state=state, shape=shape, **about)
            found.network()
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RequestError(
                f"{name} is not a picking model of Weft ({type(error).__name__}); make one with "
                "`weft pick train`"
            ) from None
        return found

    def with_about(self, **facts: Any) -> PickingModel:
        """The same with more said about it."""
        return replace(self, about={**self.about, **facts})
