"""``weft vae train``: from a STAR file to a latent space, with faulty input, stopped and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from two_classes import BOX, TwoClasses, blob_map, write_two_classes
from typer.testing import CliRunner

from weft.cli import app
from weft.errors import CorruptError, RequestError
from weft.formats import mrc
from weft.formats.star import Table, read_star, write_star
from weft.heterogeneity.model import NetworkSettings
from weft.heterogeneity.preparation import PreparationSettings
from weft.heterogeneity.training import VAETrainingSettings, beta_at, rate_at
from weft.session.heterogeneity.run_folder import open_run
from weft.session.heterogeneity.training import TrainingProgress, embed, resume_vae, train_vae

SMALL: dict[str, Any] = {"latent": 3, "hidden": 32, "features": 32, "encoder_hidden": 32, "grid": 12}


def _train(made: TwoClasses, output: Path, epochs: int = 4, **given: Any) -> Any:
    network = NetworkSettings(**{**SMALL, **given.pop("network", {})})
    training = VAETrainingSettings(epochs=epochs, **given.pop("training", {}))
    return train_vae(made.star, output, network, training, given.pop("preparation", None), **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TwoClasses:
    return write_two_classes(tmp_path_factory.mktemp("two"), noise=2.0)


@pytest.fixture(scope="module")
def trained(made: TwoClasses, tmp_path_factory: pytest.TempPathFactory) -> Any:
    training = {"keep_every": 4, "rate": 5e-3}
    return _train(made, tmp_path_factory.mktemp("trained") / "run", 8, training=training)


def _groups(mu: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tries = (kmeans2(mu, 2, minit="++", seed=s) for s in range(10))
    return min(tries, key=lambda found: ((mu - found[0][found[1]]) ** 2).sum())[1]


def test_two_structures_are_told_apart(made: TwoClasses, trained: Any) -> None:
    latent = trained.run.latent()
    assert latent.particle == made.names, "in the input's order"
    assert latent.mu.shape == latent.log_var.shape == (40, 3)
    found = _groups(latent.mu)
    assert max((found == made.classes).mean(), (found != made.classes).mean()) >= 0.95
    history = trained.run.history
    assert [line["epoch"] for line in history] == list(range(1, 9))
    assert history[-1]["loss"] < history[0]["loss"]
    assert {"reconstruction", "kl", "beta", "validation", "seconds", "images_per_second"} <= set(history[0])
    assert trained.run.epochs == [4, 8]
    assert trained.run.facts.sign == -1.0, "they are dark, and nobody said so"


def test_volumes_are_of_their_class(made: TwoClasses, trained: Any) -> None:
    mu = trained.run.latent().mu
    volumes = trained.run.volumes(np.stack([mu[made.classes == c].mean(0) for c in (0, 1)]))
    assert volumes.shape == (2, BOX, BOX, BOX)
    change = volumes[0] - volumes[1]
    truth = blob_map(0) - blob_map(1)
    assert np.corrcoef(change.ravel(), truth.ravel())[0, 1] > 0.3
    both = (blob_map(0) + blob_map(1)).ravel()
    for volume in volumes:
        assert np.corrcoef(volume.ravel(), both)[0, 1] > 0.85, "particles are light"
    # the same field with other voxels
    larger = trained.run.volumes(mu[:1], size=36)[0]
    assert larger.shape == (36, 36, 36)
    same = trained.run.volumes(mu[:1])[0]
    assert np.corrcoef(larger[::3, ::3, ::3].ravel(), same[::2, ::2, ::2].ravel())[0, 1] > 0.99
    with pytest.raises(RequestError, match="3 coordinates, these have 2"):
        trained.run.volumes(np.zeros((1, 2)))


def test_a_stopped_training_goes_on_as_if_nothing_had_been(made: TwoClasses, tmp_path: Path) -> None:
    whole = _train(made, tmp_path / "whole", 3, training={"validation": 0.1})

    def stop(now: TrainingProgress) -> None:
        if now.epoch == 2 and now.report is None and now.done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(made, tmp_path / "parts", 3, training={"validation": 0.1}, progress=stop)
    assert len(open_run(tmp_path / "parts").history) == 1
    resume_vae(tmp_path / "parts")
    parts = open_run(tmp_path / "parts")
    np.testing.assert_array_equal(parts.latent().mu, whole.run.latent().mu)
    for mine, theirs in zip(parts.history, whole.run.history, strict=True):
        for name in ("loss", "reconstruction", "kl", "validation"):
            assert mine[name] == theirs[name]
    first, second = (run.model().state_dict() for run in (parts, whole.run))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_training_is_not_written_over(made: TwoClasses, tmp_path: Path) -> None:
    _train(made, tmp_path / "run", 1)
    with pytest.raises(RequestError, match="--resume"):
        _train(made, tmp_path / "run", 1)
    assert len(_train(made, tmp_path / "run", 2, overwrite=True).run.history) == 2
    # longer than it was meant to be
    resume_vae(tmp_path / "run", epochs=3)
    assert open_run(tmp_path / "run").history[-1]["epoch"] == 3
    assert open_run(tmp_path / "run").settings.epochs == 3


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "concatenate"])
def test_the_encoder_of_images_learns(made: TwoClasses, pooling: str, tmp_path: Path) -> None:
    network = {"encoder": "images", "pooling": pooling}
    training = {"schedule": "constant", "beta": 0.1, "rate": 5e-3}
    found = _train(made, tmp_path / "run", 4, network=network, training=training)
    history = found.run.history
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["kl"] > 0.1, "it says something of the particles"
    assert np.isfinite(found.run.latent().mu).all()


def test_one_structure_for_all(made: TwoClasses, tmp_path: Path) -> None:
    found = _train(made, tmp_path / "run", 2, homogeneous=True)
    assert found.run.history[-1]["kl"] == 0.0
    volume = found.run.volumes(np.zeros((1, 0)))[0]
    assert np.corrcoef(volume.ravel(), (blob_map(0) + blob_map(1)).ravel())[0, 1] > 0.85
    with pytest.raises(RequestError, match="no latent space"):
        found.run.latent()
    with pytest.raises(RequestError, match="no latent space"):
        embed(found.run, made.star)


def test_new_particles_are_placed(made: TwoClasses, trained: Any, tmp_path: Path) -> None:
    same, particles, failed = embed(trained.run, made.star)
    assert not failed
    assert particles.particle == made.names
    np.testing.assert_allclose(same.mu.numpy(), trained.run.latent().mu, atol=1e-5)
    other = write_two_classes(tmp_path, 30, noise=2.0, seed=9)
    mu = embed(trained.run, other.star)[0].mu.numpy()
    known = trained.run.latent().mu
    means = np.stack([known[made.classes == c].mean(0) for c in (0, 1)])
    nearest = ((mu[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == other.classes).mean() >= 0.9, "particles that it has never seen"


def test_what_does_not_fit_in_memory_is_read_again(made: TwoClasses, tmp_path: Path) -> None:
    held = _train(made, tmp_path / "held", 1)
    read = _train(made, tmp_path / "read", 1, memory=0.0)
    assert held.run.history[0]["loss"] == read.run.history[0]["loss"]


def test_steps_of_beta_and_rate() -> None:
    warm = VAETrainingSettings(beta=2.0, warmup=0.5)
    assert [beta_at(t, warm) for t in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 2.0]
    cyclic = VAETrainingSettings(schedule="cyclic", cycles=2, warmup=0.5)
    at = (0.0, 0.125, 0.25, 0.49, 0.5, 0.625)
    assert [beta_at(t, cyclic) for t in at] == [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    assert beta_at(0.0, VAETrainingSettings(schedule="constant")) == 1.0
    assert rate_at(0.5, warm) == pytest.approx(5e-4)
    assert rate_at(1.0, warm) == pytest.approx(0.0)
    assert rate_at(0.9, VAETrainingSettings(decay=False)) == 1e-3


# ---------------------------------------------------------------- faults


def _spoil(made: TwoClasses, folder: Path, what: str) -> Path:
    images = mrc.read(made.stack)[0].copy()
    if what == "nan":
        images[7, 3, 3] = np.nan
    folder.mkdir(exist_ok=True)
    mrc.write_stack(folder / "stack.mrcs", images, 8.0)
    if what == "truncated":
        path = folder / "stack.mrcs"
        path.write_bytes(path.read_bytes()[: -BOX * BOX * 4 * 10])
    table = read_star(made.star)[""]
    if what == "box":
        mrc.write_stack(folder / "other.mrcs", images[:10, :20, :20], 8.0)
        names = table.strings("rlnImageName")
        table.columns["rlnImageName"] = [*names[:-3], *(f"{i}@other.mrcs" for i in (1, 2, 3))]
    write_star(folder / "particles.star", {"": Table(table.columns)})
    return folder / "particles.star"


def test_images_that_are_no_numbers_cost_their_particle(made: TwoClasses, tmp_path: Path) -> None:
    star = _spoil(made, tmp_path / "in", "nan")
    told = CliRunner().invoke(
        app,
        [
            "vae",
            "train",
            str(star),
            "-o",
            str(tmp_path / "run"),
            "--epochs",
            "1",
            "--latent",
            "2",
            "--hidden",
            "16",
        ],
    )
    assert told.exit_code == 1, told.output
    assert "stack.mrcs: section 8 (particle 001_000001) holds values that are no numbers" in told.output
    assert "39 particles" in told.output
    assert open_run(tmp_path / "run").latent().particle == [n for n in made.names if n != "001_000001"]


@pytest.mark.parametrize(("what", "said"), [("truncated", "stack.mrcs"), ("box", "other.mrcs")])
def test_broken_stacks_are_named(made: TwoClasses, what: str, said: str, tmp_path: Path) -> None:
    star = _spoil(made, tmp_path / "in", what)
    told = CliRunner().invoke(app, ["vae", "train", str(star), "-o", str(tmp_path / "run"), "--epochs", "1"])
    assert told.exit_code in (1, 2)
    assert said in str(told.output) + str(told.exception)


def test_few_particles_are_enough(tmp_path: Path) -> None:
    made = write_two_classes(tmp_path, 4, tilts=(1, 3))
    found = _train(made, tmp_path / "run", 1)
    assert found.run.latent().mu.shape == (4, 3)
    assert np.isfinite(found.run.latent().mu).all()


def test_light_particles_are_seen_to_be_light(tmp_path: Path) -> None:
    made = write_two_classes(tmp_path, 20, dark=False)
    found = _train(made, tmp_path / "run", 1)
    assert found.run.facts.sign == 1.0
    told = _train(made, tmp_path / "told", 1, preparation=PreparationSettings(contrast="dark"))
    assert told.run.facts.sign == -1.0, "who says it is believed"


def test_a_loss_that_is_no_number_says_what_to_do(made: TwoClasses, tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="lower rate"):
        _train(made, tmp_path / "run", 3, training={"rate": 1e30, "decay": False})


# ---------------------------------------------------------------- the command line


def test_volumes_from_the_command_line(trained: Any, tmp_path: Path) -> None:
    folder = str(trained.run.path)
    name = trained.run.latent().particle[3]
    points = tmp_path / "points.csv"
    points.write_text("0,0,0\n# nothing\n1, -1, 0.5\n")
    out = tmp_path / "out"
    told = CliRunner().invoke(
        app,
        [
            "vae",
            "volumes",
            folder,
            "-o",
            str(out),
            "--at=0.5,0,-1",
            "--particle",
            name,
            "--points",
            str(points),
        ],
    )
    assert told.exit_code == 0, told.output
    assert sorted(p.name for p in out.glob("*.mrc")) == [f"vol_{i:03d}.mrc" for i in range(4)]
    found, info = mrc.read(out / "vol_003.mrc")
    np.testing.assert_allclose(found, trained.run.volumes(trained.run.latent().mu[3:4])[0], atol=1e-5)
    assert info.voxel_size[0] == pytest.approx(8.0)
    for given, said in (
        (["--at=1,2"], "have 3 coordinates, not 2"),
        (["--at=a,b,c"], "give 3 numbers"),
        (["--particle", "nobody"], "no particle is called nobody"),
        ([], "say which places"),
    ):
        wrong = CliRunner().invoke(app, ["vae", "volumes", folder, "-o", str(out), *given])
        assert isinstance(wrong.exception, RequestError)
        assert said in str(wrong.exception)


def test_embed_from_the_command_line(made: TwoClasses, trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "new.npz"
    told = CliRunner().invoke(app, ["vae", "embed", str(trained.run.path), str(made.star), "-o", str(out)])
    assert told.exit_code == 0, told.output
    with np.load(out) as found:
        assert found["mu"].shape == (40, 3)
        assert list(found["particle"]) == made.names


def test_no_training_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="weft vae train"):
        open_run(tmp_path)
    with pytest.raises(RequestError, match=r"checkpoint\.pt is missing"):
        resume_vae(tmp_path)


def test_networks_that_are_others_are_named(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.run.path, tmp_path / "run")
    description = tmp_path / "run" / "vae.toml"
    description.write_text(description.read_text().replace("hidden = 32", "hidden = 48"))
    with pytest.raises(CorruptError, match=r"0008\.safetensors.*train again"):
        open_run(tmp_path / "run").volumes(np.zeros((1, 3)))
    description.write_text("[input]\n")
    with pytest.raises(CorruptError, match=r"vae\.toml"):
        open_run(tmp_path / "run").volumes(np.zeros((1, 3)))


def test_what_was_asked_for_is_written_down(trained: Any) -> None:
    facts = open_run(trained.run.path).facts
    assert facts.network == NetworkSettings(**SMALL)
    assert facts.training.epochs == 8
    assert (facts.particles, facts.images, facts.tilts, facts.box) == (40, 240, 7, BOX)
    assert json.loads((trained.run.path / "history.jsonl").read_text().splitlines()[0])["epoch"] == 1
