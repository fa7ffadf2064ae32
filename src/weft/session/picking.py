"""Picking models: where they are, and reading them once."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path

from weft.errors import SettingsError
from weft.picking.network import PickingModel, SegmentationNetwork
from weft.session.step import inside

__all__ = ["DEFAULT", "MODELS", "model_file", "network_of", "picker_name", "read_model"]

#: What the model that ships is called.
DEFAULT = "default"
#: Where retrained ones are, in the session.
MODELS = "models/picking"


def model_file(root: Path | None, model: str) -> Path:
    """The file of a model: the one that ships, one of the session by its name, or a path.

    Parameters
    ----------
    root : Path, optional
        The session.
    """
    if model == DEFAULT:
        return Path(str(resources.files("weft.picking") / "models" / f"{DEFAULT}.safetensors"))
    if root is None:
        return Path(model).expanduser()
    own = root / MODELS / f"{model}.safetensors"
    return own if own.is_file() else inside(root, model)


def picker_name(model: str) -> str:
    """What the picks of a model are filed under: the stem of its file."""
    return model if model == DEFAULT else Path(model).name.removesuffix(".safetensors")


def read_model(path: Path) -> PickingModel:
    """A trained model.

    Raises
    ------
    SettingsError
        If it cannot be read.
    RequestError
        If it is something else.
    """
    try:
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)[0]
    except OSError as error:
        raise SettingsError(
            f"picking.model: {path} cannot be read ({error.strerror}); make one with `weft pick train`, "
            f'or take "{DEFAULT}"'
        ) from None


def network_of(path: Path, device: str) -> tuple[PickingModel, SegmentationNetwork]:
    """A model and its network on a device; kept for the next micrograph."""
    model = read_model(path)
    stat = path.stat()
    return model, _network(path, stat.st_mtime_ns, stat.st_size, device)


@lru_cache(maxsize=2)
def _read(path: Path, mtime_ns: int, size: int) -> tuple[PickingModel]:
    return (PickingModel.from_bytes(path.read_bytes(), str(path)),)


@lru_cache(maxsize=2)
def _network(path: Path, mtime_ns: int, size: int, device: str) -> SegmentationNetwork:
    return _read(path, mtime_ns, size)[0].network(device)
