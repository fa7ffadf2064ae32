"""What `weft export subtomograms` can be told, and what follows from it for cutting and reconstruction."""

from __future__ import annotations

from typing import Literal

from weft.errors import RequestError
from weft.particles.cutting import ImageSeriesSettings
from weft.particles.subtomograms import SubTomogramSettings
from weft.settings import Settings, setting

__all__ = ["ParticleExportSettings"]

Kind = Literal["3d", "2d"]
ParticleFlavour = Literal["relion5", "warp", "relion3", "dynamo"]
#: What each kind can be written for; the first is taken where nothing is said.
_FLAVOURS: dict[str, tuple[ParticleFlavour, ...]] = {
    "3d": ("relion3", "warp", "dynamo"),
    "2d": ("relion5", "warp", "relion3"),
}


class ParticleExportSettings(Settings):
    """What is written for the particles of tomograms, and how."""

    kind: Kind = setting("3d", "3d: a sub-volume for each particle; 2d: a stack of its tilt images.")
    flavour: ParticleFlavour | None = setting(
        None,
        "The program that goes on: relion3, warp or dynamo for 3d (relion3 by default); relion5, warp or "
        "relion3 (a row for every image) for 2d (relion5 by default).",
    )
    box: int = setting(64, "Side of the box; even.", unit="px", ge=8, le=2048)
    pixel_size: float = setting(8.0, "Pixel size of what is written.", unit="Å", gt=0.1, le=200.0)
    diameter: float = setting(
        0.0,
        "Diameter of the particle: what lies outside is background. 0 is three quarters of the box.",
        unit="Å",
        ge=0.0,
        le=20000.0,
    )
    premultiply: bool | None = setting(
        None,
        "Multiply by the CTF and the weights of dose and tilt. By default what the program expects: yes for "
        "2d of relion5 and warp, else no.",
    )
    dose_weighting: Literal["warp", "grant", "none"] | None = setting(
        None,
        "What the dose leaves of the signal: a B-factor of 4 Å² for each e/Å² (warp), the critical exposure "
        "(grant), or all. By default grant for relion5, which supposes it, else warp.",
    )
    tilt_weighting: Literal["cosine", "counts", "none"] = setting(
        "cosine",
        "What the tilt leaves of the signal: the cosine of its angle, the square root of the electrons that "
        "came through, or all of it.",
    )
    weighting: Literal["white", "amplitude"] = setting(
        "white",
        "3d: white makes noise of the same strength at all places of Fourier space, which is what RELION "
        "supposes; amplitude divides by the sum of |CTF| weights as Warp does.",
    )
    min_tilts: int = setting(1, "Leave out particles that fewer tilt images show.", ge=1, le=1000)
    padding: float = setting(
        2.0, "Particles are cut out so many times as large as their box, and cropped last.", ge=1.0, le=4.0
    )

    @property
    def program(self) -> ParticleFlavour:
        """The flavour, or the usual one of this kind.

        Raises
        ------
        RequestError
            A flavour that this kind has not.
        """
        known = _FLAVOURS[self.kind]
        if self.flavour is None:
            return known[0]
        if self.flavour not in known:
            raise RequestError(
                f"{self.flavour} takes no {self.kind} particles from here: --kind {self.kind} is written for "
                f"{', '.join(known)}."
            )
        return self.flavour

    @property
    def cutting(self) -> ImageSeriesSettings:
        """How images are cut.

        Raises
        ------
        RequestError
            An odd box.
        """
        if self.box % 2:
            raise RequestError(f"--box {self.box}: a box has an even number of pixels.")
        usual = self.kind == "2d" and self.program != "relion3"
        dose = self.dose_weighting or ("grant" if self.program == "relion5" else "warp")
        return ImageSeriesSettings(
            box=self.box,
            pixel_size=self.pixel_size,
            diameter=self.diameter,
            premultiply=self.kind == "2d" and (usual if self.premultiply is None else self.premultiply),
            dose_weighting=dose,
            tilt_weighting=self.tilt_weighting,
            padding=self.padding,
        )

    @property
    def volumes(self) -> SubTomogramSettings:
        """How sub-volumes are reconstructed."""
        if self.program == "dynamo":  # which takes no CTF volumes
            return SubTomogramSettings(weighting="filtered")
        return SubTomogramSettings(weighting="premultiplied" if self.premultiply else self.weighting)
