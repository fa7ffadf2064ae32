"""Selections of a training's particles: which they are, and the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import starfile
from typer.testing import CliRunner
from written_training import write_training

from weft.cli.vae_select import app
from weft.errors import ItemError, RequestError
from weft.formats.star import read_star
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles
from weft.heterogeneity.lasso import inside_lasso
from weft.session.heterogeneity.run_folder import VAERun
from weft.session.heterogeneity.selection import Wanted, choose, write_selection

WARPTOOLS = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12_optimisation_set.star"
IMAGES = "10076_both_32_sim.star"
THREE = np.arange(144) % 3 + 1


@pytest.fixture(scope="module")
def data(reference_data: Path) -> Path:
    return reference_data / "real" / "bpowell122__tomodrgn"


@pytest.fixture(scope="module")
def images(data: Path, tmp_path_factory: pytest.TempPathFactory) -> VAERun:
    """tomoDRGN's two classes: a row an image, 8 or 10 of them a particle."""
    return write_training(tmp_path_factory.mktemp("images") / "run", data / IMAGES, THREE)


@pytest.fixture(scope="module")
def ribosomes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> VAERun:
    """A set of WarpTools: a row a particle."""
    folder = tmp_path_factory.mktemp("ribosomes") / "run"
    return write_training(folder, data / WARPTOOLS, np.arange(40) % 2 + 1, umap=True)


def same(found: TiltParticles, whole: TiltParticles, keep: np.ndarray) -> None:
    """What is read of the new file is what the old one says of these particles, to the last bit."""
    expected = whole.select(keep)
    assert found.flavour == whole.flavour
    assert found.particle == expected.particle
    for name in ("rotation", "shift", "defocus_u", "dose", "cos_tilt", "place", "section"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert [found.files[i].resolve() for i in found.file] == [
        expected.files[i].resolve() for i in expected.file
    ]


def test_rows_of_images_are_as_they_were(images: VAERun, tmp_path: Path) -> None:
    written = write_selection(images, Wanted(cluster=(1, 3)), tmp_path / "new" / "some.star")
    assert written.files == [tmp_path / "new" / "some.star"]
    keep = np.flatnonzero(THREE != 2)
    whole = images.particles()
    found = read_tilt_particles(tmp_path / "new" / "some.star")
    same(found, whole, keep)
    # a reader that is not ours, on the original and on the selection
    old, new = (starfile.read(path) for path in (whole.path, tmp_path / "new" / "some.star"))
    expected = old[old["rlnGroupName"].isin(found.particle)].reset_index(drop=True)
    assert list(new.columns) == list(old.columns)
    assert len(new) == found.images
    for label in new.columns.drop("rlnImageName"):
        assert (new[label] == expected[label]).all(), label


def test_a_set_stays_a_set(ribosomes: VAERun, tmp_path: Path) -> None:
    written = write_selection(ribosomes, Wanted(cluster=(2,)), tmp_path / "odd.star")
    assert [file.name for file in written.files] == ["odd.star", "odd_optimisation_set.star"]
    assert all(file.is_file() for file in written.files)
    keep = np.arange(1, 40, 2)
    for file in written.files:
        same(
            read_tilt_particles(file, tomograms=ribosomes.particles().tomograms), ribosomes.particles(), keep
        )
    old, new = (starfile.read(path) for path in (ribosomes.particles().path, tmp_path / "odd.star"))
    assert set(new) == set(old)
    assert new["optics"].equals(old["optics"])
    for label in old["particles"].columns.drop("rlnImageName"):
        expected = old["particles"][label].iloc[keep].reset_index(drop=True)
        assert (new["particles"][label] == expected).all(), label
    names = ("Unt_083", "Unt_050", "Unt_076", "Unt_088")
    assert written.chosen.tomograms() == dict.fromkeys(names, (5, 10))


def test_a_set_may_be_named_itself(ribosomes: VAERun, tmp_path: Path) -> None:
    written = write_selection(ribosomes, Wanted(cluster=(1,)), tmp_path / "optimisation_set.star")
    assert [file.name for file in written.files] == ["particles.star", "optimisation_set.star"]
    assert all(file.is_file() for file in written.files)
    assert len(read_tilt_particles(written.files[1])) == 20


def test_a_lasso_in_each_plane(ribosomes: VAERun) -> None:
    mu = ribosomes.latent(1).mu
    corners = [(-0.5, -1.0), (1.5, -0.8), (0.7, 1.5)]
    expected = np.flatnonzero(inside_lasso(mu, corners))
    assert 5 < len(expected) < 35
    text = " ".join(f"{x},{y}" for x, y in corners)
    tens = " ".join(f"{10 * x},{10 * y}" for x, y in corners)
    for wanted in (
        Wanted(lasso=text),
        Wanted(lasso=text, axes="z0,z1"),
        Wanted(lasso=tens, axes="umap1,umap2"),
        Wanted(lasso=" ".join(f"{y},{x}" for x, y in corners), axes="pc2,pc1"),
    ):
        assert choose(ribosomes, wanted).keep.tolist() == expected.tolist(), wanted


def test_all_that_is_said_must_hold(ribosomes: VAERun, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(ribosomes.particles().particle[:30]))
    bad = tmp_path / "bad.npy"
    np.save(bad, np.array([0, 2, 4]))
    wanted = Wanted(cluster=(1,), names=names, exclude=bad, label=("rlnTomoName=Unt_083.tomostar",))
    assert choose(ribosomes, wanted).keep.tolist() == [6, 8]
    others = choose(ribosomes, Wanted(**{**vars(wanted), "invert": True})).keep
    assert others.tolist() == [i for i in range(40) if i not in (6, 8)]


def test_the_nearest_in_latent_space(images: VAERun) -> None:
    mu = images.latent(1).mu
    name = images.particles().particle[17]
    keep = choose(images, Wanted(near=name, count=9)).keep
    distance = np.linalg.norm(mu - mu[17], axis=1)
    assert len(keep) == 9
    assert 17 in keep
    assert distance[keep].max() < np.delete(distance, keep).min()


def test_labels_of_tables_and_of_the_input(ribosomes: VAERun, tmp_path: Path) -> None:
    names = ribosomes.particles().particle
    table = tmp_path / "seen.csv"
    rows = [f"{name},{'junk' if i < 4 else 'good'},{i / 10:.2f}" for i, name in enumerate(names[:20])]
    table.write_text("\n".join(["particle,kind,score", *rows]))
    star = tmp_path / "seen.star"
    loop = "\n".join(f"{name} {i % 4 + 1}" for i, name in enumerate(names))
    star.write_text(f"data_\n\nloop_\n_rlnTomoParticleName #1\n_rlnClassNumber #2\n{loop}\n")

    def kept(*text: str) -> list[int]:
        return choose(ribosomes, Wanted(label=text)).keep.tolist()

    assert kept(f"{table}:kind=junk") == [0, 1, 2, 3]
    assert kept(f"{table}:kind=junk,good") == list(range(20)), "the table says nothing of the others"
    assert kept(f"{table}:score=0.25:0.5") == [3, 4, 5]
    assert kept(f"{table}:score=:0.1") == [0, 1]
    assert kept(f"{table}:score=1.7:") == [17, 18, 19]
    assert kept(f"{table}:score=0.30") == [3], "numbers are compared as numbers"
    assert kept(f"{star}:rlnClassNumber=2,4") == list(range(1, 40, 2))
    assert kept("rlnOpticsGroup=2", f"{table}:kind=good") == list(range(10, 20))
    assert kept("_rlnTomoName=Unt_088.tomostar") == list(range(30, 40))


def test_particles_that_were_not_trained_on_are_not_chosen(data: Path, tmp_path: Path) -> None:
    trained = np.arange(2, 40)
    run = write_training(tmp_path / "run", data / WARPTOOLS, trained % 2 + 1, trained=trained)
    chosen = choose(run, Wanted(cluster=(1,), invert=True))
    assert chosen.keep.tolist() == list(range(3, 40, 2))
    assert chosen.notes == ["2 particles have no place in the latent space and cannot be chosen"]


def test_an_analysis_that_is_behind_its_training_is_told(data: Path, tmp_path: Path) -> None:
    run = write_training(tmp_path / "run", data / WARPTOOLS, np.ones(40, np.int64))
    (run.path / "models" / "0007.safetensors").touch()
    assert "epoch 1, the training has gone on to 7" in choose(run, Wanted(cluster=(1,))).notes[0]


@pytest.mark.parametrize(
    ("wanted", "about"),
    [
        (Wanted(), "say which particles"),
        (Wanted(invert=True), "say which particles"),
        (Wanted(cluster=(2, 5)), r"--cluster 5: .* has the clusters 1, 2\.$"),
        (Wanted(lasso="0,0 1,1"), "2 different corners; at least 3"),
        (Wanted(lasso="0,0 1,1 2"), "'2' is no corner"),
        (Wanted(lasso="0,0 1,a 2,2"), "--lasso: could not convert"),
        (Wanted(lasso="0,0 1,0 1,1", axes="pc1"), "name two"),
        (Wanted(lasso="0,0 1,0 1,1", axes="pc1,pc9"), "there is no 'pc9'; there are pc1, pc2, umap1"),
        (Wanted(lasso="0,0 1,0 1,1", axes="z0,z2"), "go from z0 to z1"),
        (Wanted(near="nobody", count=3), "no such particle; one of them is Unt_083/1"),
        (Wanted(near="Unt_083/1"), "--count how many"),
        (Wanted(count=3), "--near PARTICLE"),
        (Wanted(label=("nothing",)), "column=value"),
        (Wanted(label=("rlnNothing=1",)), "no column rlnNothing; it has rlnTomoName"),
        (Wanted(label=("rlnOpticsGroup=9",)), "no particle has it; rlnOpticsGroup is 1, 2, 3, 4"),
        (Wanted(label=("gone.csv:a=1",)), "there is no file gone.csv"),
        (Wanted(names=Path("gone.txt")), "no such file of particles"),
    ],
)
def test_requests_that_cannot_be_met(ribosomes: VAERun, wanted: Wanted, about: str) -> None:
    with pytest.raises(RequestError, match=about):
        choose(ribosomes, wanted)


def test_umap_that_was_not_made(images: VAERun) -> None:
    with pytest.raises(RequestError, match="--umap` adds it"):
        choose(images, Wanted(lasso="0,0 1,0 1,1", axes="umap1,umap2"))


def test_tables_of_other_particles(ribosomes: VAERun, tmp_path: Path) -> None:
    table = tmp_path / "other.csv"
    table.write_text("particle,kind\nsomebody,1\n")
    with pytest.raises(RequestError, match="about other particles: it names somebody"):
        choose(ribosomes, Wanted(label=(f"{table}:kind=1",)))


def test_without_an_analysis(data: Path, tmp_path: Path) -> None:
    run = write_training(tmp_path / "run", data / WARPTOOLS, None)
    with pytest.raises(RequestError, match=f"`weft vae analyze {run.path}` makes it"):
        choose(run, Wanted(cluster=(1,)))
    # what needs none works
    assert len(choose(run, Wanted(lasso="-9,-9 9,-9 9,9 -9,9", axes="z0,z1")).keep) == 40
    assert len(choose(run, Wanted(near="Unt_083/1", count=4)).keep) == 4


def test_nothing_is_written_where_nothing_is_chosen(ribosomes: VAERun, tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="none of its 40 particles"):
        write_selection(ribosomes, Wanted(cluster=(1,), lasso="90,90 91,90 91,91"), tmp_path / "a.star")
    assert list(tmp_path.iterdir()) == []


def test_the_input_is_not_written_over(data: Path, tmp_path: Path) -> None:
    star = tmp_path / "data" / IMAGES
    star.parent.mkdir()
    star.write_bytes((data / IMAGES).read_bytes())
    for stack in data.glob("*_sim.mrcs"):
        (star.parent / stack.name).symlink_to(stack)
    before = star.read_bytes()
    run = write_training(tmp_path / "run", star, THREE)
    with pytest.raises(RequestError, match="is what the training was made of"):
        write_selection(run, Wanted(cluster=(1,)), tmp_path / "run" / ".." / "data" / IMAGES)
    with pytest.raises(RequestError, match=r"ends in \.star"):
        write_selection(run, Wanted(cluster=(1,)), tmp_path / "some.txt")
    assert star.read_bytes() == before


def test_the_command(ribosomes: VAERun, tmp_path: Path) -> None:
    call = ["select", str(ribosomes.path), "-o", str(tmp_path / "a.star"), "--cluster", "1"]
    said = CliRunner().invoke(app, call)
    assert said.exit_code == 0, said.output
    assert "20 of 40 particles" in said.output
    assert "Unt_088: 5 of 10" in said.output
    facts = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    assert (facts["chosen"], facts["particles"]) == (20, 40)
    assert facts["tomograms"]["Unt_050"] == {"chosen": 5, "of": 10}
    assert facts["files"] == [str(tmp_path / "a.star"), str(tmp_path / "a_optimisation_set.star")]
    assert len(read_star(tmp_path / "a.star")["particles"]) == 20
    wrong = CliRunner().invoke(app, [*call[:-1], "one"])
    assert isinstance(wrong.exception, RequestError)
