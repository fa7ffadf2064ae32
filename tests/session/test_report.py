"""The report: one file that needs nothing else, says what is so, and believes no file name."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pytest

from weft.cli import main
from weft.session.empiar import image_sets, images_of
from weft.session.figures import astigmatism_figure, metric_figure, ticks
from weft.session.records import FileIdentity, Record, StepError, StepRecord
from weft.session.report import gather, make_report
from weft.session.selection import Selection
from weft.session.session import Session

NASTY = "<script>alert(1)<\"'&"
#: Elements that have no end.
_VOID = {"meta", "img", "br", "link"}


class _Page(HTMLParser):
    """What a page holds, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def _write(session: Session, name: str, minute: float, **metrics: Any) -> Record:
    """A record as if the item had been processed, with its pictures."""
    rng = np.random.default_rng(int(minute))
    outputs = {"average": f"average/{name}.mrc"}
    for kind, folder in (("thumbnail", "thumbnails"), ("powerspectrum", "powerspectrum")):
        outputs[kind] = f"{folder}/{name}.png"
        (session.root / folder).mkdir(exist_ok=True)
        picture = rng.integers(0, 255, (64, 64), dtype=np.uint8)
        (session.root / outputs[kind]).write_bytes(bytes(imagecodecs.png_encode(picture)))
    used = {"pixel_size": 1.5, "dose_per_frame": 4.0, "skip_first": 1, "skip_last": 0, "eer_upsampling": 1}
    facts = {"format": "tiff", "shape": [320, 300], "stored_frames": 5, "type": "uint8"}
    values = {"pixel_size": 3.0, "frames": 4, **metrics}
    identity = FileIdentity(f"/data/Square_{int(minute) % 2}/{name}.tif", 1, int(1.7e18 + minute * 6e10), "c")
    record = Record(name, "movie", identity).with_step(
        "motion", StepRecord("done", "f", {"input": used}, {"metrics": values, "movie": facts}, outputs), 2.5
    )
    (session.root / "records").mkdir(exist_ok=True)
    session.store.write(record)
    return record


@pytest.fixture
def session(new_session: Callable[..., Session]) -> Session:
    """Twelve items that are measured, one with a nasty name, one that failed, and three movies to come."""
    session = new_session()
    for i in range(12):
        name = NASTY if i == 3 else f"m{i:02d}"
        angle = 15.0 * i
        _write(
            session,
            name,
            5.0 * i,
            defocus=10000.0 + 100 * i,
            astigmatism=300.0 + i,
            astigmatism_angle=angle,
            resolution=3.0 + i,
            motion_total=20.0,
        )
    record = Record("bad", "movie", FileIdentity("/data/bad.tif", 1, int(1.7e18 + 3e12), "c"))
    error = StepError("TruncatedError", f"{NASTY}: 3 of 5 frames", item_fault=True)
    session.store.write(record.with_step("motion", StepRecord("failed", "f", error=error)))
    return session


def _current(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the made-up records count as done."""
    from weft.session.plan import StepState

    def states(expectations: object, record: Record, *rest: object) -> dict[str, StepState]:
        return {
            name: StepState(step.status, step.error.message if step.error else "")
            for name, step in record.steps.items()
        }

    monkeypatch.setattr("weft.session.report.states_under", states)


def test_numbers(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    _current(session, monkeypatch)
    selection = Selection().with_range("resolution", None, 8.0).decide("m11", True).decide("m00", False)
    selection.save(session.root)
    report = gather(session)
    # the movies that were found were simulated now, years after those of the records
    report.rows[:] = [row for row in report.rows if row.state != "new"]
    numbers = report.numbers()
    assert numbers == {
        "movies": 13,
        "done": 12,
        "failed": 1,
        "stale": 0,
        "new": 0,
        "selected": 6,
        "excluded": 1,
        "hours": pytest.approx(55 / 60, abs=0.001),
        "movies_per_hour": pytest.approx(12 / (55 / 60), abs=0.1),
        "seconds_per_movie": 2.5,
    }
    assert [row.name for row in report.rows][:4] == ["m00", "m01", "m02", NASTY]
    assert report.judgement.counts["resolution"].only == 5


def test_the_page_needs_nothing_and_runs_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    _current(session, monkeypatch)
    selection = Selection().with_range("resolution", None, 8.0)
    selection.decide(NASTY, True).decide("m01", False).save(session.root)
    path, _ = make_report(session)
    assert path == session.root / "reports" / "report.html"
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "xlink:href", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), tag
    assert "url(" not in re.sub(r"url\(#a\)", "", text)
    assert "@import" not in text
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    # the nasty name is shown, as text
    assert NASTY in page.text
    assert "<script" not in text

    pictures = [a["src"] or "" for t, a in page.tags if t == "img"]
    # the five that are selected and the six worst of the others, each with its spectrum
    assert len(pictures) == 22
    decoded = imagecodecs.jpeg8_decode(base64.b64decode(pictures[0].partition(",")[2]))
    assert decoded.shape == (64, 64)
    for words in (
        "Metrics over time",
        "Resolution",
        "at most 8 Å",
        "left out by this alone",
        "Excluded (1):",
        "3 of 5 frames",
        "range_max",
        "numpy",
        '"num_images_or_tilt_series": 12',
    ):
        assert words in page.text, words
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
    # one dot for each measured item
    resolution = next(s for s in re.findall(r"<svg.*?</svg>", text) if "Resolution over time" in s)
    assert resolution.count("h0") == 12


def test_best_and_worst_are_in_order(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    _current(session, monkeypatch)
    text = make_report(session)[0].read_text(encoding="utf-8")
    shown = re.findall(r"<figcaption><b>(.*?)</b>", text)
    assert shown[0] == "m00"
    assert shown[6:9] == ["m11", "m10", "m09"]
    # a picture that is gone is left out, not the page
    (session.root / "thumbnails" / "m00.png").unlink()
    (session.root / "powerspectrum" / "m00.png").write_bytes(b"no picture")
    again = make_report(session)[0].read_text(encoding="utf-8")
    assert again.count("<img") == text.count("<img") - 2


def test_an_empty_session_has_a_report(new_session: Callable[..., Session]) -> None:
    session = new_session()
    path, report = make_report(session)
    page = _Page(path.read_text(encoding="utf-8"))
    assert "Nothing is measured yet." in page.text
    numbers = report.numbers()
    assert (numbers["movies"], numbers["new"], numbers["done"]) == (3, 3, 0)
    assert report.imagesets == []


def test_the_command(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out" / "my session.html"
    assert main(["report", str(session.root), "--output", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    assert main(["report", str(session.root), "-o", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(file)
    assert said["failed"] == {"bad": f"{NASTY}: 3 of 5 frames"} or said["numbers"]["stale"] > 0
    beside = json.loads(Path(said["empiar"]).read_text(encoding="utf-8"))
    assert said["empiar"] == str(tmp_path / "out" / "my session.empiar.json")
    assert beside["imagesets"] == said["imagesets"]
    assert main(["report", str(tmp_path)]) == 2


# ---------------------------------------------------------------- EMPIAR


#: Of https://empiar.org/empiar_deposition.schema.json: what an image set must have, its types and patterns.
_CODE = r"^(\('T([2-9]|10?)', ''\))|\('OT', '[A-Z0-9 ]+'\)$"
_REQUIRED = {
    "name": str,
    "directory": str,
    "category": str,
    "header_format": str,
    "data_format": str,
    "num_images_or_tilt_series": int,
    "frames_per_image": int,
    "voxel_type": str,
}
_OPTIONAL = {
    "frame_range_min": int,
    "frame_range_max": int,
    "pixel_width": float,
    "pixel_height": float,
    "details": str,
    "image_width": int,
    "image_height": int,
}


def test_image_sets_are_what_the_deposition_asks_for(session: Session) -> None:
    records = session.store.read_all().values()
    assert images_of(next(r for r in records if r.item == "bad")) is None
    found = image_sets([i for i in map(images_of, records) if i is not None], "x" * 300)
    for one in found:
        assert set(one) == set(_REQUIRED) | set(_OPTIONAL)
        for name, kind in (_REQUIRED | _OPTIONAL).items():
            assert isinstance(one[name], kind) or (name in _OPTIONAL and one[name] is None), name
        for name in ("category", "header_format", "data_format", "voxel_type"):
            assert re.search(_CODE, one[name]), one[name]
        assert len(one["name"]) <= 200
        assert len(one["directory"]) <= 200
    movies, averages = found
    assert movies["category"] == "('T2', '')"  # micrographs - multiframe
    assert movies["data_format"] == "('T3', '')"  # TIFF
    assert movies["voxel_type"] == "('T1', '')"  # unsigned byte
    # two grid squares, one set
    assert movies["directory"] == "data/data"
    assert (movies["num_images_or_tilt_series"], movies["frames_per_image"]) == (12, 5)
    assert (movies["frame_range_min"], movies["frame_range_max"]) == (2, 5)
    assert (movies["image_width"], movies["image_height"], movies["pixel_width"]) == (300, 320, 1.5)
    assert averages["category"] == "('T1', '')"  # micrographs - single frame
    assert averages["data_format"] == "('T1', '')"  # MRC
    assert averages["voxel_type"] == "('T7', '')"  # 32 bit float
    assert (averages["image_width"], averages["image_height"], averages["pixel_width"]) == (150, 160, 3.0)


def test_eer_and_unknown_types(session: Session) -> None:
    record = _write(session, "eer", 1.0)
    motion = record.steps["motion"]
    facts = {"format": "eer", "shape": [8192, 8192], "stored_frames": 1200}
    used = {"input": {**motion.settings["input"], "eer_upsampling": 2, "pixel_size": 0.5}}
    eer = StepRecord("done", "f", used, {**motion.results, "movie": facts}, motion.outputs)
    images = images_of(record.with_step("motion", eer))
    assert images is not None
    movies, _ = image_sets([images], "s")
    assert movies["data_format"] == "('T9', '')"
    # as the camera has it, not as it was counted
    assert (movies["image_width"], movies["pixel_width"], movies["frames_per_image"]) == (4096, 1.0, 1200)
    odd = {"format": "raw", "shape": [10, 10], "stored_frames": 1, "type": "float16"}
    raw = StepRecord("done", "f", motion.settings, {**motion.results, "movie": odd}, motion.outputs)
    images = images_of(record.with_step("motion", raw))
    assert images is not None
    movies, _ = image_sets([images], "s")
    assert movies["data_format"] == "('OT', 'RAW')"
    assert movies["voxel_type"] == "('OT', 'FLOAT16')"
    assert movies["category"] == "('T1', '')"


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.21, [0.14, 0.16, 0.18, 0.2]),
        (-1.0, 1.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (3.0, 3.0, [3.0]),
        (9990.0, 10120.0, [10000, 10050, 10100]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_figures_of_odd_data_are_drawn() -> None:
    """One point, equal points, wild ones, limits far away: always finite numbers within the picture."""
    rng = np.random.default_rng(0)
    cases = [
        (np.array([0.0]), np.array([5.0]), (None, None)),
        (np.zeros(5), np.full(5, 0.0), (1.0, None)),
        (np.arange(50.0), np.where(np.arange(50) == 7, 1e9, rng.normal(0, 1, 50)), (-1.0, 1e6)),
        (np.arange(3.0), np.array([1.0, np.nan, -1.0]), (None, 0.0)),
    ]
    for times, values, bounds in cases:
        drawing = metric_figure(times, values, np.ones(len(times), bool), "a < b", "Å", bounds)
        root = ElementTree.fromstring(drawing)
        width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
        for path in root.iter("path"):
            for x, y in re.findall(r"M(\S+) (\S+?)h0", path.attrib["d"]):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
        assert "nan" not in drawing
        assert "inf" not in drawing
    for vectors in (np.zeros((1, 2)), rng.normal(0, 0.1, (40, 2)), np.array([[np.nan, 1.0], [0.1, 0.1]])):
        drawing = astigmatism_figure(vectors, np.ones(len(vectors), bool), np.zeros(2), 0.02, (0.1, None))
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
