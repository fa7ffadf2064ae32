"""Atoms of PDB and mmCIF files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError

__all__ = ["Atoms", "read_atoms"]

# hydrogens to a heavy atom in residues that gemmi has no count for: proteins have 1.01 of them
_HYDROGENS = 1.0


@dataclass(frozen=True)
class Atoms:
    """Atoms of a structure.

    Attributes
    ----------
    elements : tuple of str
        Their symbols.
    xyz : (n, 3) float64
        Å, as in the file.
    occupancy, b_factor : (n,) float64
        B-factors are isotropic, Å².
    hydrogens : (n,) float64
        How many hydrogens, in the mean, are on an atom and missing from the file.
    assemblies : tuple of str
        The assemblies that the file knows.
    """

    elements: tuple[str, ...]
    xyz: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    b_factor: NDArray[np.float64]
    hydrogens: NDArray[np.float64]
    assemblies: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.elements)


def read_atoms(path: str | Path, assembly: str | None = None) -> Atoms:
    """Read the first model of a PDB or mmCIF file, also packed with gzip.

    Waters and alternative conformations other than the first are left out. Where a residue has no hydrogens
    in the file, those that it has in a chain are shared out among its heavy atoms.

    Parameters
    ----------
    path : path-like
    assembly : str, optional
        Build this biological assembly; by default the atoms are taken as they stand in the file.

    Raises
    ------
    FormatError
        Not a structure, one without atoms, or without that assembly.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(path, "there is no such file")
    try:
        structure = gemmi.read_structure(str(path))
    except (ValueError, RuntimeError, OSError) as error:
        raise FormatError(
            path, f"it cannot be read as PDB or mmCIF ({' '.join(str(error).split())})"
        ) from error
    if len(structure) == 0:
        raise FormatError(path, "it has no atoms; give a PDB or mmCIF file with a model")
    structure.setup_entities()
    known = {found.name: found for found in structure.assemblies}
    model = structure[0]
    if assembly is not None:
        if assembly not in known:
            there = f"there are {', '.join(known)}" if known else "it describes none"
            raise FormatError(path, f"it has no assembly {assembly!r}; {there}")
        model = gemmi.make_assembly(known[assembly], model, gemmi.HowToNameCopiedChain.AddNumber)
    elements: list[str] = []
    numbers: list[tuple[float, ...]] = []
    for residue, is_linked in _residues(model):
        atoms = _one_conformation(residue)
        heavy = sum(atom.occ for atom in atoms if not atom.element.is_hydrogen)
        missing = 0.0 if any(a.element.is_hydrogen for a in atoms) else _hydrogens(residue, is_linked, heavy)
        for atom in atoms:
            elements.append("H" if atom.element.is_hydrogen else atom.element.name)
            p = atom.pos
            numbers.append((p.x, p.y, p.z, atom.occ, atom.b_iso, missing / heavy if heavy else 0.0))
    if not elements:
        raise FormatError(path, "it has no atoms; give a PDB or mmCIF file with a model")
    table = np.asarray(numbers, np.float64)
    if not np.isfinite(table).all():
        raise FormatError(path, "some coordinates, occupancies or B-factors are no numbers")
    return Atoms(tuple(elements), table[:, :3], table[:, 3], table[:, 4], table[:, 5], tuple(known))


def _residues(model: Any) -> Any:
    for chain in model:
        for residue in chain:
            if not residue.is_water():
                yield residue, residue.entity_type == gemmi.EntityType.Polymer


def _one_conformation(residue: Any) -> list[Any]:
    first = {atom.name: atom.altloc for atom in reversed(list(residue)) if atom.altloc != "\0"}
    return [a for a in residue if a.occ > 0.0 and (a.altloc == "\0" or first[a.name] == a.altloc)]


def _hydrogens(residue: Any, is_linked: bool, heavy: float) -> float:
    """How many hydrogens belong to a residue that shows none."""
    known = gemmi.find_tabulated_residue(residue.name)
    if not known.found():
        # single ions carry none
        return 0.0 if len(residue) == 1 else _HYDROGENS * heavy
    # a bond between residues costs a molecule of water
    return max(0.0, known.hydrogen_count - 2.0 * is_linked)
