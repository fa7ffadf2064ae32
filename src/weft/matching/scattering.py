"""Maps made from scatterers: of atoms by their electron scattering factors, against water, and of points.

Everything is first put on a grid twice as fine as is asked for, blurred by a Gaussian of one fine voxel, so
that the grid can hold it (aliases stay below 1e-4 of what is kept); then the blur is divided out in Fourier
space and the grid cropped to the voxels that were asked for.
"""

from __future__ import annotations

import math

import gemmi
import numpy as np
import torch

from weft.errors import ItemError
from weft.formats.structure import Atoms
from weft.physics.fourier import fast_size
from weft.settings import Settings, setting

__all__ = ["AtomSettings", "density_from_atoms", "density_from_points", "water_scattering"]

_AVOGADRO = 0.602214076  # molecules Å^-3 for one mol cm^-3
_WATER_MASS = 18.015  # g/mol

# volume that an atom takes away from the solvent, Å^3: Fraser, MacRae & Suzuki 1978, J. Appl. Cryst. 11, 693
_VOLUMES = {"H": 5.15, "C": 16.44, "N": 2.49, "O": 9.13, "P": 5.73, "S": 19.86, "MG": 17.16, "CA": 31.89}
_OTHER_VOLUME = 16.0
_REACH = 5  # fine voxels: a Gaussian of one fine voxel is 4e-6 of its height there
_MAX_FINE = 1100  # a finer grid would not fit into 16 GB


class AtomSettings(Settings):
    """How density is made from atoms."""

    assembly: str | None = setting(
        None, "With a model: build this biological assembly of the file, such as 1; without, its atoms as is."
    )
    b_factor: float | None = setting(
        None, "With a model: use this B-factor for all atoms instead of the file's own.", unit="Å²", ge=0.0
    )
    solvent: float = setting(
        0.93,
        "With a model: density of the vitreous water that the atoms displace, whose potential is taken away "
        "from theirs; without it low resolutions are too strong by more than two. 0 is vacuum.",
        unit="g/cm³",
        ge=0.0,
        le=2.0,
    )


def _strength(element: str) -> float:
    """Electron scattering factor at zero angle, Å."""
    return float(sum(gemmi.Element(element).c4322.get_coefs()[:5]))


def water_scattering(density: float) -> float:
    """Scattering length density of water of `density` g/cm³: Å per Å³, 47.88 V each."""
    return density / _WATER_MASS * _AVOGADRO * (2.0 * _strength("H") + _strength("O"))


def density_from_atoms(
    atoms: Atoms, voxel_size: float, settings: AtomSettings | None = None
) -> tuple[torch.Tensor, tuple[float, float, float]]:
    """The scattering potential of atoms minus that of the water they displace.

    Atoms scatter by the five Gaussians of Peng et al. 1996, Acta Cryst. A52, 257 (gemmi's table), blurred by
    their B-factors; hydrogens that the file lacks sit on their heavy atoms. Each atom displaces a Gaussian
    of water, of the volume and width of Fraser et al. 1978: V exp(-π V^(2/3) k²). What stays within a volume
    of protein is then a potential of about 3 V above water, not 7 V above vacuum.

    Parameters
    ----------
    atoms : Atoms
    voxel_size : float
        Å.
    settings : AtomSettings, optional

    Returns
    -------
    density : (n, n, n) float32
        Å⁻²; 47.88 V Å² turn it into volts. Just large enough, the solvent at 0.
    centre : (x, y, z)
        Å; the place among the atoms' coordinates that is at index n//2: their centre of mass, weighted by
        scattering.
    """
    settings = settings or AtomSettings()
    strengths = {name: _known_strength(name) for name in {*atoms.elements, "H"}}
    weights = np.array([strengths[name] for name in atoms.elements]) + atoms.hydrogens * strengths["H"]
    centre = np.average(atoms.xyz, axis=0, weights=weights * atoms.occupancy)
    fine = 0.5 * voxel_size
    b_factor = atoms.b_factor if settings.b_factor is None else np.full(len(atoms), settings.b_factor)
    blur = 8.0 * math.pi**2 * fine**2
    # room for the widest atom, and for the resolution that one voxel stands for
    margin = 8.0 + 6.0 * voxel_size + 3.0 * math.sqrt(float(b_factor.max()) / (8.0 * math.pi**2))
    size = _fine_size(float(np.abs(atoms.xyz - centre).max()) + margin, fine)

    calculator = gemmi.DensityCalculatorE()
    side = size * fine
    calculator.grid.set_unit_cell(gemmi.UnitCell(side, side, side, 90.0, 90.0, 90.0))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.grid.set_size(size, size, size)
    calculator.blur = blur
    # what a Gaussian's rim may lack, from its height
    calculator.cutoff = 1e-6 * (4.0 * math.pi / (blur + 20.0)) ** 1.5
    water = water_scattering(settings.solvent)
    atom = gemmi.Atom()
    hydrogen_volume = _VOLUMES["H"]
    for i, name in enumerate(atoms.elements):
        x, y, z = atoms.xyz[i] - centre + 0.5 * side
        atom.pos = gemmi.Position(x, y, z)
        bound = float(atoms.hydrogens[i])
        parts = [(name, 1.0, _VOLUMES.get(name.upper(), _OTHER_VOLUME))]
        parts += [("H", bound, hydrogen_volume)] if bound > 0.0 else []
        for element, count, volume in parts:
            atom.element = gemmi.Element(element)
            atom.occ = float(atoms.occupancy[i]) * count
            atom.b_iso = float(b_factor[i])
            calculator.add_atom_density_to_grid(atom)
            if water > 0.0:
                atom.b_iso = 4.0 * math.pi * volume ** (2.0 / 3.0)
                calculator.add_c_contribution_to_grid(atom, -water * volume)
    # gemmi's first index is x
    grid = torch.from_numpy(np.ascontiguousarray(calculator.grid.array.transpose(2, 1, 0)))
    x, y, z = centre.tolist()
    return _unblurred(grid, fine, blur, 0.0), (x, y, z)


def _known_strength(element: str) -> float:
    if gemmi.Element(element).c4322 is None:
        raise ItemError(f"no electron scattering factor is known for the element {element}: leave it out")
    return _strength(element)


def density_from_points(xyzw: torch.Tensor, voxel_size: float, box: int, blur: float = 0.0) -> torch.Tensor:
    """A map of points that scatter, each by its weight.

    Parameters
    ----------
    xyzw : (n, 4) float
        x, y, z in Å from the centre of the box (index box//2), and the weight.
    voxel_size : float
        Å.
    box : int
    blur : float
        B-factor, Å²: amplitudes fall off as exp(-B k²/4). Without one the map is cut off sharply at its
        Nyquist frequency and has ripples.

    Returns
    -------
    (box, box, box) float32
        Weight per Å³.

    Raises
    ------
    ItemError
        Points that are not finite, none at all, or some outside the box.
    """
    if len(xyzw) == 0 or not bool(torch.isfinite(xyzw).all()):
        raise ItemError("the points are none or not all finite: there is nothing to make a map from")
    places = xyzw[:, :3].double()
    room = (0.5 * box - 0.5) * voxel_size
    reach = float(places.abs().max())
    if reach > room:
        raise ItemError(
            f"points reach {reach:.0f} Å from the centre, a box of {box} voxels of {voxel_size:g} Å holds "
            f"{room:.0f} Å: give a box of at least {2 * math.ceil(reach / voxel_size + 0.5)}"
        )
    fine = 0.5 * voxel_size
    sigma = math.sqrt(blur / (8.0 * math.pi**2))
    size = max(_fine_size(reach + 4.0 * sigma + _REACH * fine, fine), 4 * math.ceil(box / 2))
    grid = _splatted(places.flip(1) / fine + size // 2, xyzw[:, 3].double(), size) / fine**3
    made = _unblurred(grid, fine, 8.0 * math.pi**2 * fine**2, blur)
    first = made.shape[0] // 2 - box // 2
    return made[(slice(first, first + box),) * 3].contiguous()


def _fine_size(reach: float, fine: float) -> int:
    """Voxels of a fine grid, a multiple of four, that holds `reach` Å on both sides of its centre."""
    size = 4 * fast_size(math.ceil(reach / (2.0 * fine)), even=False)
    if size > _MAX_FINE:
        raise ItemError(
            f"the particle is {2 * reach:.0f} Å large and would need a grid of {size}³ points for voxels of "
            f"{2 * fine:g} Å: choose larger voxels"
        )
    return size


def _splatted(zyx: torch.Tensor, weights: torch.Tensor, size: int) -> torch.Tensor:
    """Sum of Gaussians of one voxel's standard deviation and the integral w: (size, size, size) float32."""
    out = torch.zeros(size**3, dtype=torch.float64, device=zyx.device)
    offsets = torch.arange(-_REACH, _REACH + 1, device=zyx.device)
    for start in range(0, len(zyx), 4096):
        part, weight = zyx[start : start + 4096], weights[start : start + 4096]
        index = part.round().long()[:, :, None] + offsets
        gauss = torch.exp(-0.5 * (index - part[:, :, None]) ** 2)
        # normalised one by one, so that a point's weight is exact wherever it lies
        gauss = gauss / gauss.sum(dim=2, keepdim=True)
        value = torch.einsum("nz,ny,nx->nzyx", gauss[:, 0] * weight[:, None], gauss[:, 1], gauss[:, 2])
        place = index % size
        flat = (place[:, 0, :, None, None] * size + place[:, 1, None, :, None]) * size + place[
            :, 2, None, None
        ]
        out.index_add_(0, flat.reshape(-1), value.reshape(-1))
    return out.float().reshape(size, size, size)


def _unblurred(grid: torch.Tensor, fine: float, blur: float, b_factor: float) -> torch.Tensor:
    """Divide a blur (B-factor, Å²) out, put another in, and keep every second voxel, band-limited."""
    n = grid.shape[0]
    m, half = n // 2, n // 4
    spectrum = torch.fft.rfft(grid, dim=2)[:, :, : half + 1]
    for axis in (1, 0):
        spectrum = torch.fft.fft(spectrum, dim=axis)
        # the Nyquist plane of the crop holds the mean of both signs
        nyquist = 0.5 * (spectrum.narrow(axis, half, 1) + spectrum.narrow(axis, n - half, 1))
        low, high = spectrum.narrow(axis, 0, half), spectrum.narrow(axis, n - half + 1, half - 1)
        spectrum = torch.cat([low, nyquist, high], dim=axis)
    k = torch.fft.fftfreq(m, d=2.0 * fine, device=grid.device)
    # columns of x are 0 ... m/2; the last is the Nyquist frequency
    columns = torch.fft.rfftfreq(m, d=2.0 * fine, device=grid.device)
    exponent = 0.25 * (blur - b_factor)
    gain = [torch.exp(exponent * values**2) for values in (k, k, columns)]
    spectrum = spectrum * gain[0][:, None, None] * gain[1][:, None] * gain[2]
    made: torch.Tensor = torch.fft.irfftn(spectrum, s=(m, m, m))
    return made / 8.0
