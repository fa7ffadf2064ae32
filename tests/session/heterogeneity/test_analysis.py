"""`weft vae analyze` on trainings whose landscape is known."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import sys
from html import escape
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fake_training import FakeRun, one_cluster, two_clusters
from typer.testing import CliRunner

from weft.cli.vae_analyze import app
from weft.errors import FormatError, RequestError
from weft.formats import mrc
from weft.heterogeneity.clusters import adjusted_rand_index
from weft.session.heterogeneity import run_folder
from weft.session.heterogeneity.analysis import Analysis, analyze
from weft.session.heterogeneity.analysis_settings import AnalysisSettings


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, FakeRun, np.ndarray]:
    mu, truth = two_clusters()
    run = FakeRun(tmp_path_factory.mktemp("two <classes> & more"), mu)
    return analyze(run, AnalysisSettings(steps=3, path=5)), run, truth


def rows(result: Analysis) -> list[dict[str, str]]:
    with (result.folder / "clusters.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_classes_are_two_clusters_in_the_table(two: tuple[Analysis, FakeRun, np.ndarray]) -> None:
    result, run, truth = two
    table = rows(result)
    assert [row["particle"] for row in table] == run.names
    assert [row["tomogram"] for row in table] == run.known.tomogram
    label = np.array([int(row["cluster"]) for row in table])
    # the larger is the first
    assert np.bincount(label).tolist() == [0, 80, 40]
    assert adjusted_rand_index(label, truth) == 1.0
    scores = np.array([[float(row[f"pc{i + 1}"]) for i in range(4)] for row in table])
    # a turned copy of the centred latent
    assert scores.std(0).tolist() == sorted(scores.std(0), reverse=True)
    centred = run.mu - run.mu.mean(0)
    assert np.linalg.norm(scores, axis=1) == pytest.approx(np.linalg.norm(centred, axis=1), rel=1e-4)


def test_volumes_are_those_of_the_points_that_are_named(two: tuple[Analysis, FakeRun, np.ndarray]) -> None:
    result, run, _ = two
    facts = json.loads((result.folder / "analysis.json").read_text())
    names = {one["file"] for one in facts["volumes"]}
    assert names == {f"volumes/{p.name}" for p in (result.folder / "volumes").glob("*.mrc")}
    expected = {
        "volumes/cluster_01.mrc",
        "volumes/cluster_02.mrc",
        "volumes/pc1_01.mrc",
        "volumes/pc2_03.mrc",
    }
    assert expected <= names
    for one in facts["volumes"]:
        data, info = mrc.read(result.folder / one["file"])
        assert data == pytest.approx(run.volumes(np.array([one["latent"]]))[0], abs=1e-6)
        assert info.voxel_size[0] == pytest.approx(4.0)
        if one["series"] in ("cluster", "path"):
            place = run.names.index(one["particle"])
            assert one["latent"] == pytest.approx(run.mu[place].tolist(), abs=1e-6)
    first, last = (
        o["latent"] for o in facts["volumes"] if o["file"] in ("volumes/pc1_01.mrc", "volumes/pc1_03.mrc")
    )
    assert abs(first[0] - last[0]) > 3.0
    mask = mrc.read(result.folder / "mask.mrc")[0]
    assert mask.min() >= 0.0
    assert mask.max() == 1.0
    assert 0.02 < (mask > 0.5).mean() < 0.7


def test_what_goes_with_the_landscape_and_what_to_do(two: tuple[Analysis, FakeRun, np.ndarray]) -> None:
    result, _, _ = two
    facts = json.loads((result.folder / "analysis.json").read_text())
    assert facts["structure"]["found"]
    assert facts["structure"]["clusters"] == 2
    strongest = {(one["coordinate"], one["known"]) for one in facts["correlates"][:2]}
    # classes are those of i % 3, tomograms of i % 6
    assert strongest == {("pc1", "rlnMeanScore"), ("pc1", "tomogram")}
    about = {one["about"] for one in facts["advice"]}
    assert {"converged", "clusters", "follows the experiment"} <= about
    assert "not converged" not in about
    # turned and mirrored epochs are the same landscape
    assert max(one["moved"] for one in facts["movement"]) < 1e-3
    assert min(one["agreement"] for one in facts["movement"]) == 1.0
    assert min(one["correlation"] for one in facts["volume_agreement"]) > 0.999


def test_the_report_is_one_file_that_loads_nothing(two: tuple[Analysis, FakeRun, np.ndarray]) -> None:
    result, run, _ = two
    page = result.report.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "two &lt;classes&gt; &amp; more" in page
    assert "two <classes>" not in page
    command = f"weft vae select {shlex.quote(str(run.path))} --cluster 2 --output particles_cluster2.star"
    assert escape(command) in page
    for words in ("by cluster", "by density", "Along PC1", "Through the particles", "Clusters by tomogram"):
        assert words in page
    # six pictures a cluster, three a step
    assert page.count('alt="slice"') == 6
    assert page.count('alt="slice across z of pc1_') == 3


def test_one_class_is_no_clusters(tmp_path: Path) -> None:
    result = analyze(FakeRun(tmp_path, one_cluster(), settled=False), AnalysisSettings(steps=2, path=3))
    assert {row["cluster"] for row in rows(result)} == {"1"}
    assert not result.found.structure.found
    about = {one.about: one for one in result.advice}
    assert "no cluster structure" in about
    assert "clusters" not in about
    # its earlier epochs are noise
    assert "not converged" in about
    page = result.report.read_text()
    assert "no cluster structure" in page
    assert "weft vae select" not in page
    # from one end of the landscape to the other
    way = np.array([one.latent[0] for one in result.series[-1].volumes])
    assert abs(way[-1] - way[0]) > 2.0


def test_clusters_that_are_asked_for_in_one_heap_are_made_and_called_what_they_are(tmp_path: Path) -> None:
    result = analyze(FakeRun(tmp_path, one_cluster()), AnalysisSettings(clusters=4, components=0, path=0))
    assert {row["cluster"] for row in rows(result)} == {"1", "2", "3", "4"}
    assert any("cut where k-means pleased" in one.text for one in result.advice)
    assert not result.found.structure.found


def test_size_sign_filter_and_pixel_size_of_volumes(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, one_cluster())
    settings = AnalysisSettings(
        components=0, path=0, size=16, invert=True, pixel_size=5.0, low_pass=40.0, epochs=0
    )
    result = analyze(run, settings)
    data, info = mrc.read(result.folder / "volumes" / "cluster_01.mrc")
    assert data.shape == (16, 16, 16)
    assert info.voxel_size[0] == pytest.approx(5.0 * 24 / 16)
    plain = run.volumes(result.series[0].volumes[0].latent[None], None, 16)[0]
    spectrum, filtered = np.abs(np.fft.rfftn(plain)), np.fft.rfftn(data)
    k = np.fft.rfftfreq(16, 7.5)
    # 40 Å is between the third and fourth coefficient; the edge is a tenth wide
    assert np.abs(filtered[0, 0, :2]) == pytest.approx(spectrum[0, 0, :2], rel=1e-4)
    assert k[3] < 1 / 40 * 1.1 < k[4]
    assert np.abs(filtered[0, 0, 4:]) == pytest.approx(0.0, abs=1e-3)
    assert filtered[0, 0, 0].real < 0
    # another analysis leaves nothing of the one before
    analyze(run, AnalysisSettings(components=1, steps=2, path=0, epochs=0))
    again = analyze(run, AnalysisSettings(components=0, path=0, epochs=0))
    assert [p.name for p in (again.folder / "volumes").iterdir()] == ["cluster_01.mrc"]


def test_an_input_that_is_gone_is_told_and_the_rest_is_done(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, two_clusters()[0])

    def gone() -> None:
        raise FormatError("particles.star", "there is no such file")

    run.particles = gone  # type: ignore[method-assign]
    result = analyze(run, AnalysisSettings(components=0, path=0))
    assert any("there is no such file" in one.text for one in result.advice)
    assert {row["tomogram"] for row in rows(result)} == {""}
    assert result.found.structure.found


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_a_handful_of_particles_is_no_error(tmp_path: Path, count: int) -> None:
    result = analyze(FakeRun(tmp_path, one_cluster(count, 1)), AnalysisSettings(steps=2, path=3))
    assert len(rows(result)) == count
    assert any(one.about == "clusters not tested" for one in result.advice)


def test_a_collapsed_posterior_is_told(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, np.zeros((60, 3)))
    latent = run.latent

    def collapsed(epoch: int | None = None) -> object:
        found = latent(epoch)
        found.log_var[:] = 0.0
        return found

    run.latent = collapsed  # type: ignore[method-assign,assignment]
    result = analyze(run, AnalysisSettings())
    assert result.advice[0].about == "posterior collapsed"
    assert not result.found.structure.found


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, one_cluster(40))
    with pytest.raises(RequestError, match="only 40 particles"):
        analyze(run, AnalysisSettings(clusters=41))
    run.mu[3] = np.nan
    with pytest.raises(RequestError, match="not finite"):
        analyze(run, AnalysisSettings())


def test_the_command_says_what_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, two_clusters()[0])
    monkeypatch.setattr(run_folder, "open_run", lambda folder: run)
    asked = ["analyze", str(tmp_path), "--components", "1", "--steps", "2", "--path", "0"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "120 particles, epoch 30: 2 clusters found" in done.stdout
    assert "cluster 1: 80 particles" in done.stdout
    assert "warning: follows the experiment" in done.stdout
    assert str(tmp_path / "analysis" / "report.html") in done.stdout
    as_json = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(as_json.stdout)["structure"]["clusters"] == 2


def test_an_umap_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, one_cluster(60))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install umap-learn"):
        analyze(run, AnalysisSettings(umap=True))
    monkeypatch.undo()

    class UMAP:
        """Stands for umap-learn's: the first two coordinates."""

        def __init__(self, **settings: object) -> None:
            assert settings["n_neighbors"] == 15

        def fit_transform(self, points: np.ndarray) -> np.ndarray:
            return points[:, :2]

    module = ModuleType("umap")
    module.UMAP = UMAP  # type: ignore[attr-defined]
    module.__spec__ = ModuleSpec("umap", None)
    monkeypatch.setitem(sys.modules, "umap", module)
    result = analyze(run, AnalysisSettings(umap=True, components=0, path=0, epochs=0))
    table = rows(result)
    assert [float(row["umap2"]) for row in table] == pytest.approx(run.mu[:, 1].tolist(), rel=1e-4)
    with np.load(result.folder / "umap.npz") as found:
        assert found["umap"] == pytest.approx(run.mu[:, :2])
        assert found["particle"].tolist() == run.names
    assert "UMAP, by density" in result.report.read_text()
