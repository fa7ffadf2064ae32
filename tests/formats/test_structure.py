"""Atoms of PDB and mmCIF files."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from weft.errors import FormatError
from weft.formats.structure import read_atoms


def _atom(serial: int, name: str, alt: str, residue: str, number: int, occupancy: float, x: float) -> str:
    element = name.strip()[0]
    return (
        f"ATOM  {serial:5d} {name:4s}{alt}{residue:>3s} A{number:4d}    {x:8.3f}{0.0:8.3f}{0.0:8.3f}"
        f"{occupancy:6.2f}{20.0:6.2f}          {element:>2s}  "
    )


@pytest.fixture
def dipeptide(tmp_path: Path) -> Path:
    """Alanyl-glycine, of which one atom stands in two places; and a water."""
    lines = [
        _atom(i, f" {name:3s}", alt, residue, number, occupancy, 1.5 * i)
        for i, (name, alt, residue, number, occupancy) in enumerate(
            [
                ("N", " ", "ALA", 1, 1.0),
                ("CA", " ", "ALA", 1, 1.0),
                ("C", " ", "ALA", 1, 1.0),
                ("O", " ", "ALA", 1, 1.0),
                ("CB", "A", "ALA", 1, 0.6),
                ("CB", "B", "ALA", 1, 0.4),
                ("N", " ", "GLY", 2, 1.0),
                ("CA", " ", "GLY", 2, 1.0),
                ("C", " ", "GLY", 2, 1.0),
                ("O", " ", "GLY", 2, 1.0),
            ],
            start=1,
        )
    ]
    lines += ["TER", _atom(12, " O  ", " ", "HOH", 101, 1.0, 30.0).replace("ATOM  ", "HETATM"), "END"]
    path = tmp_path / "ag.pdb"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_conformations_waters_and_hydrogens(dipeptide: Path) -> None:
    atoms = read_atoms(dipeptide)
    assert atoms.elements == ("N", "C", "C", "O", "C", "N", "C", "C", "O")
    assert atoms.occupancy[4] == pytest.approx(0.6)
    # in a chain alanine has 5 hydrogens (C3H5NO), glycine 3 (C2H3NO)
    assert (atoms.hydrogens * atoms.occupancy)[:5].sum() == pytest.approx(5.0)
    assert (atoms.hydrogens * atoms.occupancy)[5:].sum() == pytest.approx(3.0)


def test_hydrogens_of_the_file_are_taken(dipeptide: Path) -> None:
    text = dipeptide.read_text().replace("TER", _atom(11, " HA2", " ", "GLY", 2, 1.0, 18.0) + "\nTER")
    dipeptide.write_text(text)
    atoms = read_atoms(dipeptide)
    assert atoms.elements[-1] == "H"
    assert atoms.hydrogens[5:].sum() == 0.0


def test_mmcif_says_the_same(dipeptide: Path, tmp_path: Path) -> None:
    structure = gemmi.read_structure(str(dipeptide))
    structure.setup_entities()
    path = tmp_path / "ag.cif"
    structure.make_mmcif_document().write_file(str(path))
    one, other = read_atoms(dipeptide), read_atoms(path)
    assert one.elements == other.elements
    assert np.array_equal(one.hydrogens, other.hydrogens)
    assert np.array_equal(one.xyz, other.xyz)


def test_assemblies(reference_data: Path) -> None:
    path = reference_data / "real/anmartinezs__polnet/data/templates/pdbs/1bxn.pdb"
    half, whole = read_atoms(path), read_atoms(path, "1")
    assert half.assemblies == ("1",)
    assert len(whole) == 2 * len(half)
    with pytest.raises(FormatError, match="no assembly '7'; there are 1"):
        read_atoms(path, "7")


def test_files_that_are_no_structures(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_atoms(tmp_path / "none.pdb")
    for name, text in (
        ("empty.pdb", ""),
        ("text.cif", "not a cif"),
        ("cell.cif", "data_x\n_cell.length_a 1\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(FormatError, match=r"no atoms|cannot be read"):
            read_atoms(path)
