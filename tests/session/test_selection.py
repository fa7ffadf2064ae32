"""Ranges, and decisions by hand that overrule them."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.errors import SessionError
from weft.session.records import FileIdentity, Record, StepRecord
from weft.session.selection import Selection, parse_range


def _record(item: str, **metrics: float) -> Record:
    record = Record(item, "movie", FileIdentity("/x", 1, 1, "c"))
    return record.with_step("ctf", StepRecord("done", "f", results={"metrics": metrics}))


GOOD = _record("good", defocus=15000.0, resolution=4.0, motion_total=10.0)
BAD = _record("bad", defocus=60000.0, resolution=9.0, motion_total=10.0)
UNKNOWN = _record("unknown")


def test_ranges_are_in_the_units_of_screens_and_give_every_reason() -> None:
    selection = Selection().with_range("defocus", 0.5, 5.0).with_range("resolution", None, 8.0)
    assert selection.verdict(GOOD).selected
    verdict = selection.verdict(BAD)
    assert not verdict.selected
    assert verdict.reasons == ("defocus 6 µm > 5", "resolution 9 Å > 8")
    assert selection.verdict(UNKNOWN).reasons == ("defocus not measured", "resolution not measured")


def test_a_decision_by_hand_overrules_and_can_be_taken_back() -> None:
    selection = Selection().with_range("defocus", 0.5, 5.0)
    by_hand = selection.decide("bad", True).decide("good", False)
    assert by_hand.verdict(BAD).selected
    assert not by_hand.verdict(GOOD).selected
    changed = by_hand.decide("bad", False)
    assert changed.include == frozenset()
    assert changed.exclude == {"bad", "good"}
    assert by_hand.decide("bad", None).decide("good", None) == selection


def test_a_range_without_limits_is_removed() -> None:
    selection = Selection().with_range("defocus", 0.5, 5.0).with_range("defocus", None, None)
    assert selection == Selection()
    assert selection.verdict(BAD).selected


def test_it_survives_the_disk(tmp_path: Path) -> None:
    assert Selection.load(tmp_path) == Selection()
    selection = Selection().with_range("motion", None, 50.0).decide("ä b", False)
    selection.save(tmp_path)
    assert Selection.load(tmp_path) == selection
    (tmp_path / "selection.json").write_text("{}")
    with pytest.raises(SessionError, match="is not a selection"):
        Selection.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "bounds"), [("0.3:5", (0.3, 5.0)), (":8", (None, 8.0)), ("2:", (2.0, None)), (":", (None, None))]
)
def test_ranges_as_people_write_them(text: str, bounds: tuple[float | None, float | None]) -> None:
    assert parse_range(text) == bounds


@pytest.mark.parametrize("text", ["5", "a:b", "5:3", ""])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(SessionError):
        parse_range(text)
    with pytest.raises(SessionError, match="cannot be filtered by; there are defocus"):
        Selection().with_range("colour", 1, 2)
