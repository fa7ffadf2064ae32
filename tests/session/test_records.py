"""Records: what identifies an input, what survives a round trip, what a fingerprint depends on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.errors import FormatError, SessionError
from weft.session.records import FileIdentity, Record, RecordStore, StepError, StepRecord, fingerprint
from weft.session.step import plain_values


def test_a_touched_or_copied_file_is_the_same_and_a_changed_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(os.urandom(3_000_000))
    before = FileIdentity.of(path)
    os.utime(path, (1, 1))
    assert before.refreshed().content == before.content
    copy = tmp_path / "b"
    copy.write_bytes(path.read_bytes())
    assert FileIdentity.of(copy).content == before.content
    for at in (0, 2_999_999):  # header, and the last frame
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        copy.write_bytes(data)
        assert FileIdentity.of(copy).content != before.content
    copy.write_bytes(path.read_bytes() + b"x")
    assert FileIdentity.of(copy).content != before.content


def test_a_file_that_went_away_stays_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    before = FileIdentity.of(path)
    path.unlink()
    assert before.refreshed() == before


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.folder.mkdir()
    error = StepError.of(FormatError("f.tif", "is bad"))
    record = Record("ä b", "movie", FileIdentity("/x/f.tif", 3, 4, "c"))
    record = record.with_step(
        "motion", StepRecord("done", "f1", {"a": {"b": 1}}, {"metrics": {"m": 2.5}}), 1.23
    )
    record = record.with_step("ctf", StepRecord("failed", "f2", error=error))
    store.write(record)
    assert store.read("ä b") == record
    assert store.names() == ["ä b"]
    assert record.metrics == {"m": 2.5}
    assert error.item_fault
    assert "f.tif: is bad" in error.message


def test_errors_that_are_not_the_items_fault_are_tried_again() -> None:
    assert not StepError.of(OSError(28, "No space left on device")).item_fault
    assert not StepError.of(MemoryError()).item_fault
    assert StepError.of(MemoryError()).message == "MemoryError"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 99, "item": "a"}'])
def test_a_broken_record_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    store = RecordStore(tmp_path)
    store.folder.mkdir()
    store.path("a").write_text(text)
    with pytest.raises(SessionError, match=r"a\.json is not a readable record.*delete it"):
        store.read("a")


def test_a_fingerprint_ignores_order_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": 1.0}) != fingerprint({"a": 1.0000000001})


def test_results_become_plain() -> None:
    given = {
        "n": np.float32(1.5),
        "t": torch.tensor([1, 2]),
        "bad": float("nan"),
        "deep": [np.inf, {"x": np.int64(3), "flag": np.bool_(True)}],
        "path": Path("/a"),
    }
    assert plain_values(given) == {
        "n": 1.5,
        "t": [1, 2],
        "bad": None,
        "deep": [None, {"x": 3, "flag": True}],
        "path": "/a",
    }
