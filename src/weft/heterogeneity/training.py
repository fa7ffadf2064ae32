"""Training of the auto-encoder: the evidence lower bound, particle by particle.

With noise σ(k) in the real and the imaginary part of every coefficient the negative bound of a particle is

    ½ Σ |Y − H V(Rᵀk; z)|² / σ² + β · KL(q(z|Y) ‖ N(0, 1)),    KL = ½ Σ (μ² + s² − 1 − log s²),

over its images and their coefficients (Kingma & Welling 2014; Zhong et al. 2021, eq. 4). In training the
encoder sees a random half of a particle's images while the decoder has to explain all of them: what it could
only remember of one image's noise helps little with the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from weft.heterogeneity.encoders import AlignedEncoder
from weft.heterogeneity.model import VAE, Batch
from weft.settings import Settings, setting

__all__ = [
    "Encoded",
    "EpochReport",
    "Particles",
    "Trainer",
    "VAETrainingSettings",
    "beta_at",
    "encode_all",
    "rate_at",
    "start_encoder",
]

#: Of the particles whose residuals the encoder's principal components come from.
_MOST = 4000
_CHUNK = 64


class VAETrainingSettings(Settings):
    """How the networks learn."""

    epochs: int = setting(30, "How often every particle is seen.", ge=0)
    batch: int | None = setting(
        None, "Particles a step; by default between 2 and 16, for at least 64 steps an epoch.", ge=1
    )
    rate: float = setting(1e-3, "Learning rate (Adam).", gt=0.0)
    encoder_rate: float = setting(0.5, "That of the encoder, as a part of it.", ge=0.0)
    decay: bool = setting(True, "Let the rate fall to nothing over the training, as half a cosine.")
    beta: float = setting(1.0, "Weight of the KL term; 1 is the evidence lower bound.", ge=0.0)
    schedule: Literal["warmup", "constant", "cyclic"] = setting(
        "warmup",
        "How beta comes to its value: rising over the first epochs, at once, or rising again and again.",
    )
    warmup: float = setting(
        0.5, "Part of the training, or of a cycle, over which beta rises.", gt=0.0, le=1.0
    )
    cycles: int = setting(4, "Of a cyclic schedule.", ge=1)
    hide: bool = setting(True, "Show the encoder a random half of a particle's images in training.")
    validation: float = setting(
        0.0, "Part of the particles that is only looked at, not learnt from.", ge=0.0, lt=1.0
    )
    keep_every: int = setting(5, "Epochs between networks that are kept.", ge=1)
    mixed: bool = setting(True, "Let a GPU compute the networks in 16 bits.")
    seed: int = setting(0, "Of everything random.", ge=0)

    def batch_of(self, particles: int) -> int:
        """Particles a step."""
        return self.batch or min(max(particles // 64, 2), 16)


class Particles(Protocol):
    """Where particles come from."""

    def __len__(self) -> int: ...

    def batch(self, which: Sequence[int]) -> Batch:
        """Some of them."""
        ...


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to.

    Attributes
    ----------
    epoch : int
        From 1.
    loss : float
        The negative bound with the current beta, per coefficient of noise 1/√2 (so that noise alone gives 1).
    reconstruction : float
        Squared differences weighted by dose and tilt, images being of variance 1: tomoDRGN's loss.
    kl : float
        nats a particle.
    beta : float
    validation : float or None
        Of the particles that are not learnt from, what `loss` is with beta's final value.
    images : int
        That were learnt from.
    """

    epoch: int
    loss: float
    reconstruction: float
    kl: float
    beta: float
    validation: float | None
    images: int


@dataclass(frozen=True)
class Encoded:
    """Where particles lie in latent space: (p, latent) float32 each."""

    mu: torch.Tensor
    log_var: torch.Tensor


def beta_at(done: float, settings: VAETrainingSettings) -> float:
    """Beta after a part of the training, 0 to 1."""
    if settings.schedule == "constant":
        return settings.beta
    if settings.schedule == "cyclic":
        done = (done * settings.cycles) % 1.0
    return settings.beta * min(done / settings.warmup, 1.0)


def rate_at(done: float, settings: VAETrainingSettings) -> float:
    """The learning rate after a part of the training, 0 to 1."""
    if not settings.decay:
        return settings.rate
    return settings.rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def start_encoder(model: VAE, particles: Particles, seed: int) -> None:
    """Start the aligned encoder from the principal components of the particles' residuals."""
    if not isinstance(model.encoder, AlignedEncoder):
        return
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(particles), generator=random)[:_MOST].sort().values.tolist()
    parts = [chosen[i : i + _CHUNK] for i in range(0, len(chosen), _CHUNK)]
    weight, points = 0.0, 0
    for part in parts[:4]:
        batch = particles.batch(part)
        _, denominator = model.residual_sums(batch, model.mean_sections(batch))
        weight += float(denominator.sum())
        points += int((denominator > 0.0).sum())
    model.damping.fill_(weight / max(points, 1))
    maps = []
    for part in parts:
        batch = particles.batch(part)
        maps.append(model.residual_maps(batch, model.mean_sections(batch)))
    model.encoder.start_from(torch.cat(maps))


def kl_divergence(mu: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    """From the standard normal distribution, nats: (p, latent)."""
    return 0.5 * (mu * mu + log_var.exp() - 1.0 - log_var)


class Trainer:
    """Trains a model; what it draws and where it stands can be saved, and gone on from exactly.

    Parameters
    ----------
    model : VAE
        On its device.
    particles : Particles
    settings : VAETrainingSettings
    """

    def __init__(self, model: VAE, particles: Particles, settings: VAETrainingSettings) -> None:
        self.model, self.particles, self.settings = model, particles, settings
        self.epoch = 0
        self._random = torch.Generator().manual_seed(settings.seed)
        groups: list[dict[str, Any]] = [{"params": list(model.decoder.parameters()), "part": 1.0}]
        if model.encoder is not None:
            groups.append({"params": list(model.encoder.parameters()), "part": settings.encoder_rate})
        self.optimiser = torch.optim.Adam(groups, settings.rate)
        order = torch.randperm(len(particles), generator=self._random)
        held = round(settings.validation * len(particles))
        self.held_out = order[:held].sort().values
        self.learnt_from = order[held:].sort().values
        if not len(self.learnt_from):
            raise ValueError("there are no particles to learn from")
        self._device = model.volume.device

    def state(self) -> dict[str, Any]:
        """Everything beside the model."""
        return {
            "epoch": self.epoch,
            "optimiser": self.optimiser.state_dict(),
            "random": self._random.get_state(),
            "held_out": self.held_out,
            "learnt_from": self.learnt_from,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.epoch = int(state["epoch"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._random.set_state(state["random"])
        self.held_out, self.learnt_from = state["held_out"], state["learnt_from"]

    def _seen(self, batch: Batch) -> torch.Tensor:
        """(m,) 1 for a random half of each particle's images, rounded up."""
        draw = torch.rand(len(batch.owner), generator=self._random)
        # ranks within each particle: sorting by owner first, draw second
        order = torch.argsort(batch.owner.cpu().double() + draw.double() * 0.999)
        count = torch.bincount(batch.owner.cpu(), minlength=batch.particles)
        first = count.cumsum(0) - count
        rank = torch.empty(len(draw), dtype=torch.int64)
        rank[order] = torch.arange(len(draw)) - first[batch.owner.cpu()[order]]
        return (rank < (count[batch.owner.cpu()] + 1) // 2).float().to(batch.owner.device)

    def _terms(self, batch: Batch, hide: bool, sampled: bool) -> tuple[torch.Tensor, torch.Tensor, _Sums]:
        """Negative log likelihood and KL of a batch (nats), and what the report needs."""
        model = self.model
        mean = model.mean_sections(batch)
        z, kl = None, torch.zeros((), device=self._device)
        half = self._device.type == "cuda" and self.settings.mixed
        with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
            if model.encoder is not None:
                mu, log_var = model.encode(batch, mean, self._seen(batch) if hide else None)
                mu, log_var = mu.float(), log_var.float()
                kl = kl_divergence(mu, log_var).sum()
                z = mu
                if sampled:
                    noise = torch.randn(mu.shape, generator=self._random).to(mu.device)
                    z = mu + noise * (0.5 * log_var).exp()
            # coefficients are in order of frequency: none beyond the last that any image shows is computed
            count = int((batch.weight > 0.0).any(0).nonzero().max()) + 1
            structure = model.decode(batch, mean, z, count)
        used = batch.weight[:, :count] > 0.0
        wrong = (structure * batch.transfer[:, :count] - batch.values[:, :count]) * used
        square = torch.view_as_real(wrong).square().sum(-1)
        nll = 0.5 * (square / model.noise[model.lattice.shell[:count]].square()).sum()
        with torch.no_grad():
            weighted = float((square * batch.weight[:, :count]).sum() / model.power)
        return nll, kl, _Sums(weighted, 2.0 * batch.weight.numel(), 2.0 * int(used.sum()))

    def run_epoch(self, progress: Callable[[int, float], None] | None = None) -> EpochReport:
        """See every particle once.

        Parameters
        ----------
        progress : callable, optional
            Takes the particles that were seen in this epoch, and the loss so far.

        Raises
        ------
        ArithmeticError
            The loss is no number any more.
        """
        order = self.learnt_from[torch.randperm(len(self.learnt_from), generator=self._random)]
        steps = torch.split(order, self.settings.batch_of(len(order)))
        total = _Totals()
        self.model.train()
        seen = 0
        beta = 0.0
        for number, part in enumerate(steps):
            batch = self.particles.batch(part.tolist()).to(self._device)
            done = (self.epoch + number / len(steps)) / self.settings.epochs
            beta = beta_at(done, self.settings)
            for group in self.optimiser.param_groups:
                group["lr"] = rate_at(done, self.settings) * group["part"]
            nll, kl, sums = self._terms(batch, self.settings.hide, True)
            loss = (nll + beta * kl) / sums.coefficients
            if not math.isfinite(float(loss.detach())):
                raise ArithmeticError(
                    f"the loss is no number any more in epoch {self.epoch + 1}; a lower rate may help"
                )
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            total.add(float(nll.detach()), float(kl.detach()), beta, sums, batch)
            seen += len(part)
            if progress is not None:
                progress(seen, total.loss)
        self.epoch += 1
        return EpochReport(
            self.epoch,
            total.loss,
            total.weighted / total.places,
            total.kl / max(total.particles, 1),
            beta,
            self._validation(),
            total.images,
        )

    @torch.no_grad()
    def _validation(self) -> float | None:
        if not len(self.held_out):
            return None
        self.model.eval()
        total = _Totals()
        for part in torch.split(self.held_out, _CHUNK):
            batch = self.particles.batch(part.tolist()).to(self._device)
            nll, kl, sums = self._terms(batch, False, False)
            total.add(float(nll), float(kl), self.settings.beta, sums, batch)
        return total.loss


@dataclass(frozen=True)
class _Sums:
    weighted: float
    places: float
    coefficients: float


class _Totals:
    def __init__(self) -> None:
        self.bound = self.kl = self.weighted = self.places = self.coefficients = 0.0
        self.particles = self.images = 0

    def add(self, nll: float, kl: float, beta: float, sums: _Sums, batch: Batch) -> None:
        self.bound += nll + beta * kl
        self.kl += kl
        self.weighted += sums.weighted
        self.places += sums.places
        self.coefficients += sums.coefficients
        self.particles += batch.particles
        self.images += len(batch.owner)

    @property
    def loss(self) -> float:
        return 2.0 * self.bound / max(self.coefficients, 1.0)


@torch.no_grad()
def encode_all(model: VAE, parts: Iterable[Batch]) -> Encoded:
    """Where all particles lie, each seen whole."""
    model.eval()
    mu, log_var = [], []
    for batch in parts:
        on = batch.to(model.volume.device)
        m, v = model.encode(on, model.mean_sections(on))
        mu.append(m.float().cpu())
        log_var.append(v.float().cpu())
    return Encoded(torch.cat(mu), torch.cat(log_var))
