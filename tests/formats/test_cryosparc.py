"""cryoSPARC's tables: facts of cryosparc-tools (BSD), and what is wrong with some files."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import CorruptError, FormatError, InputFileError, TruncatedError
from weft.formats.coordinates import read_coordinates
from weft.formats.cryosparc import read_cs, read_locations, strings, uid_of, write_cs, write_group
from weft.formats.cryosparc_tables import Exposure, ParticleColumns, exposure_table, particle_table
from weft.physics.optics import Optics

#: A file of two rows from the tests of cryosparc-tools (Structura Biotechnology, BSD): uid, field1 ....
TWO_ROWS = base64.b64decode(
    "k05VTVBZAQCmAHsnZGVzY3InOiBbKCd1aWQnLCAnPHU4JyksICgnZmllbGQxJywgJzx1NCcpLCAoJ2ZpZWxkMicsICc8ZjQnKSwg"
    "KCdmaWVsZDMnLCAnfFM2JyksICgnZmllbGQ0JywgJzxmOCcpLCAoJ2ZpZWxkNScsICc8aTgnKV0sICdmb3J0cmFuX29yZGVyJzog"
    "RmFsc2UsICdzaGFwZSc6ICgyLCksIH0gIAp7AAAAAAAAACoAAADD9UhASGVsbG8AAAAAAAAAAAArAAAAAAAAAMgBAAAAAAAAKgAA"
    "AFK4LkBXb3JsZAAAAAAAAADwPysAAAAAAAAA"
)
#: Names and types of cryoSPARC's own particles, T20S tutorial, in the tests of cryosparc-tools.
PARTICLES = {
    "uid": "<u8",
    "blob/idx": "<u4",
    "blob/shape": ("<u4", (2,)),
    "blob/psize_A": "<f4",
    "blob/sign": "<f4",
    "blob/import_sig": "<u8",
    "ctf/exp_group_id": "<u4",
    "ctf/accel_kv": "<f4",
    "ctf/cs_mm": "<f4",
    "ctf/amp_contrast": "<f4",
    "ctf/df1_A": "<f4",
    "ctf/df2_A": "<f4",
    "ctf/df_angle_rad": "<f4",
    "ctf/phase_shift_rad": "<f4",
    "ctf/scale": "<f4",
    "ctf/scale_const": "<f4",
    "ctf/shift_A": ("<f4", (2,)),
    "ctf/tilt_A": ("<f4", (2,)),
    "ctf/trefoil_A": ("<f4", (2,)),
    "ctf/tetra_A": ("<f4", (4,)),
    "ctf/anisomag": ("<f4", (4,)),
    "ctf/bfactor": "<f4",
    "location/micrograph_uid": "<u8",
    "location/exp_group_id": "<u4",
    "location/micrograph_shape": ("<u4", (2,)),
    "location/center_x_frac": "<f4",
    "location/center_y_frac": "<f4",
    "pick_stats/ncc_score": "<f4",
    "pick_stats/power": "<f4",
    "pick_stats/template_idx": "<u4",
    "pick_stats/angle_rad": "<f4",
}
OPTICS = Optics(0.6575, 300.0, 2.7, 0.1)
EXPOSURES = [
    Exposure(
        12951868257382468663, ">micrographs/a.mrc", (7676, 7420), OPTICS, 1, 16400.2, 16232.5, 40.0, dose=53.0
    ),
    Exposure(7, ">micrographs/long name.mrc", (7676, 7420), OPTICS, 2, 9000.0, 8900.0, -75.0, 90.0, 3.5, 0.2),
]


def particles(n: int = 3, dark: bool = False) -> ParticleColumns:
    of = [EXPOSURES[i % 2] for i in range(n)]
    return ParticleColumns(
        [2**63 + i for i in range(n)],
        [f">particles/{i % 2}.mrcs" for i in range(n)],
        list(range(n)),
        448,
        [OPTICS] * n,
        [e.group for e in of],
        np.full(n, 16400.2),
        np.full(n, 16232.468),
        np.linspace(-90, 90, n),
        np.zeros(n),
        of,
        np.linspace(10, 7000, 2 * n).reshape(n, 2),
        np.linspace(0.1, 0.9, n),
        dark,
    )


def test_a_file_of_cryosparc(tmp_path: Path) -> None:
    path = tmp_path / "two.cs"
    path.write_bytes(TWO_ROWS)
    rows = read_cs(path)
    assert rows["uid"].tolist() == [123, 456]
    assert rows["field1"].tolist() == [42, 42]
    np.testing.assert_array_equal(rows["field2"], np.float32([3.14, 2.73]))
    assert strings(rows, "field3") == ["Hello", "World"]
    write_cs(tmp_path / "again.cs", rows)
    again = read_cs(tmp_path / "again.cs")
    assert again.dtype == rows.dtype
    assert again.tobytes() == rows.tobytes()


@settings(deadline=None, max_examples=40)  # files on a busy disk
@given(st.integers(0, len(TWO_ROWS) - 1))
def test_files_cut_short(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "two.cs"
    path.write_bytes(TWO_ROWS[:length])
    with pytest.raises(TruncatedError if length >= 6 or not length else FormatError):
        read_cs(path)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


def test_what_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.cs"
    objects = np.zeros(1, [("uid", "<u8"), ("blob/path", "O")])
    objects["blob/path"][0] = Bomb()
    with path.open("wb") as file:
        np.save(file, objects, allow_pickle=True)
    with pytest.raises(FormatError, match="Python objects"):
        read_cs(path)
    assert not (tmp_path / "exploded").exists()
    for content, said in (
        (b"\x95CSDAT" + bytes(100), "compressed"),
        (b"data_\n", "no .cs file"),
        (np.lib.format.magic(1, 0) + b"\x10\x00" + b"__import__('os')", "header"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputFileError, match=said):
            read_cs(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 2)))
    with pytest.raises(FormatError, match="named columns"):
        read_cs(path)
    with pytest.raises(ValueError, match="named columns"):
        write_cs(path, np.zeros(3))


def locations(**changes: object) -> np.ndarray:
    """Two picks of the T20S tutorial, as cryosparc-tools has them in its tests."""
    rows = np.zeros(
        2,
        [
            ("uid", "<u8"),
            ("location/micrograph_path", "S120"),
            ("location/micrograph_shape", "<u4", (2,)),
            ("location/center_x_frac", "<f4"),
            ("location/center_y_frac", "<f4"),
        ],
    )
    rows["location/micrograph_path"] = (
        b"J14/motioncorrected/012951868257382468663_14sep05c_00024sq_00004hl_00002es.frames"
        b"_patch_aligned_doseweighted.mrc"
    )
    rows["location/micrograph_shape"] = [7676, 7420]
    rows["location/center_x_frac"] = [0.22586207, 0.26206896]
    rows["location/center_y_frac"] = [0.10166667, 0.13333334]
    for label, value in changes.items():
        rows[f"location/{label}"] = value
    return rows


def test_places(tmp_path: Path) -> None:
    path = tmp_path / "J30_passthrough_particles.cs"
    write_cs(path, locations())
    (found,) = read_locations(path)
    # the shape has rows first; picks are pixels of a search image of 580 × 600: 131/580 and 61/600 of them
    np.testing.assert_allclose(found.xy[0], [131 / 580 * 7420, 61 / 600 * 7676], rtol=1e-6)
    assert found.shape == (7676, 7420)
    assert found.micrograph.startswith("J14/motioncorrected/")
    assert read_coordinates(path).program == "cryosparc"
    write_cs(path, locations(micrograph_shape=[[7676, 7420], [7676, 7000]]))
    with pytest.raises(CorruptError, match="several things"):
        read_locations(path)
    write_cs(path, locations(micrograph_shape=0))
    with pytest.raises(CorruptError, match="row 1"):
        read_locations(path)
    path.write_bytes(TWO_ROWS)
    with pytest.raises(FormatError, match="passthrough"):
        read_locations(path)


def test_particles_are_described_as_cryosparc_does(tmp_path: Path) -> None:
    rows = particle_table(particles(dark=True))
    for label, kind in PARTICLES.items():
        assert rows.dtype[label] == np.dtype(kind), label
    assert rows["uid"].tolist() == [2**63, 2**63 + 1, 2**63 + 2]  # not through floating point
    assert rows["blob/sign"].tolist() == [-1.0] * 3
    np.testing.assert_allclose(rows["ctf/df_angle_rad"], [-np.pi / 2, 0, np.pi / 2], atol=1e-6)
    write_cs(tmp_path / "p.cs", rows)
    found = read_locations(tmp_path / "p.cs")
    p = particles()
    assert [c.micrograph for c in found] == [e.path[1:] for e in EXPOSURES]
    xy = np.empty((3, 2))
    xy[0::2], xy[1::2] = found[0].xy, found[1].xy
    # fractions in single precision: 2⁻²⁴ of 7676 pixels
    np.testing.assert_allclose(xy, p.xy, atol=1e-3)
    assert found[0].pixel_size == pytest.approx(0.6575, rel=1e-6)


def test_exposures(tmp_path: Path) -> None:
    rows = exposure_table(EXPOSURES)
    write_cs(tmp_path / "e.cs", rows)
    again = read_cs(tmp_path / "e.cs")
    assert again["uid"].tolist() == [12951868257382468663, 7]
    assert strings(again, "micrograph_blob/path") == ["micrographs/a.mrc", "micrographs/long name.mrc"]
    assert again["micrograph_blob/shape"].tolist() == [[7676, 7420]] * 2
    np.testing.assert_allclose(again["ctf/phase_shift_rad"], [0.0, np.pi / 2])
    assert again["mscope_params/phase_plate"].tolist() == [0, 1]
    assert again["mscope_params/exp_group_id"].tolist() == again["ctf/exp_group_id"].tolist() == [1, 2]


def test_tables_without_rows() -> None:
    assert exposure_table([]).dtype["micrograph_blob/shape"] == np.dtype(("<u4", (2,)))
    assert particle_table(particles(0)).shape == (0,)


def test_group(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    rows = particle_table(particles())
    write_group(tmp_path / "g.csg", "particle", "particles", "Weft's: particles", "p.cs", rows)
    group = yaml.safe_load((tmp_path / "g.csg").read_text())
    assert set(group) == {"created", "group", "results", "version"}
    assert group["group"]["type"] == "particle"
    assert group["group"]["title"] == "Weft's: particles"
    assert list(group["results"]) == ["blob", "ctf", "location", "pick_stats"]
    for name, result in group["results"].items():
        assert result == {"metafile": ">p.cs", "num_items": 3, "type": f"particle.{name}"}


def test_numbers_of_names() -> None:
    assert uid_of("a") == uid_of("a") != uid_of("b")
    assert 0 < uid_of("a") < 2**64


def test_cryosparcs_own_library_reads_them(tmp_path: Path) -> None:
    """cryosparc-tools, where it is installed (WEFT_CRYOSPARC_TOOLS: its folder)."""
    folder = os.environ.get("WEFT_CRYOSPARC_TOOLS")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    library = pytest.importorskip("cryosparc.dataset")
    for name, rows in (("p", particle_table(particles())), ("e", exposure_table(EXPOSURES))):
        write_cs(tmp_path / f"{name}.cs", rows)
        theirs = library.Dataset.load(tmp_path / f"{name}.cs")
        assert len(theirs) == len(rows)
        for label in rows.dtype.names or ():
            if rows.dtype[label].kind == "S":
                assert [str(v) for v in theirs[label]] == [v.decode() for v in rows[label].tolist()]
            else:
                np.testing.assert_array_equal(np.asarray(theirs[label]), rows[label])
        theirs.save(tmp_path / "theirs.cs")
        np.testing.assert_array_equal(read_cs(tmp_path / "theirs.cs")["uid"], rows["uid"])
