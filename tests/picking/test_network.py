"""The network, its file, and what is made of a micrograph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.errors import ItemError, RequestError
from weft.picking.examples import Example, label_radius, normalised, on_grid, targets
from weft.picking.network import ARTEFACT, PARTICLE, PickingModel, SegmentationNetwork, Shape
from weft.picking.segmentation import probabilities, segment
from weft.picking.training import Accuracies, Trainer, TrainingSettings, balanced_accuracy, retrain

SMALL = Shape((8, 16), (1, 1), (1,))


def untrained(seed: int = 0) -> PickingModel:
    torch.manual_seed(seed)
    network = SegmentationNetwork(SMALL)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return PickingModel(network.state_dict(), SMALL, least_chance=0.2, about={"a": [1]})


def discs(seed: int, n: int = 128, size: float = 64.0) -> Example:
    """Dark discs of 64 Å, and a black quarter."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(60.0, n * 8.0 - 60.0, (25, 2))
    rows, columns = np.indices((n, n)) * 8.0
    image = np.zeros((n, n), np.float32)
    for x, y in xy:
        image -= 0.08 * (np.hypot(rows - y, columns - x) <= 0.5 * size)
    artefact = np.zeros((n, n), bool)
    artefact[: n // 2, : n // 2] = True
    image[artefact] = -1.0
    outside = ~artefact[tuple(np.rint(xy / 8.0).astype(int)[:, ::-1].T)]
    return Example(image, (n * 8.0, n * 8.0), xy[outside], size, artefact, exposure=40.0)


def test_a_model_comes_back_from_its_file() -> None:
    model = untrained()
    again = PickingModel.from_bytes(model.to_bytes())
    assert (again.shape, again.least_chance, again.about) == (SMALL, 0.2, {"a": [1]})
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        # kept in half precision
        torch.testing.assert_close(again.network()(image), model.network()(image), rtol=0.02, atol=0.02)


def test_other_files_are_refused() -> None:
    data = untrained().to_bytes()
    for wrong in (b"", b"not a model", data[: len(data) // 2]):
        with pytest.raises(RequestError, match=r"old\.safetensors is not a picking model"):
            PickingModel.from_bytes(wrong, "old.safetensors")


def test_tiles_agree_with_the_whole() -> None:
    """Away from a tile's border it does not matter where the border is."""
    model = untrained()
    image = torch.randn(300, 420)
    network = model.network()
    tiled = probabilities(image, network)
    assert tiled.shape == (3, 300, 420)
    torch.testing.assert_close(tiled.sum(0), torch.ones(300, 420))
    with torch.no_grad():
        views = [image[None, None], image[None, None].transpose(-1, -2)]
        seen = [network(view).softmax(1) for view in views]
        turned = [network(view.flip(-1, -2)).softmax(1).flip(-1, -2) for view in views]
    whole = 0.25 * (seen[0] + turned[0] + (seen[1] + turned[1]).transpose(-1, -2))
    middle = (slice(None), slice(80, 140), slice(200, 220))
    torch.testing.assert_close(tiled[middle], whole[0][middle], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("shape", [(30, 41), (256, 300), (257, 100)])
def test_fields_of_any_size(shape: tuple[int, int]) -> None:
    found = probabilities(torch.randn(shape), untrained().network())
    assert found.shape == (3, *shape)
    assert bool(torch.isfinite(found).all())


def test_the_grid() -> None:
    """Scaling keeps the place of the first pixel and the grey values of slow variations."""
    x = torch.arange(400) * 2.0
    wave = torch.cos(2.0 * torch.pi * x / 200.0).expand(320, 400)
    small = on_grid(wave, 2.0, 8.0)
    assert small.shape == (80, 100)
    torch.testing.assert_close(small[0], torch.cos(2.0 * torch.pi * torch.arange(100) * 8.0 / 200.0))
    for image, pixel_size, words in (
        (torch.full((400, 400), torch.nan), 2.0, "not finite"),
        (torch.zeros(40, 40), 2.0, "smaller than"),
        (torch.zeros(400, 400), 10.0, "coarser than"),
    ):
        with pytest.raises(ItemError, match=words):
            on_grid(image, pixel_size, 8.0)


def test_normalisation_does_not_follow_dirt() -> None:
    image = torch.randn(200, 200) * 3.0 + 50.0
    image[:60] = -500.0
    clean = normalised(image)[60:]
    assert abs(float(clean.mean())) < 0.6
    assert float(normalised(image).min()) == -10.0
    with pytest.raises(ItemError, match="nothing can be seen"):
        segment(torch.ones(300, 300), 4.0, untrained())


def test_labels() -> None:
    example = Example(
        np.zeros((64, 64), np.float32),
        (512.0, 512.0),
        np.array([[200.0, 304.0], [40.0, 40.0]]),
        128.0,
        np.eye(64, dtype=bool),
        np.array([[400.0, 100.0, 50.0]]),
    )
    found = targets(example, 0.5)
    assert label_radius(128.0, 8.0, 0.5) == 32.0
    assert found.classes[38, 25] == PARTICLE
    assert found.classes[38, 25 + 4] == PARTICLE
    assert found.classes[38, 25 + 5] == 0
    # between the disc and the outline either will do
    assert float(found.weight[38, 25 + 6]) < 0.5
    assert float(found.weight[38, 25 + 9]) == 1.0
    assert found.classes[5, 5] == ARTEFACT  # also where a particle would be
    assert float(found.weight[12, 50]) == 0.0
    # the smallest disc
    assert label_radius(20.0, 8.0, 0.5) == 20.0


def test_it_learns_and_goes_on() -> None:
    """A few steps on discs are enough to see more of them; from a kept state the same comes out."""
    settings = TrainingSettings(steps=160, batch=4, tile=64, learning_rate=0.01)
    examples = [discs(i) for i in range(3)]

    def run(stop: int | None) -> tuple[Trainer, list[float]]:
        trainer = Trainer(settings, shape=SMALL)
        losses = []
        while trainer.step < settings.steps:
            if trainer.step == stop:
                state = trainer.state()
                trainer = Trainer(settings, shape=SMALL)
                trainer.load(state)
                stop = None
            losses.append(trainer.learn(*trainer.batch(examples, settings.batch))[0])
        return trainer, losses

    trainer, losses = run(None)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    images, classes, weights = Trainer(settings).batch([discs(9)], 8)
    with torch.no_grad():
        assert balanced_accuracy(trainer.model().network()(images), classes, weights) > 0.6
    _, again = run(50)
    np.testing.assert_allclose(again, losses, rtol=0.02)


def test_retraining_reports_four_accuracies() -> None:
    settings = TrainingSettings(steps=30, batch=4, tile=64, learning_rate=0.01)
    seen: list[Accuracies] = []
    model, history = retrain(untrained(), [discs(1)], [discs(2)], settings, progress=seen.append)
    assert seen == history
    last = history[-1]
    assert last.step == 30
    assert last.new_on_new > last.old_on_new
    assert 0.0 <= last.old_on_old <= 1.0
    assert model.diameter == 64.0
    assert model.about["retrained"]["micrographs"] == 1
    # without old data there is nothing to say about them
    assert np.isnan(retrain(untrained(), [discs(1)], [], settings)[1][-1].new_on_old)
    empty = Example(np.zeros((64, 64)), (512.0, 512.0), np.zeros((0, 2)), 60.0, np.zeros((64, 64), bool))
    with pytest.raises(ItemError, match="no particles to learn from"):
        retrain(untrained(), [empty], [], settings)
