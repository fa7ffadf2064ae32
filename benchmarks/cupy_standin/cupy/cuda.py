"""cupy.cuda: one device that is this processor, its one stream, and textures that are arrays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["Device", "device", "runtime", "stream", "texture"]


class Device:
    """A device; only number 0 exists."""

    # only the launch dimensions depend on these, and the kernels here ignore those
    attributes = {"WarpSize": 32, "MultiProcessorCount": 1}  # noqa: RUF012

    def __init__(self, number: int = 0) -> None:
        if number:
            raise ValueError(f"device {number} does not exist: the NumPy stand-in for CuPy has number 0 only")
        self.id = number

    def use(self) -> None:
        """Nothing to switch to."""


class _Stream:
    def synchronize(self) -> None:
        """All work is done when a call returns."""


class _CUDAarray:
    """A texture's memory: an array set by copy_from."""

    def __init__(self, channels: Any, width: int, height: int, depth: int) -> None:
        self.values = np.zeros((depth, height, width), np.float32)

    def copy_from(self, values: np.ndarray) -> None:
        self.values[...] = values


class _ResourceDescriptor:
    def __init__(self, kind: int, cuArr: _CUDAarray) -> None:
        self.memory = cuArr


class _TextureObject:
    """What a kernel reads from; zero outside (address mode "border")."""

    def __init__(self, resource: _ResourceDescriptor, description: Any) -> None:
        self._resource = resource

    @property
    def values(self) -> np.ndarray:
        return self._resource.memory.values


def _description(*settings: Any) -> tuple[Any, ...]:
    return settings


device = SimpleNamespace(Device=Device)
stream = SimpleNamespace(get_current_stream=_Stream)
runtime = SimpleNamespace(
    getDeviceCount=lambda: 1,
    cudaChannelFormatKindFloat=2,
    cudaResourceTypeArray=0,
    cudaAddressModeBorder=3,
    cudaFilterModeLinear=1,
    cudaReadModeElementType=0,
)
texture = SimpleNamespace(
    ChannelFormatDescriptor=_description,
    TextureDescriptor=_description,
    CUDAarray=_CUDAarray,
    ResourceDescriptor=_ResourceDescriptor,
    TextureObject=_TextureObject,
)
