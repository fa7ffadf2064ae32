"""Alerts: silent about ordinary scatter, loud about what matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from weft.session.alerts import Alert, AlertSettings, find_alerts
from weft.session.trends import change, median_error, rank_difference, slope


@dataclass(frozen=True)
class Item:
    """What alerts ask of a board's entry."""

    name: str
    mtime: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    state: str = "done"
    processed: float | None = None
    reason: str = ""
    source: str = "/data/a.tif"
    folder: str = "/data"


def _ordinary(count: int, seed: int = 0) -> list[Item]:
    """Items as a good session gives them: three defocus targets, long tails, 5 % bad, 5 % failed."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        bad = rng.random() < 0.05
        metrics = {
            "defocus": float(rng.choice([10000, 15000, 20000]) + rng.normal(0, 800)),
            "resolution": float(rng.lognormal(1.4, 0.35) * (3 if bad else 1)),
            "motion_total": float(rng.lognormal(3.0, 0.7)),
            "counts": float(rng.normal(1.0, 0.1) * (0.6 if bad else 1)),
            "gain_residual": float(rng.normal(0.0, 0.005)),
            "gain_residual_error": 0.005,
            "frames": 40,
        }
        failed = rng.random() < 0.05
        out.append(Item(f"m{i:04d}", float(i), {} if failed else metrics, "failed" if failed else "done"))
    return out


def _changed(items: list[Item], start: int, **how: Callable[[float], float]) -> list[Item]:
    """The same from `start` on with some metrics changed."""
    return items[:start] + [
        replace(item, metrics={k: how[k](v) if k in how else v for k, v in item.metrics.items()})
        for item in items[start:]
    ]


def _only(items: list[Item], settings: AlertSettings | None = None) -> Alert:
    alerts = find_alerts(items, settings)
    assert len(alerts) == 1, [alert.text for alert in alerts]
    return alerts[0]


def test_ordinary_scatter_raises_no_alert() -> None:
    """Looked at after every item: no false alarm in 4,800 items; less than 1 % in 100 items is required.

    72,000 items of 300 other sessions gave one.
    """
    seen: Counter[str] = Counter()
    for seed in range(20):
        items = _ordinary(240, seed)
        for count in range(1, 241):
            seen.update(alert.id for alert in find_alerts(items[:count]))
    assert not seen


def test_every_rule_alone_rarely_errs() -> None:
    """With nothing but certainty asked for (any size of change matters), still less than 1 % in 100 items."""
    settings = AlertSettings(defocus_drift=0.0, resolution_loss=0.0, motion_rise=0.0, dose_drop=0.0)
    sessions = 0
    for seed in range(100, 112):
        items = _ordinary(200, seed)
        sessions += any(find_alerts(items[:count], settings) for count in range(40, 201))
    assert sessions <= 1


def test_drift_of_defocus() -> None:
    alert = _only(_changed(_ordinary(100), 75, defocus=lambda v: v + 7000))
    assert (alert.id, alert.level) == ("defocus_drift", "warning")
    assert "risen from 1.5" in alert.text
    assert "µm" in alert.text
    assert alert.items[-1] == "m0099"
    assert len(alert.items) == 20
    assert alert.evidence["now"] - alert.evidence["before"] == pytest.approx(0.7, abs=0.2)
    down = _only(_changed(_ordinary(100), 75, defocus=lambda v: v - 9000))
    assert "fallen" in down.text
    # a slow drift adds up
    items = _ordinary(150)
    slow = [
        replace(item, metrics={**item.metrics, "defocus": item.metrics["defocus"] + 100.0 * i})
        for i, item in enumerate(items)
        if item.state == "done"
    ]
    assert _only(slow).id == "defocus_drift"


def test_a_change_too_small_to_matter_is_none() -> None:
    """A shift of 0.1 µm in defocus that hardly scatters is certain, and small."""
    items = [Item(f"m{i:03d}", i, {"defocus": 15000.0 + (i * 37 % 11) * 10}) for i in range(60)]
    assert find_alerts(_changed(items, 40, defocus=lambda v: v + 1000)) == []
    assert _only(_changed(items, 40, defocus=lambda v: v + 2500)).id == "defocus_drift"
    generous = AlertSettings(defocus_drift=0.5)
    assert find_alerts(_changed(items, 40, defocus=lambda v: v + 2500), generous) == []


def test_loss_of_resolution_and_rise_of_motion() -> None:
    items = _ordinary(120)
    loss = _only(_changed(items, 100, resolution=lambda v: 1.8 * v))
    assert loss.id == "resolution_loss"
    assert "Å" in loss.text
    # better is no reason to worry
    assert find_alerts(_changed(items, 100, resolution=lambda v: 0.4 * v)) == []
    motion = _only(_changed(items, 100, motion_total=lambda v: 4.0 * v))
    assert motion.id == "motion_rise"
    assert find_alerts(_changed(items, 100, motion_total=lambda v: 0.2 * v)) == []


def test_what_is_stale_is_not_compared() -> None:
    """Other settings give other numbers; only results of the same ones are compared."""
    items = _changed(_ordinary(120), 100, resolution=lambda v: 1.8 * v)
    mixed = [replace(item, state="stale") if i < 100 else item for i, item in enumerate(items)]
    assert find_alerts(mixed) == []


def test_the_order_is_that_of_recording_whatever_comes_first() -> None:
    items = _changed(_ordinary(120), 100, resolution=lambda v: 1.8 * v)
    shuffled = [items[i] for i in np.random.default_rng(0).permutation(len(items))]
    assert find_alerts(shuffled) == find_alerts(items)


@pytest.mark.parametrize(
    ("residual", "words"),
    [(1.0, "turned"), (2.0, "gain_invert"), (0.4, "40% of the gain reference's pattern"), (-0.5, "50% of")],
)
def test_gain_that_does_not_fit(residual: float, words: str) -> None:
    rng = np.random.default_rng(0)
    items = [
        Item(f"m{i}", i, {"gain_residual": residual + rng.normal(0, 0.01), "gain_residual_error": 0.01})
        for i in range(3)
    ]
    alert = _only(items)
    assert (alert.id, alert.level) == ("gain", "error")
    assert words in alert.text
    assert alert.items == ("m0", "m1", "m2")
    assert find_alerts(items[:2]) == []
    # a pattern in the average may well make the CTF fail
    assert _only([replace(item, state="failed") for item in items]).id == "gain"
    # of few counts, it is not sure
    unsure = [replace(item, metrics={**item.metrics, "gain_residual_error": 0.5}) for item in items]
    assert find_alerts(unsure) == []


def test_movies_missing_frames() -> None:
    items = [Item(f"m{i}", i, {"frames": 40, "stored_frames": 40}) for i in range(30)]
    assert find_alerts(items) == []
    items[12] = replace(items[12], metrics={"frames": 31, "stored_frames": 31})
    alert = _only(items)
    assert alert.id == "frames"
    assert alert.text == "1 movie has fewer frames than the usual 40: m12 (31)."
    assert alert.items == ("m12",)
    items[13] = replace(items[13], metrics={"frames": 44, "stored_frames": 44})
    assert _only(items).text.startswith("2 movies have fewer or more frames than the usual 40")
    # EER: groups are as many as ever, the raw frames tell
    eer = [Item(f"m{i}", i, {"frames": 40, "stored_frames": 1200 if i else 700}) for i in range(9)]
    assert "m0 (700)" in _only(eer).text
    # no majority, no norm
    mixed = [Item(f"m{i}", i, {"frames": 40 + i % 3}) for i in range(30)]
    assert find_alerts(mixed) == []


def test_failures_in_a_row() -> None:
    good = [Item(f"m{i}", i, {"frames": 1}, processed=1000.0 + i) for i in range(20)]
    bad = [
        replace(item, name=f"b{i}", state="failed", metrics={}, processed=2000.0 + i, source=f"/d/b{i}.tif")
        for i, item in enumerate(good[:5])
    ]
    bad = [replace(item, reason=f"{item.source}: there are no frames") for item in bad]
    assert find_alerts(good + bad[:4]) == []
    # newest first: processed last though recorded first
    alert = _only(good + bad)
    assert (alert.id, alert.level) == ("failures", "error")
    expected = "The last 5 items that were processed failed. All of them: the file: there are no frames."
    assert alert.text == expected
    assert alert.items == ("b0", "b1", "b2", "b3", "b4")
    assert find_alerts([*good, *bad, Item("later", 99, {}, processed=3000.0)]) == []
    # where half fail anyway, five in a row are nothing new
    half = [
        replace(item, state="failed" if i % 2 else "done", processed=100.0 + i)
        for i, item in enumerate(good * 2)
    ]
    assert find_alerts(half + bad) == []


def test_dark_images() -> None:
    items = _changed(_ordinary(100), 97, counts=lambda v: 0.02 * v)
    alert = _only(items)
    assert (alert.id, alert.level) == ("dark", "error")
    assert "The last 3 images are dark: 2%" in alert.text
    assert alert.items == ("m0097", "m0098", "m0099")
    assert find_alerts(_changed(_ordinary(100), 98, counts=lambda v: 0.02 * v)) == []
    # a weaker beam shows over more images
    weaker = _only(_changed(_ordinary(100), 75, counts=lambda v: 0.7 * v))
    assert weaker.id == "dose_drop"
    assert "Images count 28% less than before" in weaker.text


def test_errors_come_first_and_all_is_plain_data() -> None:
    import json

    items = _changed(
        _ordinary(100),
        75,
        defocus=lambda v: v + 9000,
        gain_residual=lambda v: v + 1.0,
        motion_total=lambda v: 9 * v,
    )
    alerts = find_alerts(items)
    assert [alert.id for alert in alerts] == ["gain", "defocus_drift", "motion_rise"]
    data = json.loads(json.dumps([alert.to_dict() for alert in alerts], allow_nan=False))
    assert set(data[0]) == {"id", "level", "text", "items", "evidence"}
    assert find_alerts([]) == []
    assert find_alerts([Item("a", 0.0, {"defocus": None, "resolution": "x"})]) == []


# ---------------------------------------------------------------- the statistics


def test_rank_difference_is_what_scipy_says() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 5.0):
        a, b = np.round(rng.normal(0, scale, 25)), np.round(rng.normal(0.5, scale, 40))
        z = rank_difference(a, b)
        result = mannwhitneyu(b, a, alternative="greater", use_continuity=False, method="asymptotic")
        from scipy.stats import norm

        assert norm.sf(z) == pytest.approx(result.pvalue, rel=1e-9)
    assert rank_difference([1, 1], [1, 1]) == 0.0
    assert rank_difference([], [1]) == 0.0


def test_slope_and_errors_are_those_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    slopes, medians = [], []
    for _ in range(300):
        noise = rng.normal(0, 2.0, 30)
        found, error = slope(0.3 * np.arange(30) + noise)
        slopes.append((found, error))
        medians.append((np.median(noise), median_error(noise)))
    for pairs, truth in ((slopes, 0.3), (medians, 0.0)):
        values, errors = np.array(pairs).T
        assert values.mean() == pytest.approx(truth, abs=0.1)
        # the estimate of the error within a fifth
        assert np.median(errors) == pytest.approx(values.std(), rel=0.2)


def test_change_needs_as_many_before_as_now() -> None:
    assert change(np.arange(9.0), 5, 100) is None
    found = change(np.arange(30.0), 5, 10)
    assert found is not None
    assert (found.n_before, found.n_now) == (10, 5)
    assert (found.before, found.now) == (19.5, 27.0)
    assert found.difference == 7.5
