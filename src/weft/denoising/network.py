"""The network that denoises: a small U-Net for images or volumes, and a trained one with what is known of it.

Lehtinen et al. 2018 (Noise2Noise) use a U-Net with skip connections; Tegunov & Cramer 2019 put a batch
normalisation before each leaky ReLU, and so does this one. What differs is the first layer: neighbours along
each axis become channels of a grid twice as coarse (and the last layer takes that back), which loses nothing
and leaves an eighth of the work of a U-Net that starts on the grid of a volume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from weft.errors import RequestError

__all__ = ["Denoiser", "Loss", "UNet", "autocast"]

_CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMALISATIONS: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_SLOPE = 0.1  # of the leaky ReLU, as in Noise2Noise
_FORMAT = "weft denoiser 1"


def _folded(x: torch.Tensor, dims: int) -> torch.Tensor:
    """Neighbours become channels: (b, c, 2n, ...) -> (b, c 2^dims, n, ...)."""
    b, c, *size = x.shape
    x = x.reshape(b, c, *chain.from_iterable((n // 2, 2) for n in size))
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return x.permute(order).reshape(b, c * 2**dims, *(n // 2 for n in size))


def _unfolded(x: torch.Tensor, dims: int) -> torch.Tensor:
    """The inverse of :func:`_folded`."""
    b, c, *size = x.shape
    x = x.reshape(b, c // 2**dims, *[2] * dims, *size)
    order = [0, 1, *chain.from_iterable((2 + dims + i, 2 + i) for i in range(dims))]
    return x.permute(order).reshape(b, c // 2**dims, *(2 * n for n in size))


def _halved(x: torch.Tensor, dims: int) -> torch.Tensor:
    """The mean of each 2^dims neighbours."""
    b, c, *size = x.shape
    x = x.reshape(b, c, *chain.from_iterable((n // 2, 2) for n in size))
    return x.mean(tuple(range(3, 3 + 2 * dims, 2)))


def _doubled(x: torch.Tensor, dims: int) -> torch.Tensor:
    """Every value 2^dims times; unlike torch's own, its gradient is the same in every run on a GPU."""
    b, c, *size = x.shape
    x = x.reshape(b, c, *chain.from_iterable((n, 1) for n in size))
    x = x.expand(b, c, *chain.from_iterable((n, 2) for n in size))
    return x.reshape(b, c, *(2 * n for n in size))


def _block(dims: int, given: int, made: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (given, made):
        layers += [
            _CONVOLUTIONS[dims](channels, made, 3, padding=1, bias=False),
            _NORMALISATIONS[dims](made),
            nn.LeakyReLU(_SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of one channel in and out.

    Parameters
    ----------
    dims : int
        2 for images, 3 for volumes.
    channels : sequence of int
        Of each level, the finest first; each level is half as fine as the one before, and the finest is
        half as fine as the image.
    """

    def __init__(self, dims: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.dims, self.channels = dims, tuple(channels)
        #: Sizes of images must be multiples of this.
        self.stride = 2 ** len(channels)
        #: How far away a pixel can have an influence.
        self.reach = 2 * sum(
            (4 if level < len(channels) - 1 else 2) * 2**level for level in range(len(channels))
        )
        self.reach += self.stride
        given = [2**dims, *channels[:-1]]
        self.down = nn.ModuleList(_block(dims, a, b) for a, b in zip(given, channels, strict=True))
        pairs = list(pairwise(channels))
        self.up = nn.ModuleList(_block(dims, fine + coarse, fine) for fine, coarse in reversed(pairs))
        self.last = _CONVOLUTIONS[dims](channels[0], 2**dims, 1)
        for module in self.modules():
            if isinstance(module, _CONVOLUTIONS[dims]):
                weight = module.weight
                assert isinstance(weight, torch.Tensor)
                nn.init.kaiming_normal_(weight, a=_SLOPE)
        # begins with the answer that is never far off: nothing
        nn.init.zeros_(self.last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, 1, [z,] y, x) -> the same; sizes are multiples of `stride`."""
        x = _folded(x, self.dims)
        kept: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else _halved(x, self.dims))
            kept.append(x)
        kept.pop()
        for block in self.up:
            x = block(torch.cat([kept.pop(), _doubled(x, self.dims)], 1))
        return _unfolded(self.last(x), self.dims)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where it is fast: on GPUs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@dataclass(frozen=True)
class Loss:
    """How far a training had come: mean square errors against the other half, in units of its variance.

    Attributes
    ----------
    step : int
    training : float
        Mean since the line before.
    held_out : float
        On cubes that were kept from the training; 1 is what predicting nothing would give.
    """

    step: int
    training: float
    held_out: float


@dataclass(frozen=True)
class Denoiser:
    """A trained network and all that is needed to use it.

    Attributes
    ----------
    state : mapping
        Of a :class:`UNet`.
    dims : int
    channels : tuple of int
    pixel_size : float
        Å; it knows structures of this size only.
    clip : float
        Values beyond so many standard deviations pass by the network.
    missing_wedge : bool
        Whether it was trained to fill the missing wedge.
    steps : int
        After how many this state was reached.
    losses : tuple of Loss
    sources : tuple of str
        What it was trained on.
    deconvolution : mapping, optional
        Of micrographs: strength, fall-off and high-pass of the deconvolution that they had before; None for
        none.
    plain : bool
        Whether it knows micrographs without it, too.
    """

    state: Mapping[str, torch.Tensor] = field(repr=False)
    dims: int
    channels: tuple[int, ...]
    pixel_size: float
    clip: float
    missing_wedge: bool
    steps: int
    losses: tuple[Loss, ...]
    sources: tuple[str, ...] = ()
    deconvolution: Mapping[str, float] | None = None
    plain: bool = True

    def network(self, device: torch.device | str = "cpu") -> UNet:
        """Ready for use."""
        network = UNet(self.dims, self.channels)
        network.load_state_dict(dict(self.state))
        return network.to(device).eval().requires_grad_(False)

    @property
    def explained(self) -> float:
        """Share of the variance of held-out cubes of the other half that it predicts."""
        return 1.0 - min((loss.held_out for loss in self.losses if loss.step == self.steps), default=math.nan)

    def to_bytes(self) -> bytes:
        """As a safetensors file: the state as tensors, the rest as JSON in its metadata."""
        about: dict[str, Any] = {
            name: value for name, value in vars(self).items() if name not in ("state", "losses")
        }
        about["losses"] = [asdict(loss) for loss in self.losses]
        metadata = {"format": _FORMAT, "denoiser": json.dumps(about)}
        return save_tensors({name: t.detach().cpu().contiguous() for name, t in self.state.items()}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the model") -> Denoiser:
        """The inverse of :meth:`to_bytes`; `name` is what messages call it.

        Raises
        ------
        RequestError
            If it is not the file of a denoiser.
        """
        try:
            state = load_tensors(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            if header["format"] != _FORMAT:
                raise KeyError(header["format"])
            about = json.loads(header["denoiser"])
            about["losses"] = tuple(Loss(**loss) for loss in about["losses"])
            about["channels"], about["sources"] = tuple(about["channels"]), tuple(about["sources"])
            about.pop("mixing", None)  # files of before: weights for averages that have no halves
            found = cls(state=state, **about)
            found.network()
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RequestError(
                f"{name} is not a denoising model of Weft ({type(error).__name__}); make one with "
                "`weft denoise train`"
            ) from None
        return found
