"""Tilt particles with a table of tomograms: WarpTools', RELION 4's and 5's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tilt_particle_files import BOX, PIXEL, SERIES, VISIBLE, VOLUME, matrices, write_set, write_stack

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table, read_star, write_star
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles, write_tilt_particles

FLAVOURS = ("warptools", "relion4", "relion5")
SHOWN = [np.array([int(v) for v in text.strip("[]").split(",")], bool) for text in VISIBLE]


def _change(path: Path, label: str, value: Any, block: str = "particles") -> None:
    """Set a column, or with None take it away."""
    blocks = read_star(path)
    if value is None:
        del blocks[block].columns[label]
    else:
        blocks[block].columns[label] = value
    write_star(path, blocks)


def _matrix(table: Table, labels: tuple[str, str, str]) -> np.ndarray[Any, Any]:
    if labels[0] not in table:
        return np.broadcast_to(np.eye(3), (len(table), 3, 3))
    euler = np.stack([table.floats(label) for label in labels], axis=1)
    return Rotation.from_euler("ZYZ", euler, degrees=True).as_matrix().transpose(0, 2, 1)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_every_flavour_says_the_same(flavour: str, whole: bool, centred: bool, tmp_path: Path) -> None:
    found = read_tilt_particles(write_set(tmp_path, flavour, whole=whole, centred=centred))
    assert found.flavour == flavour
    assert found.particle == ["TS_1/1", "TS_1/2", "TS_2/1"]
    assert found.tomogram == list(SERIES)
    assert found.start.tolist() == [0, 3, 7, 9]
    assert found.row.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert (found.box, found.pixel_size, found.premultiplied, found.has_ctf) == (BOX, PIXEL, True, True)
    assert found.half.tolist() == [0, 1, 0]
    # which tilts: those that are visible, at their place among all or among the visible ones
    tilts = [np.flatnonzero(shown) for shown in SHOWN]
    t = np.concatenate(tilts)
    expected = t if whole else np.concatenate([np.arange(len(part)) for part in tilts])
    np.testing.assert_array_equal(found.section, expected)
    np.testing.assert_allclose(found.dose, 3.0 * t)
    np.testing.assert_allclose(found.angle, 10.0 * t)
    # orientation: tilt · sub-tomogram · particle
    table = found.blocks["particles"]
    outer = _matrix(table, ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi"))
    inner = _matrix(table, ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"))
    turn = np.concatenate([matrices(len(shown))[shown] for shown in SHOWN])
    rotation = turn @ (outer @ inner)[found.row]
    if flavour == "warptools":  # with hand −1 its specimen is a mirror image
        mirror = np.diag([1.0, 1.0, -1.0])
        rotation = mirror @ rotation @ mirror
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-6)
    # the particle lies at its coordinate minus the turned origin
    origin = np.stack([table.floats(f"rlnOrigin{axis}Angst") for axis in "XYZ"], axis=1)
    offset = np.einsum("pij,pj->pi", outer, origin)
    np.testing.assert_allclose(
        found.shift, -np.einsum("mij,mj->mi", turn, offset[found.row])[:, :2], atol=1e-6
    )
    true = np.random.default_rng(8).uniform(0.3, 0.7, (3, 3)) * VOLUME - offset
    middle = 0.5 * np.array(VOLUME)
    assert found.place_origin == ("centre" if centred else "corner")
    np.testing.assert_allclose(found.place + (middle if centred else 0.0), true, atol=1e-6)
    # RELION's hand is that of a mirrored specimen in WarpTools' own tables
    hand = 1.0 if flavour == "warptools" else -1.0
    depth = hand * np.einsum("mj,mj->m", turn[:, 2], (true - middle)[found.row])
    np.testing.assert_allclose(found.defocus_u, 30000.0 + 100.0 * t + depth, atol=1e-3)
    np.testing.assert_allclose(found.defocus_v, 29000.0 + 100.0 * t + depth, atol=1e-3)
    assert found.columns["rlnLCCmax"].tolist() == [0.5, 0.25, 0.75]


def test_tomograms_are_found_beside_the_particles(tmp_path: Path) -> None:
    both = write_set(tmp_path, "relion5")
    particles = tmp_path / "particles.star"
    assert read_tilt_particles(particles).tomograms == tmp_path / "tomograms.star"
    # of another project; the set is not of these particles any more
    both.write_text(both.read_text().replace("particles.star", "others.star"))
    assert read_tilt_particles(particles).tomograms == tmp_path / "tomograms.star"
    (tmp_path / "tomograms.star").rename(tmp_path / "particles_tomograms.star")
    assert read_tilt_particles(particles).tomograms == tmp_path / "particles_tomograms.star"
    (tmp_path / "particles_tomograms.star").rename(tmp_path / "set.star")
    with pytest.raises(FormatError, match=r"particles_tomograms.star nor tomograms.star.*--tomograms"):
        read_tilt_particles(particles)
    assert read_tilt_particles(particles, tomograms=tmp_path / "set.star").images == 9
    with pytest.raises(FormatError, match=r"others.star .*not there; looked in"):
        read_tilt_particles(both)


def test_a_set_that_counts_from_its_project(tmp_path: Path) -> None:
    write_set(tmp_path, "relion5")
    job = tmp_path / "Refine3D" / "job010"
    job.mkdir(parents=True)
    (tmp_path / "particles.star").rename(job / "run_data.star")
    both: dict[str, Any] = {
        "rlnTomoParticlesFile": ["Refine3D/job010/run_data.star"],
        "rlnTomoTomogramsFile": ["tomograms.star"],
    }
    write_star(job / "run_optimisation_set.star", {"": Table(both, loop=False)})
    for name in ("run_optimisation_set.star", "run_data.star"):
        found = read_tilt_particles(job / name)
        assert found.path.resolve() == job / "run_data.star"
        assert found.project == tmp_path
        assert found.files[0] == tmp_path / "stacks" / "TS_1_1.mrcs"


@pytest.mark.parametrize(
    "label",
    ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnTomoName", "rlnTomoSubtomogramTilt", "rlnImageName"],
)
def test_a_missing_column_of_particles_is_named(label: str, tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion5")
    _change(tmp_path / "particles.star", label, None)
    with pytest.raises(FormatError, match=f"_{label}"):
        read_tilt_particles(path)


def test_a_missing_column_of_optics_is_named(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion5")
    for label in ("rlnVoltage", "rlnImagePixelSize", "rlnTomoTiltSeriesPixelSize"):
        before = (tmp_path / "particles.star").read_text()
        _change(tmp_path / "particles.star", label, None, "optics")
        with pytest.raises(FormatError, match=f"_{label}"):
            read_tilt_particles(path)
        (tmp_path / "particles.star").write_text(before)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_missing_column_of_tilts_is_named(flavour: str, tmp_path: Path) -> None:
    path = write_set(tmp_path, flavour)
    five = flavour == "relion5"
    table = tmp_path / ("tilt_series/TS_2.star" if five else "tomograms.star")
    block = "TS_2" + (".tomostar" if flavour == "warptools" else "")
    geometry = ["rlnTomoYTilt", "rlnTomoZRot"] if five else ["rlnTomoProjX", "rlnTomoProjZ"]
    before = table.read_text()
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", *geometry):
        _change(table, label, None, block)
        with pytest.raises(FormatError, match=f"_{label}") as caught:
            read_tilt_particles(path)
        assert table.name in str(caught.value)
        table.write_text(before)
    _change(table, "rlnDefocusV", ["1", "nan", "1"], block)
    with pytest.raises(CorruptError, match="row 2 of the column _rlnDefocusV is nan"):
        read_tilt_particles(path)


def test_a_flipped_hand_means_that_warps_specimen_is_natures(tmp_path: Path) -> None:
    path = write_set(tmp_path, "warptools")
    mirrored = read_tilt_particles(path)
    _change(tmp_path / "tomograms.star", "rlnTomoHand", [1.0, 1.0], "global")
    found = read_tilt_particles(path)
    mirror = np.diag([1.0, 1.0, -1.0])
    np.testing.assert_allclose(found.rotation, mirror @ mirrored.rotation @ mirror, atol=1e-12)


def test_tomograms_without_hand_or_ctf(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion4")
    tomograms = tmp_path / "tomograms.star"
    before = tomograms.read_text()
    _change(tomograms, "rlnTomoHand", None, "global")
    with pytest.raises(FormatError, match="_rlnTomoHand"):
        read_tilt_particles(path)
    tomograms.write_text(before)
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
        _change(tomograms, label, None, "TS_2")
    with pytest.raises(FormatError, match="TS_2 has no column _rlnDefocusU, which others have"):
        read_tilt_particles(path)
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
        _change(tomograms, label, None, "TS_1")
    assert not read_tilt_particles(path).has_ctf


def test_without_places_defocus_is_the_tilts(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion4")
    for axis in "XYZ":
        _change(tmp_path / "particles.star", f"rlnCoordinate{axis}", None)
    found = read_tilt_particles(path)
    assert np.isnan(found.place).all()
    t = np.concatenate([np.flatnonzero(shown) for shown in SHOWN])
    np.testing.assert_allclose(found.defocus_u, 30000.0 + 100.0 * t)


def test_optics_may_be_the_tomograms(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion4")
    _change(tmp_path / "particles.star", "rlnVoltage", None, "optics")
    _change(tmp_path / "tomograms.star", "rlnVoltage", ["300", "200"], "global")
    assert read_tilt_particles(path).voltage.tolist() == [300.0] * 7 + [200.0] * 2


@pytest.mark.parametrize("label", ["rlnAngleTilt", "rlnOriginYAngst", "rlnCoordinateZ"])
def test_what_is_no_number_is_named_by_row_and_particle(label: str, tmp_path: Path) -> None:
    path = write_set(tmp_path, "warptools")
    _change(tmp_path / "particles.star", label, ["1.0", "nan", "1.0"])
    with pytest.raises(CorruptError, match=rf"row 2 \(particle TS_1/2\) of the column _{label} is nan"):
        read_tilt_particles(path)


def test_the_tilt_itself_says_its_cosine(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion5")
    _change(tmp_path / "tilt_series/TS_2.star", "rlnCtfScalefactor", None, "TS_2")
    found = read_tilt_particles(path)
    np.testing.assert_allclose(found.cos_tilt[-2:], matrices(3)[1:, 2, 2], atol=1e-9)


def test_visible_frames(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion5", whole=True)
    particles = tmp_path / "particles.star"
    _change(particles, "rlnTomoVisibleFrames", None)
    assert read_tilt_particles(path).images == 11  # all
    for text, message in (("[1,1]", "about 2 tilts, but TS_2 has 3"), ("[1,2,1]", "not a list of 0 and 1"),
                          ("[0,0,0]", "visible in no tilt")):  # fmt: skip
        _change(particles, "rlnTomoVisibleFrames", [*VISIBLE[:2], text])
        with pytest.raises(CorruptError, match=f"row 3 .*{message}"):
            read_tilt_particles(path)


def test_a_stack_that_does_not_fit(tmp_path: Path) -> None:
    path = write_set(tmp_path, "warptools")
    write_stack(tmp_path / "stacks" / "TS_2_1.mrcs", 1)
    with pytest.raises(FormatError, match=r"TS_2_1.mrcs: it has 1 images.*3 tilts of TS_2.*of the 2 of them"):
        read_tilt_particles(path)
    write_stack(tmp_path / "stacks" / "TS_2_1.mrcs", 2, box=12)
    with pytest.raises(FormatError, match=r"TS_2_1.mrcs: .*12 × 12 .*TS_1_1.mrcs 8 × 8"):
        read_tilt_particles(path)
    (tmp_path / "stacks" / "TS_2_1.mrcs").unlink()
    with pytest.raises(FormatError, match=r"stacks/TS_2_1.mrcs .*not there"):
        read_tilt_particles(path)


def test_names_and_tomograms_that_do_not_fit(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion5")
    particles = tmp_path / "particles.star"
    _change(particles, "rlnTomoParticleName", ["a", "b", "a"])
    with pytest.raises(CorruptError, match="rows 1 and 3 are both of the particle a"):
        read_tilt_particles(path)
    _change(particles, "rlnTomoParticleName", None)
    assert read_tilt_particles(path).particle == ["TS_1/1", "TS_1/2", "TS_2/1"]
    _change(particles, "rlnTomoName", ["TS_1", "TS_1", "TS_3"])
    with pytest.raises(FormatError, match=r"tomograms.star: .*TS_3"):
        read_tilt_particles(path)


def test_particles_that_are_volumes(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion5")
    _change(tmp_path / "particles.star", "rlnTomoSubTomosAre2DStacks", ["0"], "general")
    with pytest.raises(FormatError, match="sub-tomograms"):
        read_tilt_particles(path)


def test_matrices_that_are_no_rotations(tmp_path: Path) -> None:
    path = write_set(tmp_path, "relion4")
    _change(tmp_path / "tomograms.star", "rlnTomoProjX", ["[1,1,0,0]"] * 4, "TS_1")
    with pytest.raises(FormatError, match="no rotation"):
        read_tilt_particles(path)


# ---------------------------------------------------------------------- parts


def _same(one: TiltParticles, other: TiltParticles) -> None:
    assert one.particle == other.particle
    for name in ("start", "section", "rotation", "shift", "defocus_u", "dose", "cos_tilt", "half", "place"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-9)
    paths = [[found.files[i].resolve() for i in found.file] for found in (one, other)]
    assert paths[0] == paths[1]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_selection_is_a_set_again(flavour: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    found = read_tilt_particles(write_set(project, flavour))
    before = (project / "tomograms.star").read_bytes()
    for folder in (project, project / "deep" / "er", tmp_path / "elsewhere"):
        write_tilt_particles(folder / "some.star", found, [2, 1])
        for name in ("some.star", "some_optimisation_set.star"):
            again = read_tilt_particles(folder / name)
            _same(again, found.select([1, 2]))
            assert again.tomograms is not None
            assert again.tomograms.resolve() == project / "tomograms.star"
    assert (project / "tomograms.star").read_bytes() == before
    inside = read_star(project / "deep" / "er" / "some_optimisation_set.star")[""]
    assert inside.value("rlnTomoParticlesFile") == "deep/er/some.star"
    assert inside.value("rlnTomoTomogramsFile") == "tomograms.star"
    assert len(read_star(project / "some.star")["optics"]) == 2


def test_a_selection_by_the_name_of_the_set(tmp_path: Path) -> None:
    found = read_tilt_particles(write_set(tmp_path, "relion5"))
    for name, particles in (
        ("a_optimisation_set.star", "a.star"),
        ("optimisation_set.star", "particles.star"),
    ):
        write_tilt_particles(tmp_path / "new" / name, found, [True, False, False])
        again = read_tilt_particles(tmp_path / "new" / name)
        assert again.path.name == particles
        assert again.particle == ["TS_1/1"]
