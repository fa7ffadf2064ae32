"""The folder of a training: what it keeps, and how it is read again.

vae.toml              what was asked for, and of what
latent.npz            mu, log_var (particles × latent), particle (names, in the input's order)
latents/NNNN.npz      mu and log_var after epoch NNNN
models/NNNN.safetensors   the networks after it
checkpoint.pt         what an interrupted training goes on from
history.jsonl         a line an epoch
"""

from __future__ import annotations

import io
import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from weft.errors import CorruptError, RequestError
from weft.formats.atomic import atomic_write_bytes, atomic_write_text
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles
from weft.heterogeneity.lattice import Lattice
from weft.heterogeneity.model import VAE, NetworkSettings
from weft.heterogeneity.preparation import PreparationSettings
from weft.heterogeneity.training import Encoded, VAETrainingSettings
from weft.session.fields import format_value

__all__ = ["Latent", "RunFacts", "VAERun", "open_run", "write_latent"]

DESCRIPTION, LATENT, CHECKPOINT, HISTORY = "vae.toml", "latent.npz", "checkpoint.pt", "history.jsonl"
MODELS, LATENTS = "models", "latents"


@dataclass(frozen=True)
class Latent:
    """Where particles lie in latent space.

    Attributes
    ----------
    mu, log_var : (p, latent) float32
    particle : list of str
    """

    mu: NDArray[np.float32]
    log_var: NDArray[np.float32]
    particle: list[str]


@dataclass(frozen=True)
class RunFacts:
    """What a training was of, and how.

    Attributes
    ----------
    input : Path
    datadir, tomograms : Path or None
    particles, images, tilts, box : int
        Particles that can be read, their images, the most that one has, and pixels.
    pixel_size, diameter : float
        Å.
    sign : float
        What images were multiplied by.
    homogeneous : bool
    network, training, preparation : settings
    """

    input: Path
    datadir: Path | None
    tomograms: Path | None
    particles: int
    images: int
    tilts: int
    box: int
    pixel_size: float
    diameter: float
    sign: float
    homogeneous: bool
    network: NetworkSettings
    training: VAETrainingSettings
    preparation: PreparationSettings

    def text(self) -> str:
        """As TOML."""
        given: dict[str, dict[str, Any]] = {
            "input": {
                "path": str(self.input),
                "datadir": str(self.datadir or ""),
                "tomograms": str(self.tomograms or ""),
                "particles": self.particles,
                "images": self.images,
                "tilts": self.tilts,
                "box": self.box,
                "pixel_size": self.pixel_size,
                "diameter": self.diameter,
                "sign": self.sign,
                "homogeneous": self.homogeneous,
            }
        }
        for name in ("network", "training", "preparation"):
            values = getattr(self, name).model_dump()
            given[name] = {key: value for key, value in values.items() if value is not None}
        sections = (
            f"[{name}]\n" + "".join(f"{key} = {format_value(value)}\n" for key, value in values.items())
            for name, values in given.items()
        )
        return "\n".join(sections)

    @classmethod
    def read(cls, path: Path) -> RunFacts:
        """From ``vae.toml``."""
        try:
            given = tomllib.loads(path.read_text())
            facts = given["input"]
            for name in ("path", "datadir", "tomograms"):
                facts[name] = Path(facts[name]) if facts[name] else None
            return cls(
                facts.pop("path"),
                facts.pop("datadir"),
                facts.pop("tomograms"),
                **facts,
                network=NetworkSettings(**given["network"]),
                training=VAETrainingSettings(**given["training"]),
                preparation=PreparationSettings(**given["preparation"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(path, f"it does not describe a training ({error}); train again") from error

    def model(self) -> VAE:
        """The networks, not trained."""
        lattice = Lattice.of(self.box, self.pixel_size, self.preparation.resolution)
        return VAE(lattice, self.network, self.diameter, self.tilts, homogeneous=self.homogeneous)

    def read_particles(self) -> TiltParticles:
        """Those of the input, also what could not be read."""
        return read_tilt_particles(self.input, datadir=self.datadir, tomograms=self.tomograms)


class VAERun:
    """A training on the disk.

    Parameters
    ----------
    path : Path
        Its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._models: dict[int, VAE] = {}

    @cached_property
    def facts(self) -> RunFacts:
        """What it was of, and how."""
        return RunFacts.read(self.path / DESCRIPTION)

    @property
    def settings(self) -> VAETrainingSettings:
        """How it was trained."""
        return self.facts.training

    @property
    def pixel_size(self) -> float:
        """Å."""
        return self.facts.pixel_size

    @property
    def box(self) -> int:
        """Pixels."""
        return self.facts.box

    @property
    def epochs(self) -> list[int]:
        """Those whose networks are kept."""
        return sorted(int(f.stem) for f in (self.path / MODELS).glob("*.safetensors") if f.stem.isdigit())

    @property
    def history(self) -> list[dict[str, Any]]:
        """What each epoch came to; an epoch that was done again counts as it was last."""
        path = self.path / HISTORY
        found = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            one = json.loads(line)
            found[one["epoch"]] = one
        return [found[epoch] for epoch in sorted(found)]

    def latent(self, epoch: int | None = None) -> Latent:
        """Where particles lie, at the end or after an epoch that is kept.

        Raises
        ------
        RequestError
            There are none: a homogeneous training, or an epoch that is not kept.
        """
        path = self.path / LATENT if epoch is None else self.path / LATENTS / f"{epoch:04d}.npz"
        if self.facts.homogeneous:
            raise RequestError(f"{self.path}: a homogeneous training has no latent space")
        if not path.exists():
            kept = ", ".join(map(str, self.epochs)) or "none"
            raise RequestError(f"{path} is missing; epochs that are kept: {kept}")
        with np.load(path) as found:
            return Latent(found["mu"], found["log_var"], [str(name) for name in found["particle"]])

    def model(self, epoch: int | None = None) -> VAE:
        """The networks after an epoch, by default the last that is kept."""
        epochs = self.epochs
        if not epochs or (epoch is not None and epoch not in epochs):
            kept = ", ".join(map(str, epochs)) or "none"
            raise RequestError(f"{self.path}: no network of epoch {epoch} is kept; those kept: {kept}")
        number = epoch or epochs[-1]
        if number not in self._models:
            model = self.facts.model()
            path = self.path / MODELS / f"{number:04d}.safetensors"
            try:
                model.load_state_dict(load_file(path))
            except (RuntimeError, SafetensorError) as error:
                raise CorruptError(
                    path, f"it does not hold the networks that {DESCRIPTION} describes; train again"
                ) from error
            self._models = {number: model.eval()}
        return self._models[number]

    def particles(self) -> TiltParticles:
        """The input's, also what could not be read."""
        return self.facts.read_particles()

    def volumes(
        self, z: NDArray[np.floating[Any]], epoch: int | None = None, size: int | None = None
    ) -> NDArray[np.float32]:
        """Structures of places in latent space.

        Parameters
        ----------
        z : (n, latent)
        epoch : int, optional
        size : int, optional
            Voxels of the volumes along an axis, by default the images' box; their field stays the same.

        Returns
        -------
        (n, size, size, size) float32
            Particles light.
        """
        given = torch.as_tensor(np.atleast_2d(np.asarray(z, np.float32)))
        model = self.model(epoch)
        wanted = 0 if self.facts.homogeneous else self.facts.network.latent
        if given.shape[1] != wanted:
            raise RequestError(
                f"{self.path}: places in its latent space have {wanted} coordinates, these have "
                f"{given.shape[1]}"
            )
        return np.asarray(model.volumes(given, size).numpy())

    # ------------------------------------------------------------ what a training writes

    def write_facts(self, facts: RunFacts) -> None:
        """``vae.toml``; the folder is made."""
        for name in (MODELS, LATENTS):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.path / DESCRIPTION, facts.text())
        self.__dict__.pop("facts", None)

    def write_epoch(self, model: VAE, epoch: int, encoded: Encoded | None, names: list[str]) -> None:
        """Networks, and where particles lie, of one epoch."""
        if encoded is not None:
            write_latent(self.path / LATENTS / f"{epoch:04d}.npz", encoded, names)
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        atomic_write_bytes(self.path / MODELS / f"{epoch:04d}.safetensors", save(state))

    def write_latent(self, encoded: Encoded, names: list[str]) -> None:
        """``latent.npz``."""
        write_latent(self.path / LATENT, encoded, names)

    def add_history(self, line: dict[str, Any]) -> None:
        """One more epoch."""
        with (self.path / HISTORY).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """What an interrupted training goes on from."""
        file = io.BytesIO()
        torch.save(state, file)
        atomic_write_bytes(self.path / CHECKPOINT, file.getvalue())

    def read_checkpoint(self) -> dict[str, Any]:
        """The newest."""
        path = self.path / CHECKPOINT
        if not path.exists():
            raise RequestError(f"{path} is missing: there is no training to go on with")
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:
            raise CorruptError(path, f"it cannot be read ({error}); train again") from error
        return found


def write_latent(path: Path, encoded: Encoded, names: list[str]) -> None:
    """Where particles lie, as an archive of NumPy's: mu, log_var and particle."""
    file = io.BytesIO()
    np.savez(file, mu=encoded.mu.numpy(), log_var=encoded.log_var.numpy(), particle=np.array(names, np.str_))
    atomic_write_bytes(path, file.getvalue())


def open_run(path: str | Path) -> VAERun:
    """A training that was done, or begun.

    Raises
    ------
    RequestError
        The folder does not hold one.
    """
    folder = Path(path)
    if not (folder / DESCRIPTION).exists():
        raise RequestError(f"{folder} holds no training: its {DESCRIPTION} is missing; see `weft vae train`")
    return VAERun(folder)
