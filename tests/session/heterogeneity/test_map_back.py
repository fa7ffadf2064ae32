"""Classes back in tomograms: matrices for ChimeraX against places that are known, tables, pictures."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from written_training import SIZE, write_training

from weft.cli.vae_select import app
from weft.errors import RequestError
from weft.formats import mrc, relion_tomo
from weft.formats.particle_star import euler_angles, euler_matrices
from weft.formats.star import Table, read_star, write_star
from weft.formats.tilt_particles import read_tilt_particles
from weft.formats.tomo_particles import read_tomo_particles
from weft.physics.geometry import TiltGeometry
from weft.session.heterogeneity.class_colours import class_colour
from weft.session.heterogeneity.map_back import MapBack, map_back
from weft.session.heterogeneity.run_folder import VAERun

WARPTOOLS = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12_optimisation_set.star"
VOLUME, IMAGE, PIXEL, BOX, BINNED = (1600.0, 1440.0, 640.0), (1600.0, 1600.0), 4.0, 24, 8.0
#: x, y, z, Å: corners of something that has no symmetry, in the map.
POINTS = np.array([[0, 0, 0], [60, 0, 0], [0, 40, 0], [0, 0, 30], [-20, 15, 50]], np.float64)


class Series:
    """A tilt series and particles in it, of which everything is known."""

    def __init__(self, folder: Path, particles: int = 7, seed: int = 3) -> None:
        random = np.random.default_rng(seed)
        angles = np.arange(-54.0, 55.0, 6.0)
        self.geometry = TiltGeometry.of(
            angles,
            axis=-86.5,
            shift=random.normal(0, 40, (len(angles), 2)),
            volume_size=VOLUME,
            image_size=IMAGE,
            level=(3.0, -2.0),
        )
        self.place = random.uniform(0.1, 0.9, (particles, 3)) * VOLUME
        self.matrix = euler_matrices(random.uniform((-180, 20, -180), (180, 160, 180), (particles, 3)))
        # particles are not seen in all tilts, and not in the order of angles
        self.seen = [random.permutation(len(angles))[: 19 - 2 * (i % 3)] for i in range(particles)]
        self.names = [f"TS_9_{i:03d}" for i in range(particles)]
        self.star = folder / "images.star"
        self.write(folder)

    def write(self, folder: Path) -> None:
        """Rows of images as M has them, straight from the definition of the geometry."""
        turn = self.geometry.matrices.numpy()
        rows: dict[str, list[Any]] = {}
        count = 0
        for i, name in enumerate(self.names):
            in_images = self.geometry.project(torch.as_tensor(self.place[i : i + 1])).numpy()[:, 0]
            for t in self.seen[i]:
                count += 1
                euler = euler_angles(turn[t] @ self.matrix[i])[0]
                row = {
                    "rlnImageName": f"{count}@stack.mrcs",
                    "rlnMagnification": 10000.0,
                    "rlnDetectorPixelSize": BINNED,
                    "rlnTomoName": "TS_9",
                    "rlnGroupName": name,
                    "rlnCoordinateX": in_images[t, 0] / PIXEL,
                    "rlnCoordinateY": in_images[t, 1] / PIXEL,
                    "rlnAngleRot": euler[0],
                    "rlnAngleTilt": euler[1],
                    "rlnAnglePsi": euler[2],
                    "rlnCtfScalefactor": turn[t][2, 2],
                    "rlnCtfBfactor": -12.0 * float(t + 1),
                }
                for label, value in row.items():
                    rows.setdefault(label, []).append(value)
        write_star(self.star, {"": Table(rows)})
        mrc.write_stack(folder / "stack.mrcs", np.zeros((count, BOX, BOX), np.float32), BINNED)

    def session(self, folder: Path, **paths: Path) -> Any:
        """What map-back asks of a session that has this series."""
        alignment = SimpleNamespace(pixel_size=PIXEL)
        item = SimpleNamespace(geometry=self.geometry, alignment=alignment, paths=paths)
        return SimpleNamespace(root=folder / "session", series={"TS_9": item})

    def training(self, folder: Path) -> VAERun:
        return write_training(folder, self.star, np.arange(len(self.names)) % 3 + 1)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return Series(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def ribosomes(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> VAERun:
    star = reference_data / "real" / "bpowell122__tomodrgn" / WARPTOOLS
    return write_training(tmp_path_factory.mktemp("warp") / "run", star, np.arange(40) % 2 + 1)


def placed(commands: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, str]]]:
    """What ChimeraX would do: each model's matrix by its name, and what is said of each group of them."""
    text = commands.read_text()
    names: dict[str, str] = {}
    groups: dict[str, dict[str, str]] = {}
    for file, number, name in re.findall(r'^open "([^"]+)" id #(\d+\.\d+) name "([^"]+)"$', text, re.M):
        names[number] = name
        groups.setdefault(number.split(".")[0], {})["file"] = file
    for number, rest in re.findall(r"^volume #(\d+)\.\S+ (originIndex .*)$", text, re.M):
        words = rest.split()
        groups[number] |= dict(zip(words[::2], words[1::2], strict=True))
    matrices = {}
    for line in re.findall(r"^view matrix models (\S+)$", text, re.M):
        words = line.split(",")
        assert len(words) % 13 == 0
        for i in range(0, len(words), 13):
            number = words[i].removeprefix("#")
            matrices[names.pop(number)] = np.array(words[i + 1 : i + 13], np.float64).reshape(3, 4)
    assert not names, "every model that is opened is placed"
    return matrices, groups


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.asarray(points @ matrix[:, :3].T + matrix[:, 3])


def test_copies_lie_where_the_images_show_them(series: Series, tmp_path: Path) -> None:
    """Points of the map go where they are known to be in the tomogram. Numbers are written with 7 digits:
    1e-3 Å of 1600, and 6e-6 Å of 60."""
    run = series.training(tmp_path / "run")
    done = map_back(run, tmp_path / "out", session=series.session(tmp_path))
    matrices, _ = placed(done.tomograms[0].commands)
    assert sorted(matrices) == series.names
    for i, name in enumerate(series.names):
        truth = POINTS @ series.matrix[i].T + series.place[i]
        np.testing.assert_allclose(moved(matrices[name], POINTS), truth, atol=2e-3)
    # and so in every image: about the particle's centre they lie as the image turns the map
    particles = read_tilt_particles(series.star)
    for i, name in enumerate(series.names):
        in_images = series.geometry.project(torch.as_tensor(moved(matrices[name], POINTS))).numpy()[..., :2]
        for row, t in enumerate(series.seen[i], int(particles.start[i])):
            local = POINTS @ particles.rotation[row].T
            np.testing.assert_allclose(in_images[t] - in_images[t, 0], local[:, :2], atol=2e-3)
    assert [note for note in done.notes if "has no tomogram" not in note] == []


def test_volumes_are_turned_about_their_middle_and_coloured(series: Series, tmp_path: Path) -> None:
    run = series.training(tmp_path / "run")
    done = map_back(run, tmp_path / "out", session=series.session(tmp_path))
    _, groups = placed(done.tomograms[0].commands)
    assert sorted(groups) == ["2", "3", "4"]
    for number, group in groups.items():
        cluster = int(number) - 1
        assert group["file"] == str(tmp_path / "out" / "volumes" / f"class_{cluster:02d}.mrc")
        assert group["originIndex"] == ",".join([str(SIZE // 2)] * 3)
        assert group["color"] == class_colour(cluster)
        volume = np.array(mrc.read(group["file"])[0])
        assert 0.0 < float(group["level"]) < volume.max()
        # the written copy outlives another analysis
        assert (volume == mrc.read(run.path / f"analysis/volumes/cluster_{cluster:02d}.mrc")[0]).all()
    assert len({group["color"] for group in groups.values()}) == 3


def test_a_shifted_series_is_not_taken_for_its_neighbour(series: Series) -> None:
    """Steps of 6° look alike when all are shifted by one, so that only the tilts tell which is which."""
    from weft.heterogeneity.specimen_poses import pose_of

    turn = series.geometry.matrices.numpy()
    for seen in (np.arange(0, 12), np.arange(5, 19), np.array([9]), np.arange(1, 18)):
        pose = pose_of(turn[seen] @ series.matrix[0], turn[seen, 2, 2], series.geometry)
        assert pose.tilt.tolist() == seen.tolist()
        np.testing.assert_allclose(pose.matrix, series.matrix[0], atol=1e-9)
        assert pose.mismatch < 1e-4


def test_without_a_session_the_tilt_axis_turns_back(series: Series, tmp_path: Path) -> None:
    """With places in the file, and no geometry: right to the levelling, which is not known then (3.6°)."""
    star = tmp_path / "placed.star"
    columns = dict(read_star(series.star)[""].columns)
    of = [series.names.index(name) for name in columns["rlnGroupName"]]
    for axis, label in enumerate("XYZ"):
        columns[f"rlnCoordinate{label}"] = [series.place[i, axis] / BINNED for i in of]
    write_star(star, {"": Table(columns)})
    (tmp_path / "stack.mrcs").symlink_to(series.star.parent / "stack.mrcs")
    run = write_training(tmp_path / "run", star, np.ones(len(series.names), np.int64))
    done = map_back(run, tmp_path / "out", tilt_axis=-86.5)
    assert done.notes == []
    matrices, _ = placed(done.tomograms[0].commands)
    for i, name in enumerate(series.names):
        np.testing.assert_allclose(matrices[name][:, 3], series.place[i], atol=2e-3)
        cosine = 0.5 * (np.trace(matrices[name][:, :3].T @ series.matrix[i]) - 1.0)
        # of those that were seen untilted; others lack up to a step
        if 9 in series.seen[i]:
            assert np.degrees(np.arccos(cosine)) < 3.7
    noted = map_back(run, tmp_path / "out").notes
    assert len(noted) == 1
    assert "--tilt-axis" in noted[0]


def test_images_alone_do_not_say_where_they_are_from(series: Series, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not say where particle TS_9_000 and 6 others lie"):
        map_back(series.training(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_alignment_is_noted(series: Series, tmp_path: Path) -> None:
    changed = TiltGeometry.of(
        series.geometry.angles,
        axis=-80.0,
        shift=series.geometry.shift + 30.0 * torch.randn(19, 2, generator=torch.Generator().manual_seed(1)),
        volume_size=VOLUME,
        image_size=IMAGE,
    )
    item = SimpleNamespace(geometry=changed, alignment=SimpleNamespace(pixel_size=PIXEL), paths={})
    session: Any = SimpleNamespace(root=tmp_path / "session", series={"TS_9": item})
    notes = map_back(series.training(tmp_path / "run"), tmp_path / "out", session=session).notes
    assert any("orientations are" in note and "aligned again" in note for note in notes)
    assert any("pixels from what" in note for note in notes)


def test_a_set_of_warptools_lies_as_its_tables_say(ribosomes: VAERun, tmp_path: Path) -> None:
    """The copies, projected with the matrices of the set's own table of tomograms, are seen in each image as
    the map is that it is taken to be of; where that is a mirror image of the specimen, they are mirrored."""
    done = map_back(ribosomes, tmp_path / "out")
    assert [one.name for one in done.tomograms] == ["Unt_083", "Unt_050", "Unt_076", "Unt_088"]
    assert done.tomograms[2].counts == {1: 5, 2: 5}
    particles = ribosomes.particles()
    assert particles.tomograms is not None
    tables = relion_tomo.read_tilt_series(particles.tomograms)
    for one in done.tomograms:
        matrices, groups = placed(one.commands)
        mirrored = {"mirrored" in group["file"] for group in groups.values()}
        assert len(mirrored) == 1
        points = POINTS * (1.0, 1.0, -1.0 if mirrored == {True} else 1.0)
        table = next(tables[name] for name in tables if name.removesuffix(".tomostar") == one.name)
        turns = relion_tomo.projection_matrices(table)[:, :2, :3]
        for name, matrix in matrices.items():
            i = particles.particle.index(name)
            np.testing.assert_allclose(matrix[:, 3], particles.place[i], rtol=1e-6)
            views = (moved(matrix, points) - matrix[:, 3]) @ turns.transpose(0, 2, 1)
            images = POINTS @ particles.rotation[particles.start[i] : particles.start[i + 1], :2].transpose(
                0, 2, 1
            )
            apart = np.abs(views[:, None] - images[None]).max(axis=(2, 3)).min(axis=0)
            # Å; the table's matrices are rotations to a few 1e-7 only, and places have 7 digits
            assert apart.max() < 2e-3


def test_mirrored_volumes_are_so_about_their_middle(ribosomes: VAERun, tmp_path: Path) -> None:
    from weft.session.heterogeneity.analysis_table import read_analysis
    from weft.session.heterogeneity.map_back import _class_volumes

    source = ribosomes.path / "analysis" / "volumes" / "cluster_01.mrc"
    volume = np.random.default_rng(0).normal(size=(SIZE,) * 3).astype(np.float32)
    kept = source.read_bytes()
    mrc.write(source, volume, 24.0, sync=False)
    try:
        found = _class_volumes(read_analysis(ribosomes), tmp_path, {False, True}, [])[1].volumes
    finally:
        source.write_bytes(kept)
    plain, mirrored = (np.array(mrc.read(found[hand])[0]) for hand in (False, True))
    middle = SIZE // 2
    for away in range(-middle + 1, middle):
        np.testing.assert_array_equal(mirrored[middle + away], plain[middle - away])
    assert mrc.read_header(found[True]).pixel_size == pytest.approx(24.0)


def test_tables_say_the_same(series: Series, tmp_path: Path) -> None:
    run = series.training(tmp_path / "run")
    done = map_back(run, tmp_path / "out", session=series.session(tmp_path), name="two-states")
    own = tmp_path / "out" / "places.star"
    page = tmp_path / "session" / "heterogeneity" / "two-states.star"
    assert done.tables == [own, tmp_path / "out" / "places.csv", page]
    for star in (own, page):
        # as a particle list of RELION 5, by another reader
        found = read_tomo_particles(star)
        np.testing.assert_allclose(found.xyz, series.place - 0.5 * np.array(VOLUME), atol=1e-3)
        np.testing.assert_allclose(euler_matrices(found.euler), series.matrix, atol=1e-5)
        assert [int(v) for v in found.extra["rlnClassNumber"]] == [i % 3 + 1 for i in range(7)]
        assert list(found.extra["rlnTomoParticleName"]) == series.names
    with (tmp_path / "out" / "places.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["particle"] for row in rows] == series.names
    assert {row["origin"] for row in rows} == {"corner"}
    np.testing.assert_allclose(
        [[float(row[axis]) for axis in "xyz"] for row in rows], series.place, atol=1e-3
    )


def test_a_session_keeps_trainings_apart(series: Series, tmp_path: Path) -> None:
    session = series.session(tmp_path)
    first, second = series.training(tmp_path / "a" / "vae"), series.training(tmp_path / "b" / "vae")
    map_back(first, tmp_path / "out1", session=session)
    map_back(first, tmp_path / "out1", session=session)
    with pytest.raises(RequestError, match=r"is of the training .*a/vae; give this one another --name"):
        map_back(second, tmp_path / "out2", session=session)
    assert not (tmp_path / "out2").exists()
    map_back(second, tmp_path / "out2", session=session, name="second")
    assert sorted(path.name for path in (tmp_path / "session/heterogeneity").iterdir()) == [
        "second.star",
        "vae.star",
    ]
    for bad in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(RequestError, match="--name"):
            map_back(second, tmp_path / "out2", session=session, name=bad or " ")


def test_the_picture_shows_every_class_where_it_is(series: Series, tmp_path: Path) -> None:
    """On a tomogram that is the same everywhere, the only colours are those of the classes."""
    path = tmp_path / "TS_9_32.00Apx.mrc"
    x, y, z = (round(side / 32.0) for side in VOLUME)
    mrc.write(path, np.random.default_rng(0).normal(size=(z, y, x)).astype(np.float32), 32.0, sync=False)
    session = series.session(tmp_path, tomogram=path)
    done = map_back(series.training(tmp_path / "run"), tmp_path / "out", session=session)
    assert done.notes == []
    text = done.tomograms[0].commands.read_text()
    assert f'open "{path}" id #1\n' in text
    assert f"positionPlanes {x // 2},{y // 2},{z // 2} " in text
    picture = np.asarray(imagecodecs.png_decode(done.tomograms[0].picture.read_bytes()))[..., :3].astype(int)
    for number in (1, 2, 3):
        colour = np.array([int(class_colour(number)[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(picture - colour).sum(axis=2) < 12).sum() > 200, number


def test_requests_that_cannot_be_met(ribosomes: VAERun, series: Series, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--tomogram TS_1: .* are of Unt_083, Unt_050"):
        map_back(ribosomes, tmp_path / "out", tomogram=["TS_1"])
    without = write_training(tmp_path / "run", series.star, None)
    with pytest.raises(RequestError, match=f"`weft vae analyze {without.path}` makes it"):
        map_back(without, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # a session of something else: said, and everything but its page is made
    session: Any = SimpleNamespace(root=tmp_path / "session", series={})
    done: MapBack = map_back(ribosomes, tmp_path / "out", session=session, tomogram=["Unt_076"])
    assert any("has no tilt series Unt_083" in note for note in done.notes)
    assert not (tmp_path / "session").exists()
    assert [one.name for one in done.tomograms] == ["Unt_076"]


def test_the_command(ribosomes: VAERun, tmp_path: Path) -> None:
    call = ["map-back", str(ribosomes.path), "-o", str(tmp_path / "out"), "--tomogram", "Unt_050"]
    said = CliRunner().invoke(app, call)
    assert said.exit_code == 0, said.output
    assert "Unt_050: 5 of cluster 1, 5 of cluster 2" in said.output
    facts = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    assert facts["tomograms"][0]["classes"] == {"1": 5, "2": 5}
    assert all(Path(path).is_file() for path in facts["tables"])
    assert Path(facts["tomograms"][0]["picture"]).read_bytes().startswith(b"\x89PNG")
