"""`weft template create` and `weft mask create`."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from weft.cli import main
from weft.formats import emdb, mrc


def weft(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and what was said."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def ball(n: int = 40, radius: float = 9.0, place: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    i = [np.arange(n) - p for p in place]
    r = np.sqrt(i[0][:, None, None] ** 2 + i[1][:, None] ** 2 + i[2] ** 2)
    return (1.0 / (1.0 + np.exp(r - radius))).astype(np.float32)


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    path = tmp_path / "ball.mrc"
    mrc.write(path, ball(), 6.0, origin=(100.0, 0.0, 0.0))
    return path


def test_a_template_of_a_map(capsys: Any, map_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.mrc"
    code, said = weft(
        capsys, "template", "create", "--map", map_file, "--voxel-size", 8.4, "--box", 30, "--low-pass", 30,
        "--output", out,
    )  # fmt: skip
    assert code == 0
    assert said.startswith(f"{out}: 30 × 30 × 30 voxels of 8.4 Å, light on dark, particle diameter ")
    assert 100 < float(said.split("diameter ")[1].split(" ")[0]) < 130
    assert len(said.splitlines()) == 1
    with mrcfile.open(out, permissive=False) as file:
        assert file.data.shape == (30, 30, 30)
        assert file.data.dtype == np.float32
        assert float(file.voxel_size.x) == pytest.approx(8.4)
        assert file.header.origin.tolist() == (0.0, 0.0, 0.0)
        assert file.is_volume()
        assert np.unravel_index(file.data.argmax(), file.data.shape) == (15, 15, 15)
        light = np.array(file.data)
    base = ["template", "create", "--map", map_file, "--voxel-size", 8.4, "--box", 30, "--low-pass", 30]
    assert weft(capsys, *base, "--invert", "-o", out)[0] == 0
    assert np.array_equal(mrcfile.read(out), -light)


def test_orders_of_axes_are_undone(capsys: Any, tmp_path: Path) -> None:
    data = ball(place=(20, 24, 14))
    path, out = tmp_path / "axes.mrc", tmp_path / "t.mrc"
    with mrcfile.new(path) as file:
        # columns are z, rows are x, sections are y
        file.set_data(np.ascontiguousarray(data.transpose(1, 2, 0)))
        file.header.mapc, file.header.mapr, file.header.maps = 3, 1, 2
        file.voxel_size = 6.0
    made = ["template", "create", "--map", path, "--voxel-size", 6, "--box", 40, "--no-normalise", "-o", out]
    code, said = weft(capsys, *made)
    assert code == 0
    assert "--center moves it there" in said
    assert np.abs(mrcfile.read(out) - data).max() < 1e-4
    assert weft(capsys, *made, "--center", "--mirror")[0] == 0
    assert np.abs(mrcfile.read(out) - ball()).max() < 0.02


def test_a_template_of_a_model(capsys: Any, tmp_path: Path) -> None:
    model, out = tmp_path / "carbons.pdb", tmp_path / "t.mrc"
    places = 12.0 * np.random.default_rng(4).normal(size=(300, 3)) + 50.0
    model.write_text(
        "".join(
            f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C  \n"
            for i, (x, y, z) in enumerate(places, 1)
        )
        + "END\n"
    )
    base = ["template", "create", "--model", model, "--voxel-size", 4, "--box", 32, "-o", out]
    code, said = weft(capsys, *base, "--low-pass", 10)
    assert code == 0
    assert "light on dark" in said
    assert "300 atoms; the centre of the box is at (5" in said or "(49" in said
    with_water = mrcfile.read(out)
    assert weft(capsys, *base, "--low-pass", 10, "--solvent", 0)[0] == 0
    assert np.abs(mrcfile.read(out) - with_water).max() > 0.01
    assert weft(capsys, *base, "--assembly", 3)[1].endswith("it has no assembly '3'; it describes none\n")
    assert weft(capsys, *base, "--input-voxel-size", 3)[0] == 2


def test_the_mask_of_the_published_constant(capsys: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.mrc"
    base = ["mask", "create", "--box", 60, "--voxel-size", 10, "--radius", 14, "--soft", 1, "--output", out]
    code, said = weft(capsys, *base, "--centre", "box")
    assert code == 0
    assert "sum 13,849.44 voxels" in said
    with mrcfile.open(out, permissive=False) as file:
        assert float(file.voxel_size.x) == pytest.approx(10.0)
        assert float(file.data.sum(dtype=np.float64)) == pytest.approx(13849.44, abs=0.01)
    assert weft(capsys, *base)[0] == 0
    assert float(mrcfile.read(out)[30, 30, 44]) == 1.0


def test_the_mask_of_a_map(capsys: Any, map_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.mrc"
    assert weft(capsys, "mask", "create", "--map", map_file, "--threshold", 0.5, "-o", out)[0] == 0
    assert np.array_equal(mrcfile.read(out), ball() >= 0.5)
    code, _ = weft(
        capsys, "mask", "create", "--map", map_file, "--extend", 12, "--soft", 2, "--box", 24,
        "--voxel-size", 12, "-o", out,
    )  # fmt: skip
    assert code == 0
    with mrcfile.open(out) as file:
        assert file.data.shape == (24, 24, 24)
        assert float(file.voxel_size.x) == pytest.approx(12.0)
        # a ball of 9 voxels of 6 Å and one voxel of 12 Å more
        assert float((file.data == 1).sum()) == pytest.approx(4 / 3 * np.pi * 5.5**3, rel=0.25)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["template", "create", "-o", "t.mrc"], 2, "give one of --map FILE, --emdb N and --model FILE"),
        (
            ["template", "create", "--map", "MAP", "--box", 20, "-o", "t.mrc"],
            2,
            "--voxel-size (Å) is missing",
        ),
        (
            [
                "template",
                "create",
                "--map",
                "MAP",
                "--voxel-size",
                8,
                "--box",
                20,
                "--low-pass",
                9,
                "-o",
                "t.mrc",
            ],
            2,
            "a low-pass of 9 Å is finer than voxels of 8 Å can show (16 Å)",
        ),
        (
            ["template", "create", "--map", "MAP", "--voxel-size", 8, "--box", 8, "-o", "t.mrc"],
            2,
            "ball.mrc: a box of 8 voxels of 8 Å cuts away",
        ),
        (
            ["template", "create", "--map", "no.mrc", "--voxel-size", 8, "--box", 8, "-o", "t.mrc"],
            2,
            "no such",
        ),
        (
            [
                "template",
                "create",
                "--map",
                "MAP",
                "--solvent",
                0,
                "--voxel-size",
                8,
                "--box",
                8,
                "-o",
                "t.mrc",
            ],
            2,
            "--solvent is for --model",
        ),
        (["mask", "create", "--box", 30, "--radius", 5, "-o", "m.mrc"], 2, "--voxel-size"),
        (
            ["mask", "create", "--box", 30, "--voxel-size", 5, "-o", "m.mrc"],
            2,
            "a mask needs a radius, or a map",
        ),
        (["mask", "create", "--map", "MAP", "--radius", 5, "-o", "m.mrc"], 2, "either --radius or --map"),
        (
            ["mask", "create", "--box", 30, "--voxel-size", 5, "--radius", 5, "--extend", 5, "-o", "m.mrc"],
            2,
            "--extend is for a mask from a map",
        ),
        (
            ["mask", "create", "--box", 30, "--voxel-size", 5, "--radius", 16, "-o", "m.mrc"],
            2,
            "does not fit",
        ),
    ],
)
def test_wrong_requests_are_one_sentence(
    capsys: Any, map_file: Path, tmp_path: Path, monkeypatch: Any, arguments: list[Any], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, text = weft(capsys, *[map_file if a == "MAP" else a for a in arguments])
    assert found == code
    assert said in text
    assert len(text.splitlines()) == 1
    assert not list(tmp_path.glob("[tm].mrc"))


@pytest.mark.parametrize("kind", ["flat", "bricks", "unknown", "oblong", "holes"])
def test_maps_that_cannot_be_used(capsys: Any, tmp_path: Path, kind: str) -> None:
    path, data, size = tmp_path / "bad.mrc", ball(), (6.0, 6.0, 6.0)
    if kind == "oblong":
        data = data[:30]
    elif kind == "holes":
        data[3, 4, 5] = np.nan
    elif kind == "flat":
        data[:] = 1.0
    elif kind == "bricks":
        size = (6.0, 6.0, 9.0)
    mrc.write(path, data, size)
    if kind == "unknown":
        with mrcfile.open(path, "r+") as file:
            file.voxel_size = 0.0
    expected = {
        "flat": "the same everywhere",
        "bricks": "6 × 6 × 9 Å",
        "unknown": "give it with --input-voxel-size",
        "oblong": "not a cube, it has 30 × 40 × 40",
        "holes": "1 of the map's 64000 voxels are not finite",
    }
    base = ["template", "create", "--map", path, "--voxel-size", 8, "--box", 30, "-o", tmp_path / "t.mrc"]
    code, said = weft(capsys, *base)
    assert code == 1
    assert str(path) in said
    assert expected[kind] in said
    assert len(said.splitlines()) == 1
    if kind == "unknown":
        assert weft(capsys, *base, "--input-voxel-size", 6)[0] == 0


# EMDB ------------------------------------------------------------------------------------------------


@pytest.fixture
def bank(map_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that has EMD-7, breaks off EMD-8, has a page for EMD-9, no more; what it was asked."""
    asked: list[str] = []
    packed = gzip.compress(map_file.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            number = int(self.path.split("_")[-1].split(".")[0])
            body = {7: packed, 8: packed[:-100], 9: b"<html>"}.get(number, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(packed) if number == 8 else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(emdb, "SERVER", f"http://127.0.0.1:{server.server_port}/structures")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_entries_of_the_emdb_are_downloaded_once(capsys: Any, bank: list[str], tmp_path: Path) -> None:
    out = tmp_path / "t.mrc"
    base = ["template", "create", "--voxel-size", 8, "--box", 30, "-o", out]
    for _ in range(2):
        assert weft(capsys, *base, "--emdb", 7)[0] == 0
    assert bank == ["/structures/EMD-7/map/emd_7.map.gz"]
    assert (tmp_path / "cache/weft/emd_7.map.gz").exists()
    assert mrcfile.read(out).shape == (30, 30, 30)
    for number, expected in (
        (5, "the EMDB has no map at"),
        (8, "the connection ended after"),
        (9, "what came is no map"),
    ):
        code, said = weft(capsys, *base, "--emdb", number)
        assert code == 2
        assert expected in said
        assert f"/structures/EMD-{number}/map/emd_{number}.map.gz" in said
        assert len(said.splitlines()) == 1
    assert [path.name for path in (tmp_path / "cache/weft").iterdir()] == ["emd_7.map.gz"]


def test_without_a_network_the_address_is_told(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(emdb, "SERVER", "http://127.0.0.1:9/structures")  # nobody listens there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    base = ["template", "create", "--voxel-size", 8, "--box", 30, "-o", tmp_path / "t.mrc"]
    code, said = weft(capsys, *base, "--emdb", 3883)
    assert code == 2
    assert "download http://127.0.0.1:9/structures/EMD-3883/map/emd_3883.map.gz by hand" in said
    assert "--map" in said
