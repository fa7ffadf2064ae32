"""Ranges, and decisions by hand that overrule them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.cli import main
from weft.errors import SessionError
from weft.session.selection import (
    QUANTITIES,
    Selection,
    astigmatism_vectors,
    parse_range,
    shown_values,
    vector_spread,
)
from weft.session.session import Session

ITEMS: Mapping[str, Mapping[str, Any]] = {
    "good": {"defocus": 15000.0, "resolution": 4.0, "motion_total": 10.0},
    "bad": {"defocus": 60000.0, "resolution": 9.0, "motion_total": 10.0},
    "half": {"motion_total": 10.0, "defocus": None},
    "new": {},
}


def test_ranges_are_in_the_units_of_screens_and_give_every_reason() -> None:
    selection = Selection().with_range("defocus", 0.5, 5.0).with_range("resolution", None, 8.0)
    verdicts = selection.judge(ITEMS)
    assert list(verdicts) == list(ITEMS)
    assert verdicts["good"].selected
    assert verdicts["good"].reasons == ()
    assert not verdicts["bad"].selected
    assert verdicts["bad"].reasons == ("defocus 6 µm > 5", "resolution 9 Å > 8")
    assert verdicts["half"].reasons == ("defocus not measured", "resolution not measured")
    # nothing is known of it, which is one reason and not one for each range
    assert not verdicts["new"].selected
    assert verdicts["new"].reasons == ("not measured",)


def test_limits_belong_to_the_range() -> None:
    items = {"a": {"resolution": 4.0}, "b": {"resolution": 8.0}, "c": {"resolution": 8.001}}
    verdicts = Selection().with_range("resolution", 4.0, 8.0).judge(items)
    assert [v.selected for v in verdicts.values()] == [True, True, False]


def test_a_decision_by_hand_overrules_and_can_be_taken_back() -> None:
    selection = Selection().with_range("defocus", 0.5, 5.0)
    by_hand = selection.decide("bad", True).decide("good", False)
    assert by_hand.judge(ITEMS)["bad"].selected
    assert by_hand.judge(ITEMS)["bad"].reasons == ("included by hand",)
    assert by_hand.judge(ITEMS)["good"].reasons == ("excluded by hand",)
    assert (by_hand.manual("bad"), by_hand.manual("good"), by_hand.manual("new")) == (True, False, None)
    changed = by_hand.decide("bad", False)
    assert changed.include == frozenset()
    assert changed.exclude == {"bad", "good"}
    assert by_hand.decide_all(["bad", "good"], None) == selection
    # the ranges are another fact, and stay
    assert by_hand.ranges == selection.ranges
    assert set(by_hand.decide("gone", False).judge(ITEMS)) == set(ITEMS)


def test_a_range_without_limits_is_removed() -> None:
    selection = Selection().with_range("defocus", 0.5, 5.0).with_range("defocus", None, None)
    assert selection == Selection()
    assert selection.judge(ITEMS)["bad"].selected


def test_counts_of_each_filter() -> None:
    items = {
        "none": {"defocus": 10000.0, "resolution": 3.0},
        "defocus": {"defocus": 60000.0, "resolution": 3.0},
        "resolution": {"defocus": 10000.0, "resolution": 9.0},
        "both": {"defocus": 60000.0, "resolution": 9.0},
        "unknown": {"defocus": 10000.0},
        "by hand": {"defocus": 60000.0, "resolution": 3.0},
        "new": {},
    }
    selection = Selection().with_range("defocus", None, 5.0).with_range("resolution", None, 5.0)
    selection = selection.decide("by hand", True)
    counts = selection.counts(items)
    # "by hand" is taken whatever the filter says, so the filter alone does not leave it out
    assert vars(counts["defocus"]) == {"passes": 3, "rejects": 3, "unmeasured": 0, "only": 1}
    assert vars(counts["resolution"]) == {"passes": 3, "rejects": 2, "unmeasured": 1, "only": 2}
    judgement = selection.judgement(items)
    assert judgement.measured == 6
    assert judgement.counts == counts
    assert judgement.verdicts == selection.judge(items)
    assert Selection().counts(items) == {}
    assert vars(selection.counts({"new": {}})["defocus"]) == {
        "passes": 0,
        "rejects": 0,
        "unmeasured": 0,
        "only": 0,
    }


def test_what_only_means_is_what_removing_the_range_would_add() -> None:
    """`only` by its definition, on random items."""
    items = _many(400)
    selection = _ranges().decide_all([f"m{i}" for i in range(0, 400, 7)], False)
    chosen = sum(v.selected for v in selection.judge(items).values())
    for name, count in selection.counts(items).items():
        without = selection.with_range(name, None, None)
        assert sum(v.selected for v in without.judge(items).values()) == chosen + count.only
        alone = Selection().with_range(name, *selection.ranges[name])
        assert sum(v.selected for v in alone.judge(items).values()) == count.passes


def _many(count: int) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(3)
    return {
        f"m{i}": {
            "defocus": rng.normal(15000, 4000),
            "astigmatism": abs(rng.normal(300, 100)),
            "astigmatism_angle": rng.uniform(-90, 90),
            "phase_shift": 0.0,
            "resolution": rng.lognormal(1.4, 0.3) if i % 50 else None,
            "ctf_score": rng.uniform(0.3, 0.9),
            "ctf_evidence": rng.uniform(0, 400),
            "tilt": rng.uniform(0, 5),
            "ice_ring": rng.uniform(0, 1),
            "motion_total": rng.lognormal(3, 0.5),
            "motion_early": rng.lognormal(2, 0.5),
            "frames": 40,
        }
        for i in range(count)
    }


def _ranges() -> Selection:
    selection = Selection()
    for name, low, high in (
        ("defocus", 0.5, 2.2),
        ("astigmatism", None, 0.045),
        ("astigmatism_sigma", None, 2.0),
        ("resolution", None, 6.0),
        ("score", 0.4, None),
        ("evidence", 25.0, None),
        ("tilt", None, 4.0),
        ("ice", None, 0.8),
        ("motion", None, 60.0),
        ("early_motion", None, 20.0),
    ):
        selection = selection.with_range(name, low, high)
    return selection


def test_ten_thousand_items_cost_little_more_than_looking_at_them() -> None:
    """25 ms on an idle core for ten ranges; the page asks with every move of a slider.

    Measured against reading the same numbers out of the same dictionaries, in the same run.
    """
    items, selection = _many(10_000), _ranges()
    metrics = [QUANTITIES[name].metric for name in selection.ranges]

    def seconds(work: Callable[[], object]) -> float:
        best = math.inf
        for _ in range(3):
            begin = time.process_time()
            work()
            best = min(best, time.process_time() - begin)
        return best

    looking = seconds(lambda: [[row.get(metric) for row in items.values()] for metric in metrics])
    assert seconds(lambda: selection.judge(items)) < 15 * looking


# ---------------------------------------------------------------- astigmatism among all


def _astigmatic(vectors: np.ndarray[Any, Any]) -> dict[str, dict[str, float]]:
    """Items with these astigmatism vectors, µm."""
    return {
        f"m{i}": {
            "astigmatism": 1e4 * float(np.hypot(x, y)),
            "astigmatism_angle": float(np.rad2deg(0.5 * np.arctan2(y, x))),
        }
        for i, (x, y) in enumerate(vectors)
    }


def test_astigmatism_is_compared_as_a_vector_with_twice_the_angle() -> None:
    rng = np.random.default_rng(1)
    cloud = rng.normal((0.05, 0.02), 0.01, (400, 2))
    items = _astigmatic(cloud)
    np.testing.assert_allclose(astigmatism_vectors(items), cloud, atol=1e-9)
    # Warp's: the mean, and the root of the mean squared distance from it
    mean = cloud.mean(0)
    deviation = np.sqrt(((cloud - mean) ** 2).sum(1).mean())
    found_mean, found_deviation = vector_spread(cloud)
    np.testing.assert_allclose(found_mean, mean, atol=0.001)
    # the median's own error is 5 % for 400 items
    assert found_deviation == pytest.approx(deviation, rel=0.12)
    sigma = shown_values(items, "astigmatism_sigma")
    expected = np.linalg.norm(cloud - found_mean, axis=1) / found_deviation
    np.testing.assert_allclose(sigma, expected, rtol=1e-6)
    # the same size in the other direction is far away, however small it is in µm
    items["turned"] = {"astigmatism": 540.0, "astigmatism_angle": 100.0}
    verdicts = Selection().with_range("astigmatism_sigma", None, 4.0).judge(items)
    assert not verdicts["turned"].selected
    assert "astigmatism_sigma" in verdicts["turned"].reasons[0]
    assert sum(v.selected for v in verdicts.values()) == 400
    # 89° and −89° are almost the same direction
    near = {"a": {"astigmatism": 500.0, "astigmatism_angle": 89.0}}
    near |= {"b": {"astigmatism": 500.0, "astigmatism_angle": -89.0}}
    assert np.ptp(astigmatism_vectors(near), axis=0).max() < 0.01


def test_outliers_do_not_widen_the_scale_by_which_they_are_judged() -> None:
    rng = np.random.default_rng(2)
    clean = rng.normal((0.03, 0.0), 0.01, (80, 2))
    spoilt = np.concatenate([clean, rng.normal((1.0, -1.0), 0.1, (20, 2))])
    selection = Selection().with_range("astigmatism_sigma", None, 4.0)
    assert sum(v.selected for v in selection.judge(_astigmatic(spoilt)).values()) == 80
    assert sum(v.selected for v in selection.judge(_astigmatic(clean)).values()) == 80


def test_few_items_and_equal_ones() -> None:
    selection = Selection().with_range("astigmatism_sigma", None, 3.0)
    assert selection.among_all
    assert not Selection().with_range("astigmatism", None, 3.0).among_all
    one = _astigmatic(np.array([[0.1, 0.2]]))
    assert selection.judge(one)["m0"].selected
    same = _astigmatic(np.tile([[0.1, 0.2]], (5, 1)))
    assert all(v.selected for v in selection.judge(same).values())
    assert selection.judge({"a": {"motion_total": 1.0}})["a"].reasons == ("astigmatism_sigma not measured",)
    assert selection.judge({}) == {}


# ---------------------------------------------------------------- the file, the text, the command


def test_every_metric_that_is_filtered_by_is_one_that_something_writes() -> None:
    from weft.defocus.micrograph import CTFModel
    from weft.movies.motion import MotionModel

    ctf = CTFModel(np.zeros((1, 1)), (1.0, 1.0), 0.0, 0.0, 0.0, 3.0, (40.0, 3.0), 0.5)
    written = set(ctf.metrics()) | set(MotionModel(2, (1.0, 1.0), np.zeros((2, 2))).metrics())
    # of the motion step itself, of masks, of picking
    written |= {"contrast", "frames", "masked", "particles", "artefacts"}
    assert {quantity.metric for quantity in QUANTITIES.values()} <= written


def test_metrics_that_are_no_numbers_are_not_measured() -> None:
    items = {"a": {"resolution": "fine"}, "b": {"resolution": 3.0}, "c": {"resolution": math.nan}}
    verdicts = Selection().with_range("resolution", None, 5.0).judge(items)
    assert [v.selected for v in verdicts.values()] == [False, True, False]


def test_it_survives_the_disk(tmp_path: Path) -> None:
    assert Selection.load(tmp_path) == Selection()
    selection = Selection().with_range("motion", None, 50.0).decide("ä b", False)
    selection.save(tmp_path)
    assert Selection.load(tmp_path) == selection


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"ranges": {"colour": [1, 2]}, "include": [], "exclude": []}',
        '{"ranges": {"motion": [1]}, "include": [], "exclude": []}',
        '{"ranges": {"motion": ["a", null]}, "include": [], "exclude": []}',
        '{"ranges": {"motion": [1, 2]}, "include": 5, "exclude": []}',
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "selection.json").write_text(text)
    with pytest.raises(SessionError, match=r"selection\.json is not a selection .*delete it"):
        Selection.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "bounds"), [("0.3:5", (0.3, 5.0)), (":8", (None, 8.0)), ("2:", (2.0, None)), (":", (None, None))]
)
def test_ranges_as_people_write_them(text: str, bounds: tuple[float | None, float | None]) -> None:
    assert parse_range(text) == bounds


@pytest.mark.parametrize("text", ["5", "a:b", "5:3", "", "nan:3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(SessionError):
        parse_range(text)
    with pytest.raises(SessionError, match="cannot be filtered by; there are defocus"):
        Selection().with_range("colour", 1, 2)


def _give(session: Session, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Records as if these items had been processed."""
    from weft.session.records import FileIdentity, Record, StepRecord

    (session.root / "records").mkdir(exist_ok=True)
    for name, values in metrics.items():
        used = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7, "amplitude": 0.1, "dose_per_frame": 1.0}
        outputs = {"average": f"average/{name}.mrc", "motion_star": f"average/{name}.star"}
        results = {"metrics": {"pixel_size": 1.0, **values}}
        record = Record(name, "movie", FileIdentity(f"/data/{name}.tif", 1, 1, "c"))
        record = record.with_step("motion", StepRecord("done", "f", {"input": used}, results, outputs))
        session.store.write(record)


def test_the_command_counts_and_speaks_properly(
    new_session: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    session = new_session()
    root = str(session.root)
    assert main(["select", root, "--resolution", ":5"]) == 0
    said = capsys.readouterr().out
    # nothing is left out by a range when nothing is known
    assert "resolution :5 Å: nothing is measured yet" in said
    assert f"weft run {root}" in said
    assert "left out" not in said

    _give(session, {"a": {"resolution": 3.0}, "b": {"resolution": 7.0}, "c": {"motion_total": 2.0}})
    assert main(["select", root, "--astigmatism-sigma", ":3", "--exclude", "a"]) == 0
    said = capsys.readouterr().out
    assert "resolution :5 Å: 1 passes, 1 lies outside, 1 not measured" in said
    assert "astigmatism_sigma :3 σ: not measured in any item, so none is selected" in said
    assert "1 item excluded by hand" in said
    assert "0 of 3 items selected" in said

    assert main(["select", root, "--astigmatism-sigma", ":", "--undecide", "a", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["selected"] == ["a"]
    assert report["left_out"]["b"] == ["resolution 7 Å > 5"]
    assert report["filters"]["resolution"] == {
        "range": [None, 5.0],
        "passes": 1,
        "rejects": 1,
        "unmeasured": 1,
        "only": 2,
    }
    star = (session.root / "micrographs_selected.star").read_text()
    assert "average/a.mrc" in star
    assert "average/b.mrc" not in star
    assert session.verdict("b").reasons == ("resolution 7 Å > 5",)


def test_the_table_of_selected_micrographs_knows_the_others(new_session: Callable[..., Session]) -> None:
    """A range that depends on all items is judged among all, not among those of the last run."""
    session = new_session()
    rng = np.random.default_rng(4)
    items = _astigmatic(np.concatenate([rng.normal(0.03, 0.005, (20, 2)), [[0.4, 0.0]]]))
    _give(session, items)
    verdicts = session.select(Selection().with_range("astigmatism_sigma", None, 4.0))
    assert [name for name, v in verdicts.items() if not v.selected] == ["m20"]
    star = (session.root / "micrographs_selected.star").read_text()
    assert "average/m20.mrc" not in star
    assert star.count("average/m") == 2 * 20
    assert not session.verdict("m20").selected
    assert session.verdict("m3").selected
    statuses = session.status()
    assert not statuses["m20"].verdict.selected
    assert statuses["m3"].verdict.selected
