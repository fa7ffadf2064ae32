"""The variational auto-encoder: mean structure, decoder and encoder as one, and volumes from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from weft.heterogeneity.consensus import Consensus, sections
from weft.heterogeneity.decoder import CoordinateDecoder
from weft.heterogeneity.encoders import AlignedEncoder, ImageEncoder, Pooling
from weft.heterogeneity.lattice import Lattice
from weft.heterogeneity.preparation import Prepared
from weft.heterogeneity.residuals import ResidualGrid
from weft.particles.fourier_volume import padded_transform, sample
from weft.physics import fourier
from weft.settings import Settings, setting

__all__ = ["VAE", "Batch", "NetworkSettings"]

#: The decoder changes coefficients by this part of the mean structure's, at the start.
_CHANGE = 0.5


class NetworkSettings(Settings):
    """The networks."""

    latent: int = setting(8, "Dimensions of the latent space.", ge=1, le=1024)
    hidden: int = setting(128, "Width of the decoder's layers.", ge=8)
    layers: int = setting(3, "Residual layers of the decoder.", ge=1)
    features: int = setting(64, "Positional features of the decoder, pairs of them.", ge=4)
    encoder: Literal["aligned", "images"] = setting(
        "aligned",
        "What the encoder reads: residuals that are put together in the particle's frame, or each image by "
        "itself, pooled over the tilts.",
    )
    encoder_hidden: int = setting(128, "Width of the encoder's layers.", ge=8)
    encoder_layers: int = setting(2, "Layers of the encoder.", ge=1)
    pooling: Pooling = setting("attention", "How the encoder of images pools over the tilts.")
    grid: int = setting(16, "Voxels across of the residuals that the aligned encoder reads.", ge=4)
    components: int = setting(32, "Principal components of them.", ge=1)
    seed: int = setting(0, "Of everything random.", ge=0)


@dataclass(frozen=True)
class Batch(Prepared):
    """The images of some particles.

    Attributes
    ----------
    owner : (m,) int64
        Which particle of the batch each image belongs to, in order.
    particles : int
    """

    owner: torch.Tensor
    particles: int

    def to(self, device: torch.device | str) -> Batch:
        """On another device."""
        return Batch(
            self.values.to(device),
            self.transfer.to(device),
            self.weight.to(device),
            self.rotation.to(device),
            self.owner.to(device),
            self.particles,
        )


class VAE(nn.Module):
    """All that a training learns.

    Parameters
    ----------
    lattice : Lattice
    settings : NetworkSettings
    diameter : float
        Of the particle, Å.
    tilts : int
        Greatest number of images of a particle.
    homogeneous : bool
        No latent space: one structure for all.
    """

    volume: torch.Tensor
    amplitude: torch.Tensor
    noise: torch.Tensor
    damping: torch.Tensor
    power: torch.Tensor
    reach: torch.Tensor

    def __init__(
        self,
        lattice: Lattice,
        settings: NetworkSettings,
        diameter: float,
        tilts: int,
        *,
        homogeneous: bool = False,
    ) -> None:
        super().__init__()
        n = lattice.box
        self.lattice, self.settings, self.homogeneous = lattice, settings, homogeneous
        part = min(diameter / (n * lattice.pixel_size), 1.0)
        latent = 0 if homogeneous else settings.latent
        # what parameters begin with is drawn from the settings' seed, and nobody else's draws are disturbed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.decoder = CoordinateDecoder(
                latent, settings.hidden, settings.layers, settings.features, 0.5 * part, n, settings.seed
            )
            self.grid = ResidualGrid(lattice, settings.grid, part)
            hidden, layers = settings.encoder_hidden, settings.encoder_layers
            self.encoder: AlignedEncoder | ImageEncoder | None = None
            if not homogeneous and settings.encoder == "aligned":
                self.encoder = AlignedEncoder(latent, settings.components, self.grid.features, hidden, layers)
            elif not homogeneous:
                self.encoder = ImageEncoder(latent, 2 * len(lattice), hidden, layers, settings.pooling, tilts)
        self.register_buffer("volume", torch.zeros(n, n, n))
        self.register_buffer("amplitude", torch.ones(n // 2 + 1))
        self.register_buffer("noise", torch.ones(n // 2 + 1))
        self.register_buffer("damping", torch.ones(()))
        self.register_buffer("power", torch.ones(()))
        self.register_buffer("reach", torch.tensor(n / 2.0))
        self._transform: torch.Tensor | None = None

    def start_from(self, consensus: Consensus) -> None:
        """Take the mean structure and the spectra."""
        self.volume.copy_(consensus.volume)
        self.amplitude.copy_(consensus.signal * _CHANGE)
        self.noise.copy_(consensus.noise)
        self.power.fill_(consensus.power)
        self.reach.fill_(consensus.reach)
        self._transform = None

    @property
    def mean_transform(self) -> torch.Tensor:
        """Of the mean structure, ready to be sampled."""
        if self._transform is None or self._transform.device != self.volume.device:
            self._transform = padded_transform(self.volume, self.lattice.box / 2.0)
        return self._transform

    def mean_sections(self, batch: Batch) -> torch.Tensor:
        """Of the mean structure, at a batch's images: (m, c) complex64."""
        return sections(self.mean_transform, batch.rotation, self.lattice)

    def residual_maps(
        self, batch: Batch, mean: torch.Tensor, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the aligned encoder reads: (p, features).

        Parameters
        ----------
        batch : Batch
        mean : (m, c) complex64
        seen : (m,) float32, optional
            0 takes an image out.
        """
        numerator, denominator = self.residual_sums(batch, mean, seen)
        return self.grid.maps(numerator, denominator, float(self.damping))

    def residual_sums(
        self, batch: Batch, mean: torch.Tensor, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`weft.heterogeneity.residuals.ResidualGrid.sums`, of a batch."""
        transfer = batch.transfer[:, : self.grid.used]
        if seen is not None:
            transfer = transfer * seen[:, None]
        noise = self.noise[self.lattice.shell[: self.grid.used]]
        expected = mean[:, : self.grid.used] * batch.transfer[:, : self.grid.used]
        residual = (batch.values[:, : self.grid.used] - expected) / noise
        return self.grid.sums(residual, transfer / noise, batch.rotation, batch.owner, batch.particles)

    def encode(
        self, batch: Batch, mean: torch.Tensor, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of each particle's z: (p, latent) each."""
        if isinstance(self.encoder, AlignedEncoder):
            with torch.no_grad():
                maps = self.residual_maps(batch, mean, seen)
            found: tuple[torch.Tensor, torch.Tensor] = self.encoder(maps)
            return found
        if self.encoder is None:
            raise ValueError("a homogeneous model has no encoder")
        whole = batch.values / self.noise[self.lattice.shell] * batch.transfer.sign()
        images = torch.view_as_real(whole.contiguous()).flatten(1) * 0.5**0.5
        count = torch.bincount(batch.owner, minlength=batch.particles)
        tilts = int(count.max())
        first = count.cumsum(0) - count
        place = torch.arange(len(images), device=images.device) - first[batch.owner]
        padded = images.new_zeros(batch.particles, tilts, images.shape[1])
        padded[batch.owner, place] = images
        shown = torch.zeros(batch.particles, tilts, dtype=torch.bool, device=images.device)
        shown[batch.owner, place] = True if seen is None else seen > 0.0
        found = self.encoder(padded, shown)
        return found

    def decode(self, batch: Batch, mean: torch.Tensor, z: torch.Tensor | None, count: int) -> torch.Tensor:
        """The first `count` coefficients of the structure in a batch's images, without CTF: (m, count).

        Beyond `reach` it is the mean structure, and the network is not asked.
        """
        changed = min(count, self.lattice.within(float(self.reach)))
        features = self.decoder.plane_features(batch.rotation, self.lattice, changed)
        change: torch.Tensor = self.decoder(features, None if z is None else z[batch.owner])
        near = mean[:, :changed] + change * self.amplitude[self.lattice.shell[:changed]]
        return torch.cat([near, mean[:, changed:count]], 1)

    @torch.no_grad()
    def volumes(self, z: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """Structures of places in latent space, particles light.

        Parameters
        ----------
        z : (v, latent) float32
            (v, 0) for a homogeneous model.
        size : int, optional
            Voxels along an axis, by default the images' box; the field and the values stay the same.

        Returns
        -------
        (v, size, size, size) float32
        """
        n, device = size or self.lattice.box, self.volume.device
        whole = torch.arange(-(n // 2), n // 2, device=device)
        uz, uy, ux = torch.meshgrid(whole, whole, torch.arange(n // 2, device=device), indexing="ij")
        at = torch.stack([ux, uy, uz], -1).reshape(-1, 3)
        radius = at.float().norm(dim=1)
        at = at[(radius <= float(self.lattice.radius.max())) & (radius < n / 2)]
        away = at.float().norm(dim=1)
        strength = self.amplitude[away.round().long()] * (away < self.reach)
        mean = sample(self.mean_transform, at.float())
        out = torch.empty(len(z), n, n, n)
        for i, point in enumerate(z):
            values = torch.empty(len(at), dtype=torch.complex64, device=device)
            for part in torch.split(torch.arange(len(at), device=device), 1 << 16):
                features = self.decoder.space_features(at[part].float())[None]
                given = None if self.homogeneous else point[None].to(device)
                values[part] = self.decoder(features, given)[0]
            values = (mean + values * strength) * (n / self.lattice.box) ** 3
            half = torch.zeros(n, n, n // 2 + 1, dtype=torch.complex64, device=device)
            half[at[:, 2] % n, at[:, 1] % n, at[:, 0]] = values
            out[i] = fourier.irfft3(half, (n, n, n)).roll((n // 2,) * 3, (0, 1, 2)).cpu()
        return out
