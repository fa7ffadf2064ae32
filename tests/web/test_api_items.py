"""Lists of items, one item and its pictures."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import imagecodecs
import numpy as np
import pytest
from starlette.testclient import TestClient

from weft.formats import mrc
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.physics.optics import Optics
from weft.web.app import Application
from weft.web.images import Deconvolution, Gone, Viewer

NAMES = ["movie_000", "movie_001", "movie_002"]


def read(client: TestClient, address: str, **parameters: Any) -> Any:
    answer = client.get(f"/api/{address}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture(client: TestClient, address: str) -> np.ndarray:
    answer = client.get(f"/api/items/{address}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return imagecodecs.png_decode(answer.content)


def test_the_list_has_everything_that_a_grid_shows(owner: TestClient, web_session: Any) -> None:
    page = read(owner, "items")
    assert page["total"] == 3
    first = page["items"][0]
    record = web_session["movie_000"].record
    assert first["id"] == first["name"] == "movie_000"
    assert (first["state"], first["selected"], first["manual"], first["reasons"]) == ("done", True, None, [])
    assert first["metrics"] == record.metrics
    assert first["time"] == pytest.approx(record.input.mtime_ns / 1e9)
    assert set(first["outputs"]) == {
        "average",
        "motion_star",
        "thumbnail",
        "powerspectrum",
        "powerspectrum_curve",
        "picks",
        "mask",
    }


def test_a_part_of_the_list_in_any_order(owner: TestClient) -> None:
    by_defocus = sorted(read(owner, "items")["items"], key=lambda i: i["metrics"]["defocus"])
    names = [item["id"] for item in by_defocus]
    assert [i["id"] for i in read(owner, "items", sort="defocus")["items"]] == names
    assert [i["id"] for i in read(owner, "items", sort="-defocus", limit=2)["items"]] == names[::-1][:2]
    assert [i["id"] for i in read(owner, "items", sort="-name", offset=1, limit=1)["items"]] == ["movie_001"]
    assert read(owner, "items", offset=99)["items"] == []
    for sort in ("time", "-time", "state", "processed", "folder", "selected", "astigmatism_sigma"):
        assert read(owner, "items", sort=sort)["total"] == 3


@pytest.mark.parametrize(
    "bad",
    ["sort=size", "sort=--name", "state=gone", "limit=0", "limit=100000", "offset=-1", "selected=maybe"],
)
def test_what_cannot_be_listed_is_said(owner: TestClient, bad: str) -> None:
    answer = owner.get(f"/api/items?{bad}")
    assert answer.status_code == 422
    assert bad.split("=")[0] in answer.json()["detail"]


def test_search_and_filters(owner: TestClient) -> None:
    assert [i["id"] for i in read(owner, "items", search="E_001")["items"]] == ["movie_001"]
    assert read(owner, "items", search="movie frames")["total"] == 3, "every word, in name or folder"
    assert read(owner, "items", search="movie nowhere")["total"] == 0
    assert read(owner, "items", state="done,failed")["total"] == 3
    assert read(owner, "items", state="stale")["total"] == 0
    assert read(owner, "items", selected="false")["total"] == 0


def test_one_item(owner: TestClient, web_session: Any) -> None:
    item = read(owner, "items/movie_001")
    movie = web_session["movie_001"]
    assert item["source"] == str(movie.source)
    assert item["size"] == movie.source.stat().st_size
    assert item["shape"] == [5, 320, 320]
    assert (item["pixel_size"], item["extent"]) == (1.5, [480.0, 480.0])
    assert [(step["name"], step["state"]) for step in item["steps"]] == [
        ("motion", "done"),
        ("ctf", "done"),
        ("pick", "done"),
    ]
    assert item["steps"][1]["settings"]["ctf"]["range_max"] == 8.0
    assert item["steps"][0]["seconds"] > 0
    assert item["error"] is None


def test_an_unknown_item_is_404(owner: TestClient) -> None:
    for address in ("", "/view", "/curve", "/tracks", "/defocus", "/mask", "/picks", "/picture/thumbnail"):
        answer = owner.get(f"/api/items/nobody{address}")
        assert answer.status_code == 404
        assert "nobody" in answer.json()["detail"]


def test_pictures_are_those_on_disk_and_can_be_kept(owner: TestClient, web_session: Any) -> None:
    written = web_session["movie_000"].paths["thumbnail"]
    answer = owner.get("/api/items/movie_000/picture/thumbnail")
    assert answer.content == written.read_bytes()
    assert "no-cache" in answer.headers["cache-control"]
    again = {"If-None-Match": answer.headers["etag"]}
    assert owner.get("/api/items/movie_000/picture/thumbnail", headers=again).status_code == 304
    written.write_bytes(answer.content + b" ")
    assert owner.get("/api/items/movie_000/picture/thumbnail", headers=again).status_code == 200
    kept = owner.get("/api/items/movie_000/picture/thumbnail?v=1").headers["cache-control"]
    assert "immutable" in kept
    assert owner.get("/api/items/movie_000/picture/average").status_code == 422


def test_the_view_is_the_average_made_smaller(owner: TestClient, web_session: Any) -> None:
    average = mrc.read(web_session["movie_000"].paths["average"])[0].astype(float)
    shown = picture(owner, "movie_000/view?size=160")
    assert (shown.shape, shown.dtype) == ((160, 160), np.uint8)
    spectrum = np.fft.fftshift(np.fft.fft2(average))[80:240, 80:240]
    expected = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    clipped = expected.clip(*np.percentile(expected, (0.5, 99.5)))
    # 256 grey values are left of it
    assert np.corrcoef(clipped.ravel(), shown.ravel())[0, 1] > 0.999
    assert shown.min() == 0
    assert shown.max() == 255
    assert picture(owner, "movie_000/view?size=4096").shape == (320, 320), "it is never enlarged"


def test_the_view_is_deconvolved_on_request(owner: TestClient, web_session: Any) -> None:
    import torch

    from weft.micrographs.deconvolution import deconvolve

    movie = web_session["movie_000"]
    average = torch.from_numpy(mrc.read(movie.paths["average"])[0].astype(np.float32))
    half = 0.5 * movie.ctf.astigmatism
    expected = deconvolve(
        average,
        (movie.ctf.defocus + half, movie.ctf.defocus - half, movie.ctf.angle),
        web_session.settings.input.optics(),
        DeconvolutionSettings(strength=1.2, falloff=0.9, highpass=200.0),
    ).numpy()
    shown = picture(owner, "movie_000/view?size=512&strength=1.2&falloff=0.9&highpass=200")
    assert (
        np.corrcoef(expected.clip(*np.percentile(expected, (0.5, 99.5))).ravel(), shown.ravel())[0, 1] > 0.999
    )
    plain = picture(owner, "movie_000/view?size=512")
    assert not np.array_equal(plain, shown)
    for bad in ("strength=6", "strength=-1", "strength=nan", "falloff=11", "highpass=1e9", "size=10"):
        assert owner.get(f"/api/items/movie_000/view?{bad}").status_code == 422


def test_a_denoised_view_is_deconvolved_once(web_session: Any) -> None:
    """Not again what was deconvolved before it was denoised; and at its own pixel size, not the average's."""
    from dataclasses import replace

    from weft.session.records import StepRecord
    from weft.web.details import deconvolution

    record = web_session["movie_000"].record
    for deconvolved in (True, False):
        about = {"denoised": {"deconvolved": deconvolved, "pixel_size": 5.0}}
        step = StepRecord("done", "", {}, about, {"denoised": "denoised/movie_000.mrc"})
        other = replace(record, steps={**record.steps, "denoise_micrograph": step})
        how = deconvolution(other, 1.0, None, None, denoised=True)
        assert (how is None) is deconvolved
        if how is not None:
            assert how.optics.pixel_size == 5.0


def test_a_reduced_view_is_deconvolved_at_its_own_pixel_size(tmp_path: Path) -> None:
    spectrum = np.fft.rfft2(np.random.default_rng(1).normal(size=(256, 256)))
    spectrum[np.abs(np.fft.fftfreq(256)) > 0.1] = 0.0
    spectrum[:, 26:] = 0.0
    mrc.write(tmp_path / "a.mrc", np.fft.irfft2(spectrum).astype(np.float32), 1.0)
    how = Deconvolution((15000.0, 14000.0, 20.0), Optics(1.0), 0.0, DeconvolutionSettings())
    viewer = Viewer()
    whole = imagecodecs.png_decode(viewer.render(tmp_path / "a.mrc", 256, how))
    reduced = imagecodecs.png_decode(viewer.render(tmp_path / "a.mrc", 64, how))
    # nothing is lost by reducing it, so the CTF must be the same at every frequency
    assert np.corrcoef(whole[::4, ::4].ravel(), reduced.ravel())[0, 1] > 0.999


def test_pictures_that_take_long_hold_nothing_up(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = Semaphore(0), Event()

    def slow(self: Any, path: Path, longest: int, how: Any) -> bytes:
        begun.release()
        assert release.wait(30)
        return b"picture"

    monkeypatch.setattr(Viewer, "render", slow)
    token = {"Authorization": f"Bearer {application.access.token}"}
    with (
        TestClient(application, "http://127.0.0.1:8765", headers=token) as client,
        ThreadPoolExecutor() as pool,
    ):
        asked = [pool.submit(client.get, f"/api/items/{name}/view") for name in NAMES]
        assert begun.acquire(timeout=30)
        assert begun.acquire(timeout=30)
        # a browser asks for hundreds of things while pictures are made
        for _ in range(60):
            assert client.get("/api/items").status_code == 200
        assert not begun.acquire(timeout=0.05), "two at a time"
        release.set()
        assert [answer.result().content for answer in asked] == [b"picture"] * 3


def test_a_picture_that_nobody_waits_for_is_not_made() -> None:
    async def gone() -> bool:
        return True

    async def main() -> None:
        viewer = Viewer()
        viewer.start()
        with pytest.raises(Gone):
            await viewer.run(lambda: pytest.fail("it was made"), gone)
        viewer.close()

    asyncio.run(main())


def test_a_view_follows_its_file(owner: TestClient, web_session: Any) -> None:
    before = picture(owner, "movie_000/view?size=64")
    path = web_session["movie_000"].paths["average"]
    data, _ = mrc.read(path)
    mrc.write(path, data[::-1].copy(), 1.5)
    assert np.array_equal(
        picture(owner, "movie_000/view?size=320"), picture(owner, "movie_000/view?size=320")
    )
    after = picture(owner, "movie_000/view?size=64")
    assert not np.array_equal(before, after)


def test_a_damaged_average_is_a_sentence(owner: TestClient, web_session: Any) -> None:
    path = web_session["movie_000"].paths["average"]
    path.write_bytes(path.read_bytes()[:5000])
    answer = owner.get("/api/items/movie_000/view")
    assert answer.status_code == 409
    assert "movie_000" in answer.json()["detail"]
    path.unlink()
    assert owner.get("/api/items/movie_000/view").status_code == 404


def test_artefacts_are_violet_and_all_else_is_clear(owner: TestClient, web_session: Any) -> None:
    path = web_session["movie_000"].paths["mask"]
    mask = np.zeros((60, 60), np.int8)
    mask[5:20, 30:45] = 1
    mrc.write(path, mask, 8.0, dtype=np.int8)
    shown = picture(owner, "movie_000/mask")
    assert shown.shape == (60, 60, 4)
    assert np.array_equal(shown[..., 3] > 0, mask > 0), "rows and columns are those of the micrograph"
    red, green, blue, alpha = shown[10, 35].tolist()
    assert green < red < blue
    assert 60 < alpha < 200, "the image is seen through it"
    mrc.write(path, np.zeros((2, 60, 60), np.int8), 8.0, dtype=np.int8)
    assert owner.get("/api/items/movie_000/mask").status_code == 409


def test_results_that_are_not_there_are_404(owner: TestClient, web_session: Any) -> None:
    web_session["movie_000"].paths["mask"].unlink()
    assert owner.get("/api/items/movie_000/mask").status_code == 404
    assert owner.get("/api/items/movie_000/view?denoised=1").status_code == 404


def test_curve_tracks_and_defocus(owner: TestClient, web_session: Any) -> None:
    movie = web_session["movie_002"]
    curve = read(owner, "items/movie_002/curve")
    assert len({len(values) for values in curve.values()}) == 1
    assert curve["frequency"] == sorted(curve["frequency"])
    with np.load(io.BytesIO(movie.paths["powerspectrum_curve"].read_bytes())) as stored:
        np.testing.assert_allclose(curve["fit"], stored["fit"][1:], atol=1e-4)
    tracks = read(owner, "items/movie_002/tracks")
    assert tracks["extent"] == [480.0, 480.0]
    np.testing.assert_allclose(tracks["global"], movie.motion.global_shift, atol=1e-3)
    for local in tracks["local"]:
        np.testing.assert_allclose(local["track"], movie.track([local["at"]])[:, 0], atol=2e-3)
    defocus = read(owner, "items/movie_002/defocus")
    rows = np.array(defocus["rows"])
    assert rows.shape == (24, 24)
    assert rows.mean() * 1e4 == pytest.approx(movie.ctf.defocus, rel=1e-3)


def test_decisions_by_hand(owner: TestClient, web_session: Any) -> None:
    answer = owner.post("/api/decisions", json={"items": ["movie_001", "movie_000"], "accept": False})
    assert answer.json() == {"items": ["movie_000", "movie_001"]}
    assert web_session.selection.exclude == {"movie_000", "movie_001"}
    items = {item["id"]: item for item in read(owner, "items")["items"]}
    assert (items["movie_000"]["manual"], items["movie_000"]["selected"]) == ("exclude", False)
    assert items["movie_000"]["reasons"] == ["excluded by hand"]
    assert read(owner, "items", selected="true")["total"] == 1
    owner.post("/api/decisions", json={"items": ["movie_000"], "accept": None})
    assert web_session.selection.exclude == {"movie_001"}
    bad = owner.post("/api/decisions", json={"items": ["movie_002", "nobody"], "accept": False})
    assert bad.status_code == 404
    assert web_session.selection.exclude == {"movie_001"}, "all or nothing"
    assert owner.post("/api/decisions", json={"items": ["movie_002"]}).status_code == 422


def test_retry(owner: TestClient, application: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(type(application.hub.manager), "retry", lambda self, names: asked.append(list(names)))
    assert owner.post("/api/items/movie_001/retry").json() == {"items": ["movie_001"]}
    assert owner.post("/api/retry", json={"items": ["movie_002", "movie_000"]}).status_code == 200
    assert asked == [["movie_001"], ["movie_000", "movie_002"]]
    assert owner.post("/api/items/nobody/retry").status_code == 404
    assert owner.post("/api/retry", json={"items": ["nobody"]}).status_code == 404


def test_an_item_shows_what_the_columns_hold(owner: TestClient) -> None:
    table = read(owner, "columns")
    for index, item in enumerate(read(owner, "items")["items"]):
        for name, column in table["metrics"].items():
            assert item["shown"][name] == pytest.approx(column["values"][index], rel=1e-6)
        for key in ("kind", "folder", "reason", "revision", "state", "time"):
            assert item[key] == table[key][index]
