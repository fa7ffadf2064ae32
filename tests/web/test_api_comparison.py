"""Before and after preprocessing, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from weft.micrographs.comparison import comparison, power_spectrum

ITEM = "movie_000"


@pytest.fixture
def web_session(web_session: Any) -> Any:
    """With a preprocessed micrograph."""
    web_session.set("preprocess.downsample", "2")
    web_session.set("preprocess.invert", "true")
    assert web_session.run(steps=["preprocess"], only=ITEM, workers=0).failed == {}
    return web_session


def test_the_page_gets_a_picture_of_both(owner: TestClient, web_session: Any) -> None:
    answer = owner.get(f"/api/items/{ITEM}/comparison")
    assert answer.status_code == 200, answer.text
    picture = imagecodecs.png_decode(answer.content)
    side = (picture.shape[1] - 8) // 2
    before, after = picture[:side, :side].astype(float), picture[:side, -side:].astype(float)
    # the copy was downsampled to half: what is finer stands in one of them only
    before, after = (x.reshape(side // 2, 2, side // 2, 2).mean((1, 3)) for x in (before, after))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] < -0.7, "inverted, and the same field"
    assert owner.get("/api/items/movie_001/comparison").status_code == 404
    Path(web_session[ITEM].paths["preprocessed"]).unlink()
    assert owner.get(f"/api/items/{ITEM}/comparison").status_code == 404


def test_spectra_share_their_scale_of_frequency() -> None:
    x = torch.arange(512.0)
    noise = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))  # some noise is as bright as it
    wave = torch.cos(2 * np.pi * x / 16) + 0.01 * noise
    small = wave[::2, ::2]
    picture = comparison(wave, small, 2.0, 0)
    left, right = picture[520:, :512].astype(int), picture[520:, 520:].astype(int)
    # 1/16 of a cycle in a pixel is 32 pixels right of the centre, on both sides
    for panel in (left, right):
        line = panel[256, 256 + 12 : 256 + 120]
        assert abs(np.flatnonzero(line == line.max()).mean() + 12 - 32) <= 1
    assert (right[:, :100] == 255).all(), "beyond the smaller image's Nyquist frequency there is nothing"


def test_power_spectra_are_those_of_numpy() -> None:
    image = torch.rand(96, 80)
    window = np.hanning(33)[:32]
    tiles = [
        image[i : i + 32, j : j + 32].double().numpy()
        for i in range(0, 96 - 31, 16)
        for j in range(0, 80 - 31, 16)
    ]
    wanted = np.mean(
        [np.abs(np.fft.fft2((t - t.mean()) * window[:, None] * window)) ** 2 for t in tiles], axis=0
    )
    found = power_spectrum(image, 32).numpy()
    assert np.allclose(found, np.fft.fftshift(wanted), rtol=1e-3, atol=1e-5)
