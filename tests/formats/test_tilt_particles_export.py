"""What Weft exports as tilt images is read back as what was cut out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weft.formats import mrc
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles, write_tilt_particles
from weft.formats.tomo_particles import TomoParticles
from weft.particles.image_series import ImageSeries
from weft.session import subtomogram_export
from weft.session.session import Session
from weft.session.session import open as open_session

BOX, PIXEL, COUNT = 24, 12.0, 5
Exported = tuple[TiltParticles, ImageSeries]


@pytest.fixture(scope="module")
def session(done_tilts: Path) -> Session:
    return open_session(done_tilts)


@pytest.fixture
def exported(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Exported]:
    """Export in a flavour; the file as it is read, and what was written to it."""
    made: list[ImageSeries] = []
    batches = subtomogram_export._made

    def noted(*arguments: Any) -> Iterator[tuple[int, ImageSeries, Any]]:
        for first, series, volumes in batches(*arguments):
            made.append(series)
            yield first, series, volumes

    monkeypatch.setattr(subtomogram_export, "_made", noted)

    def export(flavour: str, file: str = "particles.star", **given: Any) -> Exported:
        name = next(iter(session.series.values())).name
        rng = np.random.default_rng(0)
        # near the rim too: the number of tilts that show a particle is not the same for all
        xyz = rng.uniform(-0.4, 0.4, (COUNT, 3)) * np.array(session[name].volume_size)
        euler = rng.uniform(-90.0, 90.0, (COUNT, 3))
        particles = TomoParticles([name] * COUNT, xyz, euler, np.full(COUNT, 0.5))
        settings = subtomogram_export.ParticleExportSettings.model_validate(
            {"kind": "2d", "flavour": flavour, "box": BOX, "pixel_size": PIXEL, "diameter": 150.0, **given}
        )
        made.clear()
        report = subtomogram_export.export_subtomograms(session, tmp_path / "out", particles, settings)
        assert report.exit_code == 0
        return read_tilt_particles(tmp_path / "out" / file), ImageSeries.join(made)

    return export


def _agree(found: TiltParticles, series: ImageSeries, rounding: float = 1e-4) -> None:
    """All that is known of the images, to what single precision and the files' digits leave of it."""
    assert len(found) == len(series)
    assert found.pixel_size == series.pixel_size == PIXEL
    assert found.box == BOX
    assert found.premultiplied == series.premultiplied
    assert found.half.tolist() == series.half.tolist()
    seen = series.weight > 0.0
    assert found.count.tolist() == seen.sum(1).tolist()

    def of(value: torch.Tensor) -> np.ndarray[Any, Any]:
        return np.asarray(value[seen].double().numpy())

    np.testing.assert_allclose(found.rotation, of(series.rotation), atol=rounding)
    np.testing.assert_allclose(found.shift, of(series.shift), atol=1e-3)
    np.testing.assert_allclose(0.5 * (found.defocus_u + found.defocus_v), of(series.defocus), atol=2.0)
    np.testing.assert_allclose(found.defocus_u - found.defocus_v, of(series.astigmatism), atol=1e-2)
    turn = np.radians(2.0 * (found.angle - of(series.angle)))
    np.testing.assert_allclose(np.cos(turn), 1.0, atol=1e-4)
    np.testing.assert_allclose(found.phase_shift, of(series.phase_shift), atol=1e-3)
    np.testing.assert_allclose(found.cos_tilt, of(series.weight), atol=1e-4)
    assert set(found.voltage.tolist()) == {series.voltage}
    assert set(found.amplitude.tolist()) == {series.amplitude}
    # and the images are those that were cut out
    images = series.images[seen]
    for m in range(0, found.images, 7):
        with mrc.MrcStack(found.files[found.file[m]]) as stack:
            np.testing.assert_allclose(stack.read(found.section[m]), images[m].numpy(), atol=1e-5)


@pytest.mark.parametrize("premultiply", [False, True])
@pytest.mark.parametrize("flavour", ["relion5", "warp"])
def test_sets(flavour: str, premultiply: bool, exported: Callable[..., Exported]) -> None:
    found, series = exported(flavour, "optimisation_set.star", premultiply=premultiply)
    assert found.flavour == {"relion5": "relion5", "warp": "warptools"}[flavour]
    assert found.premultiplied == premultiply
    _agree(found, series)
    seen = series.weight > 0.0
    exposure = (series.dose[seen].double().numpy() - found.dose).round(3)
    # RELION's is before the exposure; ours with it, or before: the same for all
    assert len(set(exposure.tolist())) == 1
    assert exposure[0] >= 0.0


@pytest.mark.parametrize(("flavour", "file", "as_"), [("relion3", "particles.star", "relion3"),
                                                      ("warp", "images.star", "warp1")])  # fmt: skip
def test_rows(flavour: str, file: str, as_: str, exported: Callable[..., Exported]) -> None:
    found, series = exported(flavour, file, premultiply=False)
    assert found.flavour == as_
    _agree(found, series)
    np.testing.assert_allclose(found.dose, series.dose[series.weight > 0.0].numpy(), atol=1e-3)
    assert set(found.tomogram) == {found.tomogram[0]}


def test_places(session: Session, exported: Callable[..., Exported], tmp_path: Path) -> None:
    found, _ = exported("relion5")
    geometry = session[found.tomogram[0]].geometry  # type: ignore[union-attr]
    assert found.place_origin == "centre"
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-0.4, 0.4, (COUNT, 3)) * geometry.volume_size.numpy()
    np.testing.assert_allclose(found.place, xyz, atol=1e-3)
    write_tilt_particles(tmp_path / "out" / "picked_optimisation_set.star", found, [3, 1])
    again = read_tilt_particles(tmp_path / "out" / "picked_optimisation_set.star")
    assert again.particle == [found.particle[1], found.particle[3]]
    np.testing.assert_allclose(again.defocus_u, found.select([1, 3]).defocus_u)
