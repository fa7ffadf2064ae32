"""``weft vae train`` and ``embed``: particles from a STAR file, a folder with what was learnt."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from weft.errors import RequestError
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles
from weft.heterogeneity.model import Batch, NetworkSettings
from weft.heterogeneity.preparation import PreparationSettings
from weft.heterogeneity.training import (
    Encoded,
    EpochReport,
    Trainer,
    VAETrainingSettings,
    encode_all,
    start_encoder,
)
from weft.session.heterogeneity.choice import choose_particles
from weft.session.heterogeneity.inputs import TiltData
from weft.session.heterogeneity.run_folder import (
    CHECKPOINT,
    HISTORY,
    LATENT,
    LATENTS,
    MODELS,
    RunFacts,
    VAERun,
)

__all__ = ["TrainingProgress", "TrainingReport", "embed", "resume_vae", "train_vae"]

_AT_ONCE = 64


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes
    ----------
    epoch, epochs : int
        The one under way, from 1, and how many there are to be.
    done, particles : int
        In this epoch.
    loss : float
        So far in this epoch.
    report : EpochReport or None
        At the end of an epoch: what it came to.
    seconds_left : float
        Of the whole training.
    """

    epoch: int
    epochs: int
    done: int
    particles: int
    loss: float
    report: EpochReport | None
    seconds_left: float


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to.

    Attributes
    ----------
    run : VAERun
    particles, images : int
    failed : dict of str to str
        Particles that were left out, and why.
    seconds : float
    """

    run: VAERun
    particles: int
    images: int
    failed: dict[str, str]
    seconds: float

    @property
    def exit_code(self) -> int:
        """1 where particles were left out."""
        return 1 if self.failed else 0


Tell = Callable[[TrainingProgress], None]


def train_vae(
    source: str | Path,
    output: str | Path,
    network: NetworkSettings | None = None,
    training: VAETrainingSettings | None = None,
    preparation: PreparationSettings | None = None,
    *,
    homogeneous: bool = False,
    datadir: str | Path | None = None,
    tomograms: str | Path | None = None,
    only: str | Path | None = None,
    memory: float = 4.0,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    progress: Tell | None = None,
) -> TrainingReport:
    """Train on particles that any program has exported as tilt images.

    Parameters
    ----------
    source : path-like
        A STAR file or an optimisation set.
    output : path-like
        A folder; see :mod:`weft.session.heterogeneity.run_folder`.
    network, training, preparation : settings, optional
    homogeneous : bool
        One structure for all: a decoder without a latent space.
    datadir, tomograms : path-like, optional
        Where the stacks are, and the STAR file of tomograms, where the input does not say it.
    only : path-like, optional
        Names or indices of particles to train on.
    memory : float
        GB that images may take; what does not fit is read again in every epoch.
    overwrite : bool
        Begin anew where the folder holds a training.
    device : torch device
    progress : callable, optional

    Raises
    ------
    RequestError
        The folder holds a training already, or no particle can be read.
    """
    network = network or NetworkSettings()
    training = training or VAETrainingSettings()
    run = VAERun(Path(output))
    if (run.path / CHECKPOINT).exists() or run.epochs:
        if not overwrite:
            raise RequestError(
                f"{run.path} holds a training already: go on with it with --resume, or take --overwrite"
            )
        _clear(run.path)
    particles = read_tilt_particles(source, datadir=datadir, tomograms=tomograms)
    if only is not None:
        particles = particles.select(choose_particles(only, particles))
    data = TiltData(particles, preparation or PreparationSettings(), memory)
    begin = time.monotonic()
    consensus = data.consensus()
    facts = RunFacts(
        Path(source).absolute(),
        None if datadir is None else Path(datadir).absolute(),
        None if tomograms is None else Path(tomograms).absolute(),
        len(data),
        int(particles.count[data.kept].sum()),
        data.tilts,
        particles.box,
        particles.pixel_size,
        data.diameter,
        data.sign,
        homogeneous,
        network,
        training,
        data.settings,
    )
    model = facts.model()
    model.start_from(consensus)
    start_encoder(model, data, training.seed)
    run.write_facts(facts)
    trainer = Trainer(model.to(device), data, training)
    _go(run, trainer, data, begin, progress)
    return TrainingReport(run, len(data), facts.images, data.failed, time.monotonic() - begin)


def resume_vae(
    output: str | Path,
    *,
    epochs: int | None = None,
    memory: float = 4.0,
    device: torch.device | str = "cpu",
    progress: Tell | None = None,
) -> TrainingReport:
    """Go on with a training that was interrupted, exactly as it would have gone on; or train longer.

    Parameters
    ----------
    output : path-like
        Its folder.
    epochs : int, optional
        Of the whole training, where it is to be longer than it was meant to be.

    Raises
    ------
    RequestError
        The folder holds none, or the particles are not the ones that it was trained on.
    """
    run = VAERun(Path(output))
    state = run.read_checkpoint()
    facts = run.facts
    if epochs is not None:
        facts = replace(facts, training=facts.training.model_copy(update={"epochs": epochs}))
        run.write_facts(facts)
    particles = facts.read_particles()
    names: list[str] = state["particles"]
    at = {name: i for i, name in enumerate(particles.particle)}
    missing = [name for name in names if name not in at]
    if missing:
        raise RequestError(
            f"{facts.input}: {len(missing)} of the particles that the training began with are gone, "
            f"such as {missing[0]}"
        )
    data = TiltData(particles.select([at[name] for name in names]), facts.preparation, memory)
    data.sign = facts.sign
    model = facts.model()
    model.load_state_dict(state["model"])
    begin = time.monotonic()
    trainer = Trainer(model.to(device), data, facts.training)
    trainer.restore(state["trainer"])
    _go(run, trainer, data, begin, progress)
    return TrainingReport(run, len(data), facts.images, data.failed, time.monotonic() - begin)


def _clear(folder: Path) -> None:
    for name in (CHECKPOINT, HISTORY, LATENT):
        (folder / name).unlink(missing_ok=True)
    for name in (MODELS, LATENTS, "analysis"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _go(run: VAERun, trainer: Trainer, data: TiltData, begin: float, progress: Tell | None) -> None:
    """Train to the end; the folder always holds what the next start can go on from."""
    settings, names = trainer.settings, data.names
    first = trainer.epoch

    def left(epochs: float) -> float:
        return (time.monotonic() - begin) / max(epochs, 1e-9) * (settings.epochs - first - epochs)

    encoded = _encoded(trainer, data) if trainer.epoch >= settings.epochs else None
    while trainer.epoch < settings.epochs:
        number, size = trainer.epoch, len(trainer.learnt_from)

        def tell(done: int, loss: float, number: int = number, size: int = size) -> None:
            if progress is not None:
                remaining = left(number - first + done / size)
                progress(TrainingProgress(number + 1, settings.epochs, done, size, loss, None, remaining))

        started = time.monotonic()
        report = trainer.run_epoch(tell)
        seconds = time.monotonic() - started
        last = trainer.epoch == settings.epochs
        if last or trainer.epoch % settings.keep_every == 0:
            encoded = _encoded(trainer, data)
            run.write_epoch(trainer.model, trainer.epoch, encoded, names)
        line = {**asdict(report), "seconds": round(seconds, 3)}
        line["images_per_second"] = round(report.images / max(seconds, 1e-9), 1)
        run.add_history(line)
        run.write_checkpoint(
            {"model": trainer.model.state_dict(), "trainer": trainer.state(), "particles": names}
        )
        if progress is not None:
            progress(
                TrainingProgress(
                    *(trainer.epoch, settings.epochs, size, size, report.loss, report),
                    left(trainer.epoch - first),
                )
            )
    if encoded is not None:
        run.write_latent(encoded, names)


def _batches(data: TiltData) -> Iterator[Batch]:
    for first in range(0, len(data), _AT_ONCE):
        yield data.batch(range(first, min(first + _AT_ONCE, len(data))))


def _encoded(trainer: Trainer, data: TiltData) -> Encoded | None:
    return None if trainer.model.homogeneous else encode_all(trainer.model, _batches(data))


def embed(
    run: VAERun,
    source: str | Path,
    *,
    epoch: int | None = None,
    datadir: str | Path | None = None,
    tomograms: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Encoded, TiltParticles, dict[str, str]]:
    """Where particles lie that the training has not seen.

    Returns
    -------
    Encoded
    TiltParticles
        Those that can be read, in the input's order.
    dict of str to str
        The others, and why.

    Raises
    ------
    RequestError
        A homogeneous training, or images of another box or pixel size.
    """
    facts = run.facts
    if facts.homogeneous:
        raise RequestError(f"{run.path}: a homogeneous training has no latent space")
    particles = read_tilt_particles(source, datadir=datadir, tomograms=tomograms)
    if particles.box != facts.box or abs(particles.pixel_size / facts.pixel_size - 1.0) > 1e-3:
        raise RequestError(
            f"{source}: images of {particles.box} pixels of {particles.pixel_size:g} Å; the training's have "
            f"{facts.box} of {facts.pixel_size:g} Å"
        )
    model = run.model(epoch).to(device)
    data = TiltData(particles, facts.preparation, 0.0)
    data.sign = facts.sign
    data.leave_out_unreadable()
    return encode_all(model, _batches(data)), particles.select(data.kept), data.failed
