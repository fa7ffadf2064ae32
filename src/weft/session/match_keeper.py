"""What a search has done so far, kept in files, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.formats.atomic import atomic_write_bytes
from weft.matching.kernel import Found
from weft.session.match_inputs import MatchingSettings
from weft.session.step import inside
from weft.session.tomogram_source import TomogramSource

__all__ = ["PartKeeper", "save_array", "save_arrays"]


def save_array(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    atomic_write_bytes(path, buffer.getvalue())


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write_bytes(path, buffer.getvalue())


@dataclass(frozen=True)
class PartKeeper:
    """Parts of a search that are done, in a folder: one file each."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, source: TomogramSource, settings: MatchingSettings, root: Path) -> PartKeeper:
        """Of this very search: what another one has left is deleted."""
        files = [source.path, *(inside(root, path) for path in settings.template)]
        masks = [settings.mask, settings.tomogram_mask.replace("{name}", source.name)]
        files += [inside(root, mask) for mask in masks if mask]
        stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        wanted = settings.model_dump(mode="json", exclude={"refine"})
        # the parts that are kept depend on the memory and the threads
        text = json.dumps([stamps, wanted, torch.get_num_threads(), _physics(source)])
        key = hashlib.sha256(text.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "search.txt"
        if not note.is_file() or note.read_text() != key:
            for old in folder.iterdir():
                old.unlink()
            note.write_text(key)
        return cls(folder)

    def load(self, unit: int) -> tuple[int, Found] | None:
        """See :class:`~weft.matching.search.Keeper`; a file that is broken counts as none."""
        try:
            with np.load(self.folder / f"{unit}.npz", allow_pickle=False) as saved:
                noise = torch.from_numpy(saved["noise"]) if "noise" in saved else None
                done, count = (int(v) for v in saved["counts"])
                total, squares = (float(v) for v in saved["sums"])
                best, number = torch.from_numpy(saved["best"]), torch.from_numpy(saved["number"])
                return done, Found(best, number, noise, count, total, squares)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, unit: int, done: int, found: Found) -> None:
        """See :class:`~weft.matching.search.Keeper`."""
        arrays: dict[str, Any] = {
            "best": found.best.cpu().numpy(),
            "number": found.number.cpu().numpy(),
            "counts": np.array([done, found.count]),
            "sums": np.array([found.total, found.squares]),
        }
        if found.noise is not None:
            arrays["noise"] = found.noise.cpu().numpy()
        save_arrays(self.folder / f"{unit}.npz", arrays)

    def clear(self) -> None:
        """After the results have been written."""
        for old in self.folder.iterdir():
            old.unlink()
        self.folder.rmdir()
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _physics(source: TomogramSource) -> list[Any]:
    """All that template weights depend on."""
    geometry, contrast = source.geometry, source.contrast
    tensors = [geometry.matrices, geometry.defocus, geometry.volume_size, contrast.dose, contrast.weight]
    tensors += [contrast.astigmatism, contrast.angle, contrast.phase_shift]
    made = [source.method, source.dose_weighted, source.dose_model, source.cosine, source.regularisation]
    rest = [geometry.hand, source.has_ctf, source.density_positive, source.origin, str(contrast.optics)]
    return [tensor.tolist() for tensor in tensors] + made + rest
