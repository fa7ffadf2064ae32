"""The page of a report: one HTML file without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from weft.session.figures import astigmatism_figure, metric_figure
from weft.session.report import Report, Row
from weft.session.selection import QUANTITIES, astigmatism_vectors, shown_values, vector_spread

__all__ = ["page"]

#: Micrographs shown of the best and of the worst.
_SHOWN = 6
#: Rows of a table.
_MOST = 200
#: Shown in the captions of micrographs.
_CAPTION = ("resolution", "defocus", "astigmatism", "motion")
_QUALITY = 82


def page(report: Report) -> str:
    """The whole file."""
    name = report.root.name
    parts = [
        f"<header><h1>{_e(name)}</h1><p>{_e(str(report.root))}<br>Weft {_e(report.versions['weft'])}, "
        f"written {_e(report.written)}</p></header>",
        _numbers(report),
        _section("Metrics over time", _metrics(report)),
        '<div class="pair">',
        _section("Astigmatism", _astigmatism(report)),
        "<div>",
        _section("Filters", _filters(report)),
        _section("Decisions by hand", _decisions(report)),
        "</div></div>",
        _micrographs(report),
        _section("Failures", _failures(report)),
        _section("Settings", _settings(report)),
        _section("Software", _table(("program", "version"), report.versions.items())),
        _section("EMPIAR image sets", _empiar(report)),
    ]
    # nothing can be loaded or run, whatever a file name says
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(name)}: Weft report</title>\n<style>{_style()}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(part for part in parts if part)}</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    return files("weft.session").joinpath("report.css").read_text(encoding="utf-8")


def _e(text: object) -> str:
    # names of files may hold bytes that are no text
    return escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_e(title)}</h2>{content}</section>\n" if content else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    body = "".join(f"<tr>{''.join(f'<td>{_e(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{_e(cell)}</th>" for cell in head)
    return f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}".replace(",", "\u202f")


def _numbers(report: Report) -> str:
    found = report.numbers()

    def shown(value: Any, digits: int = 0) -> str:
        return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")

    tiles = [
        ("movies", shown(found["movies"])),
        ("done", shown(found["done"])),
        ("failed", shown(found["failed"])),
        *((state, shown(found[state])) for state in ("stale", "new") if found[state]),
        ("selected", shown(found["selected"])),
        ("excluded by hand", shown(found["excluded"])),
        ("hours of recording", shown(found["hours"], 1 if found["hours"] >= 0.1 else 2)),
        ("movies an hour", shown(found["movies_per_hour"])),
        ("s of work a movie", shown(found["seconds_per_movie"], 1)),
    ]
    cells = "".join(
        f'<div class="tile{" bad" if name == "failed" and found["failed"] else ""}">'
        f"<b>{value}</b><span>{_e(name)}</span></div>"
        for name, value in tiles
    )
    return f'<div class="tiles">{cells}</div>\n'


def _metrics(report: Report) -> str:
    metrics, hours, selected = report.metrics, report.hours, report.selected
    figures = []
    for name, quantity in QUANTITIES.items():
        values = shown_values(metrics, name)
        known = np.isfinite(values) & np.isfinite(hours)
        bounds = report.selection.ranges.get(name, (None, None))
        # what is the same everywhere needs no figure
        if not known.any() or (np.ptp(values[known]) == 0 and bounds == (None, None)):
            continue
        drawn = metric_figure(
            hours[known], values[known], selected[known], quantity.label, quantity.unit, bounds
        )
        figures.append(f"<figure>{drawn}</figure>")
    if not figures:
        return "<p>Nothing is measured yet.</p>"
    legend = (
        '<p class="legend"><span class="key"></span> selected <span class="key out"></span> not selected '
        '<span class="key outside"></span> outside of the accepted range. '
        "What lies far off is drawn at the edge.</p>"
    )
    return f'{legend}<div class="figures">{"".join(figures)}</div>'


def _astigmatism(report: Report) -> str:
    vectors = astigmatism_vectors(report.metrics)
    if not np.isfinite(vectors).all(-1).any():
        return ""
    centre, deviation = vector_spread(vectors)
    ranges = report.selection.ranges
    limits = tuple(ranges.get(name, (None, None))[1] for name in ("astigmatism", "astigmatism_sigma"))
    drawn = astigmatism_figure(vectors, report.selected, centre, deviation, (limits[0], limits[1]))
    size = float(np.hypot(*centre))
    angle = float(np.rad2deg(0.5 * np.arctan2(centre[1], centre[0])))
    text = (
        f"Vectors have twice the angle of the astigmatism. Mean {size:.3f} µm at {angle:.0f}°; standard "
        f"deviation of the distance from it {deviation:.3f} µm, outliers apart."
    ).replace("-", "−")
    return f'<figure class="square">{drawn}</figure><p>{_e(text)}</p>'


def _range(bounds: tuple[float | None, float | None], unit: str) -> str:
    low, high = bounds
    tail = f" {unit}" if unit else ""
    if low is not None and high is not None:
        return f"{low:g} to {high:g}{tail}"
    return f"at least {low:g}{tail}" if low is not None else f"at most {high:g}{tail}"


def _filters(report: Report) -> str:
    counts = report.judgement.counts
    if not counts:
        return "<p>No ranges are set: all that was measured is selected.</p>"
    rows = [
        (
            QUANTITIES[name].label,
            _range(report.selection.ranges[name], QUANTITIES[name].unit),
            count.passes,
            count.rejects,
            count.unmeasured,
            count.only,
        )
        for name, count in counts.items()
    ]
    head = ("filter", "accepts", "pass", "lie outside", "not measured", "left out by this alone")
    return _table(head, rows, "numbers")


def _decisions(report: Report) -> str:
    out = []
    for word, names in (("Included", report.selection.include), ("Excluded", report.selection.exclude)):
        if names:
            shown = ", ".join(_e(name) for name in sorted(names)[:_MOST])
            more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
            out.append(f"<p>{word} ({len(names)}): {shown}{more}</p>")
    return "".join(out)


def _micrographs(report: Report) -> str:
    """The best of what is selected, and the worst of all."""
    shown = [row for row in report.rows if "thumbnail" in row.outputs]
    measured = [row for row in shown if isinstance(row.metrics.get("resolution"), int | float)]
    measured.sort(key=lambda row: (row.metrics["resolution"], -(row.metrics.get("ctf_score") or 0.0)))
    chosen = {row.name for row, ok in zip(report.rows, report.selected, strict=True) if ok}
    best = [row for row in measured if row.name in chosen][:_SHOWN]
    names = {row.name for row in best}
    worst = [row for row in reversed(measured) if row.name not in names][:_SHOWN]
    out = ""
    for title, rows in (("Best micrographs", best), ("Worst micrographs", worst)):
        if rows:
            cards = "".join(_card(row, report) for row in rows)
            out += _section(title, f'<div class="cards">{cards}</div>')
    return out


def _card(row: Row, report: Report) -> str:
    pictures = "".join(
        f'<img alt="{_e(words)}" src="{uri}">'
        for name, words in (("thumbnail", "micrograph"), ("powerspectrum", "power spectrum"))
        if (uri := _inline(report.root, row.outputs.get(name)))
    )
    facts = []
    for name in _CAPTION:
        quantity = QUANTITIES[name]
        value = row.metrics.get(quantity.metric)
        if isinstance(value, int | float):
            facts.append(f"{quantity.label.lower()} {value * quantity.scale:.3g} {quantity.unit}")
    verdict = report.judgement.verdicts[row.name]
    why = "" if verdict.selected else f'<br><span class="why">{_e("; ".join(verdict.reasons))}</span>'
    text = f"<b>{_e(row.name)}</b><br>{_e(', '.join(facts))}{why}"
    return f'<figure class="card"><div>{pictures}</div><figcaption>{text}</figcaption></figure>'


def _inline(root: Path, relative: str | None) -> str:
    """A picture as a data URI, as JPEG because noise makes PNG large; empty where it is gone."""
    if relative is None:
        return ""
    try:
        picture = imagecodecs.png_decode((root / relative).read_bytes())
        data = imagecodecs.jpeg8_encode(np.ascontiguousarray(picture), level=_QUALITY)
    except (OSError, imagecodecs.PngError, imagecodecs.Jpeg8Error, ValueError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _failures(report: Report) -> str:
    failed = [row for row in report.rows if row.state == "failed"]
    if not failed:
        return ""
    more = f"<p>and {_count(len(failed) - _MOST, 'other')}</p>" if len(failed) > _MOST else ""
    return _table(("item", "reason"), ((row.name, row.reason) for row in failed[:_MOST])) + more


def _settings(report: Report) -> str:
    stale = sum(row.state == "stale" for row in report.rows)
    note = (
        f"<p>As weft.toml has them now; {_count(stale, 'item')} were processed with others and are stale.</p>"
        if stale
        else "<p>As weft.toml has them. What differs from the default is bold.</p>"
    )
    sections: dict[str, list[str]] = {}
    for setting in report.settings:
        section, key = setting.key.split(".", 1)
        value = _e(setting.value) + (
            f" {_e(setting.unit)}" if setting.unit and setting.value != "none" else ""
        )
        row = f"<dt>{_e(key)}</dt><dd>{f'<b>{value}</b>' if setting.changed else value}</dd>"
        sections.setdefault(section, []).append(row)
    lists = "".join(
        f"<div><h3>[{_e(name)}]</h3><dl>{''.join(rows)}</dl></div>" for name, rows in sections.items()
    )
    return f'{note}<div class="settings">{lists}</div>'


def _empiar(report: Report) -> str:
    if not report.imagesets:
        return ""
    text = json.dumps({"imagesets": report.imagesets}, indent=2, ensure_ascii=False)
    return (
        "<p>For the deposition's JSON file; check names and folders, and add the gain reference.</p>"
        f"<pre>{_e(text)}</pre>"
    )
