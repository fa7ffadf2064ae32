"""A series whose hand nobody has chosen: `weft match --both-hands` says it before the truth is read."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# minutes of simulation, processing and search on an idle core
pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def unknown_hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark, of which this is one draw."""
    pytest.importorskip("psutil")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("unknown_hand")
    for name in ("unknown_hand", "measuring"):
        sys.modules.pop(name, None)


def test_the_verdict_is_right(unknown_hand: ModuleType, tmp_path: Path) -> None:
    unknown_hand.draw(tmp_path, unknown_hand.SIMULATED)
    verdict = unknown_hand.judge(tmp_path, unknown_hand.SIMULATED)
    assert verdict["p"] < 0.01
    assert verdict["hand"] == unknown_hand.true_hand(tmp_path)
