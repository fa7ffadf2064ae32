"""The page of `weft vae analyze`: one HTML file without scripts and without anything from elsewhere."""

from __future__ import annotations

import shlex
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weft.heterogeneity.advice import LEAST_KL
from weft.session.fields import describe_all, format_value
from weft.session.heterogeneity.class_colours import class_colour
from weft.session.heterogeneity.landscape_figures import LEVELS, bars_figure, lines_figure, scatter_figure
from weft.session.heterogeneity.landscape_volumes import Series
from weft.session.report_page import _count, _e, _section, _style, _table

if TYPE_CHECKING:
    from weft.session.heterogeneity.analysis import Analysis

__all__ = ["page"]

Array = NDArray[np.float64]

#: Rows of tables.
_CORRELATES, _TOMOGRAMS = 30, 60


def page(analysis: Analysis) -> str:
    """The whole file."""
    name = analysis.run.resolve().name
    found = analysis.found
    parts = [
        f"<header><h1>{_e(name)}: the landscape</h1><p>{_e(str(analysis.run.resolve()))}<br>"
        f"epoch {found.epoch}, "
        f"written {_e(analysis.written)}</p></header>",
        _tiles(analysis),
        _advice(analysis),
        _section("Particles in latent space", _scatters(analysis)),
        *(_series(analysis, group) for group in analysis.series),
        _section("Particle sets", _commands(analysis)),
        _section("What goes with the landscape", _correlates(analysis)),
        _section("Clusters by tomogram", _tomograms(analysis)),
        _section("Has the training converged?", _training(analysis)),
        _section("Latent dimensions", _dimensions(analysis)),
        _section("Settings", _settings(analysis)),
    ]
    # nothing can be loaded or run, whatever a file name says
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    own = files("weft.session.heterogeneity").joinpath("analysis.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(name)}: Weft landscape</title>\n<style>{_style()}{own}{_colours(found.clusters.count)}"
        f"</style>\n</head>\n<body>\n<main>\n{''.join(part for part in parts if part)}</main>\n"
        "</body>\n</html>\n"
    )


def _colours(count: int) -> str:
    return "".join(f".c{i}{{--c:{class_colour(i + 1)}}}" for i in range(count))


def _chip(i: int) -> str:
    return f'<span class="chip c{i}"></span>'


def _tiles(analysis: Analysis) -> str:
    found = analysis.found
    carrying = int((found.kl >= LEAST_KL).sum())
    bad = {one.about for one in analysis.advice if one.level == "warning"}
    tiles = [
        ("particles", f"{len(found.particle):,}".replace(",", "\u202f"), "few particles" in bad),
        (
            "clusters found",
            str(found.structure.clusters.count) if found.structure.found else "none",
            "junk cluster" in bad,
        ),
        ("dimensions that carry something", f"{carrying} of {len(found.kl)}", "posterior collapsed" in bad),
        ("nats a particle", f"{float(found.kl.sum()):.1f}", False),
        ("epochs", str(len(analysis.history) or found.epoch), "not converged" in bad),
    ]
    if found.asked:
        tiles.insert(2, ("clusters asked for", str(found.asked), False))
    if analysis.history:
        last = analysis.history[-1]
        value = last.get("reconstruction", last.get("loss"))
        if value is not None:
            tiles.append(("reconstruction loss", f"{float(value):.4f}", "overfitted" in bad))
    cells = "".join(
        f'<div class="tile{" bad" if wrong else ""}"><b>{_e(value)}</b><span>{_e(name)}</span></div>'
        for name, value, wrong in tiles
    )
    return f'<div class="tiles">{cells}</div>\n'


def _advice(analysis: Analysis) -> str:
    items = "".join(
        f'<li class="{one.level}"><b>{_e(one.about)}.</b> {_e(one.text)}</li>' for one in analysis.advice
    )
    return f'<ul class="advice">{items}</ul>\n' if items else ""


def _scatters(analysis: Analysis) -> str:
    found = analysis.found
    scores, explained = found.scores, found.components.explained
    level = np.clip(
        (LEVELS * found.density.argsort().argsort()) // max(len(found.density), 1), 0, LEVELS - 1
    ).astype(np.int64)
    planes: list[tuple[str, Array, Array, tuple[str, str]]] = []

    def axis(i: int) -> str:
        return f"PC{i + 1}, {100 * explained[i]:.0f} %"

    if scores.shape[1] == 1:
        planes.append(("PC1", scores[:, 0], found.density, (axis(0), "density")))
    else:
        planes.append(("PC1 and PC2", scores[:, 0], scores[:, 1], (axis(0), axis(1))))
    if scores.shape[1] > 2 and explained[2] >= 0.05:
        planes.append(("PC1 and PC3", scores[:, 0], scores[:, 2], (axis(0), axis(2))))
    if found.umap is not None:
        planes.append(("UMAP", found.umap[:, 0], found.umap[:, 1], ("UMAP 1", "UMAP 2")))
    figures = []
    several = found.clusters.count > 1
    for title, x, y, names in planes:
        marks = [(float(x[at]), float(y[at]), str(i + 1)) for i, at in enumerate(found.representative)]
        if several:
            drawn = scatter_figure(x, y, found.label, f"{title}, by cluster", names, marks=marks)
            figures.append(f"<figure>{drawn}</figure>")
        # a third component is worth a second look only for its clusters
        if not several or title != "PC1 and PC3":
            crowd = scatter_figure(
                x, y, level, f"{title}, by density", names, prefix="q", marks=[] if several else marks
            )
            figures.append(f"<figure>{crowd}</figure>")
    legend = ""
    if found.clusters.count > 1:
        legend = "".join(f"{_chip(i)} {i + 1} " for i in range(found.clusters.count))
        legend = f'<p class="legend">Clusters: {legend}</p>'
    text = (
        "<p>A particle a dot. Numbers mark the particle nearest to each cluster's centre, whose volume "
        "stands for the cluster. What lies far off is drawn at the edge.</p>"
        if found.clusters.count > 1
        else "<p>A particle a dot; the stronger, the more crowded. The mark is the particle nearest to the "
        "mean.</p>"
    )
    return f'{text}{legend}<div class="plots">{"".join(figures)}</div>{_structure_text(analysis)}'


def _structure_text(analysis: Analysis) -> str:
    first = analysis.found.structure.first
    if first is None:
        return ""
    words = "" if not analysis.found.structure.scaled else " after giving all components the same variance"
    return (
        f'<p class="legend">Chance that one heap or a continuum shows so clear a cut{words}: along a '
        "straight line "
        f"{_chance(first.line)}, along the particles themselves {_chance(first.data)}. Both below 5 % are "
        "called clusters.</p>"
    )


def _chance(p: float) -> str:
    return "below 0.1 %" if p < 0.001 else f"{100 * p:.1f} %" if p < 0.1 else f"{100 * min(p, 1.0):.0f} %"


def _series(analysis: Analysis, group: Series) -> str:
    if not group.slices:
        return ""
    if group.name == "cluster":
        return _section(group.title, _clusters(analysis, group))
    text = {
        "path": "From particle to particle along shortest ways through their neighbours: every volume "
        "belongs to a particle.",
    }.get(
        group.name,
        "Below each volume its place on the component."
        + (" Each is of the particle nearest to that place." if analysis.settings.on_data else ""),
    )
    columns = [
        f'<div><img alt="slice across z of {_e(one.file)}" src="{cuts[0]}">'
        f'<img alt="slice across y of {_e(one.file)}" src="{cuts[1]}">'
        f'<img alt="projection of {_e(one.file)}" src="{sums[0]}"><span>{_e(one.caption)}</span></div>'
        for one, cuts, sums in zip(group.volumes, group.slices, group.projections, strict=True)
    ]
    if group.change:
        columns.append(
            f'<div class="change"><img alt="where volumes differ, along z" src="{group.change[0]}">'
            f'<img alt="where volumes differ, along y" src="{group.change[1]}">'
            f'<img alt="where volumes differ, along x" src="{group.change[2]}">'
            "<span>where they differ: largest deviation along z, y, x</span></div>"
        )
    note = (
        f'<p class="legend">{_e(text)} Rows: slice across z, slice across y, projection along z. '
        f"Files: volumes/{_e(group.name)}_*.mrc.</p>"
    )
    return _section(group.title, f'{note}<div class="strip">{"".join(columns)}</div>')


def _clusters(analysis: Analysis, group: Series) -> str:
    found = analysis.found
    names, table = found.composition()
    usual = float(np.median(group.contrast)) or 1.0
    cards = []
    for i, one in enumerate(group.volumes):
        views = "".join(f'<img alt="slice" src="{uri}">' for uri in group.slices[i])
        views += "".join(f'<img alt="projection" src="{uri}">' for uri in group.projections[i])
        size = int(found.clusters.size[i])
        facts = [f"{_count(size, 'particle')} ({100 * size / len(found.particle):.1f} %)"]
        if names:
            facts.append(f"in {_count(int((table[:, i] > 0).sum()), 'tomogram')} of {len(names)}")
        if len(group.volumes) > 1:
            facts.append(f"contrast {100 * group.contrast[i] / usual:.0f} % of the median")
        title = f"{_chip(i)}Cluster {i + 1}" if len(group.volumes) > 1 else "All particles"
        cards.append(
            f'<figure class="card"><div class="views">{views}</div><figcaption><b>{title}</b><br>'
            f"{_e(', '.join(facts))}<br>volume of particle {_e(found.particle[one.particle])}: "
            f"volumes/{_e(one.file)}</figcaption></figure>"
        )
    change = ""
    if group.change:
        pictures = "".join(f'<img alt="where volumes differ" src="{uri}">' for uri in group.change)
        change = (
            f'<figure class="card"><div class="views">{pictures}</div><figcaption><b>Where they '
            "differ</b><br>"
            "largest standard deviation along z, y, x</figcaption></figure>"
        )
    note = (
        '<p class="legend">Above, central slices across z, y, x; below, projections along them, under the '
        "mask "
        f"(mask.mrc). Pixels of {analysis.pixel_size:.2f} Å, box {analysis.box}.</p>"
    )
    return f'{note}<div class="volumes">{"".join(cards)}{change}</div>'


def _commands(analysis: Analysis) -> str:
    where = shlex.quote(str(analysis.run))
    lines = []
    if analysis.found.clusters.count > 1:
        lines += [
            f"weft vae select {where} --cluster {i + 1} --output particles_cluster{i + 1}.star"
            for i in range(analysis.found.clusters.count)
        ]
    if not lines:
        return ""
    text = "<p>A STAR file, or an optimisation set, with the particles of one cluster, as the input was:</p>"
    return f"{text}<pre>{_e(chr(10).join(lines))}</pre>"


def _correlates(analysis: Analysis) -> str:
    found = analysis.found.correlates
    if not found:
        return ""
    shown = [one for one in found if one.p < 0.05][:_CORRELATES]
    words = (
        f"{_count(len(found), 'test')} of the principal components "
        f"{'and UMAP ' if analysis.found.umap is not None else ''}against every column of numbers and "
        "against tomograms; p-values are corrected for their number."
    )
    if not shown:
        return f"<p>Nothing goes with the landscape: {words}</p>"
    rows = [
        (
            one.coordinate.upper(),
            one.known,
            (f"ρ = {one.size:.2f}" if one.kind == "number" else f"ε² = {one.size:.2f}").replace("-", "−"),
            f"{100 * one.share:.0f} %",
            "< 1e−6" if one.p < 1e-6 else f"{one.p:.1g}".replace("-", "−"),
            one.count,
        )
        for one in shown
    ]
    head = ("coordinate", "goes with", "how strongly", "explained", "p", "particles")
    left = sum(one.p < 0.05 for one in found) - len(shown)
    more = f"<p>and {left} weaker ones: analysis.json</p>" if left > 0 else ""
    return f"<p>{words} What is not listed shows no connection.</p>{_table(head, rows, 'correlates')}{more}"


def _tomograms(analysis: Analysis) -> str:
    names, table = analysis.found.composition()
    k = analysis.found.clusters.count
    if not names or k < 2 or len(names) < 2:
        return ""
    expected = table.sum(0) / table.sum()
    total = table.sum(1)
    # those that differ most from all of them first
    odd = (np.abs(table / total[:, None] - expected).sum(1) * np.sqrt(total)).argsort()[::-1]
    order = odd[:_TOMOGRAMS] if len(names) > _TOMOGRAMS else np.arange(len(names))
    rows = [_share("all", table.sum(0))] + [_share(names[i], table[i]) for i in order]
    more = (
        f"<p>The {_TOMOGRAMS} of {len(names)} tomograms that differ most from all together.</p>"
        if len(names) > _TOMOGRAMS
        else ""
    )
    return f'{more}<div class="shares">{"".join(rows)}</div>'


def _share(name: str, counts: NDArray[np.int64]) -> str:
    total = int(counts.sum())
    bars = "".join(
        f'<i class="c{i}" style="width:{100 * count / total:.2f}%" title="cluster {i + 1}: {count}"></i>'
        for i, count in enumerate(counts.tolist())
        if count
    )
    return f'<span class="name">{_e(name)}</span><div class="bar-of">{bars}</div><em>{total}</em>'


def _training(analysis: Analysis) -> str:
    figures = []
    history = analysis.history
    if len(history) > 1:
        x = np.array([line.get("epoch", i + 1) for i, line in enumerate(history)], np.float64)

        def column(name: str) -> Array:
            values = [line.get(name) for line in history]
            return np.array([np.nan if value is None else value for value in values], np.float64)

        lines = {"training": column("reconstruction"), "validation": column("validation")}
        lines = {name: line for name, line in lines.items() if np.isfinite(line).any()}
        if not lines:
            lines = {"loss": column("loss")}
        if any(np.isfinite(line).any() for line in lines.values()):
            figures.append(lines_figure("Reconstruction loss", x, lines, "epoch"))
        if np.isfinite(kl := column("kl")).any():
            figures.append(
                lines_figure("Kullback-Leibler divergence, nats a particle", x, {"kl": kl}, "epoch")
            )
    moved = analysis.found.movement
    if moved:
        x = np.array([one.after for one in moved], np.float64)
        lines = {"moved, of the spread": np.array([one.moved for one in moved])}
        lines["neighbours kept"] = np.array([one.neighbours for one in moved])
        if np.isfinite([one.agreement for one in moved]).any():
            lines["clusters, ARI"] = np.array([one.agreement for one in moved])
        figures.append(
            lines_figure("Latent space, since the kept epoch before", x, lines, "epoch", from_zero=True)
        )
    table = ""
    if analysis.volumes:
        rows = [
            (
                f"{one.before} → {one.after}",
                f"{one.correlation:.3f}".replace("-", "−"),
                "–" if not np.isfinite(one.resolution) else f"{one.resolution:.1f} Å",
            )
            for one in analysis.volumes
        ]
        head = ("epochs", "correlation under the mask", "FSC 0.5 at")
        table = f"<p>Volumes of the same particles in kept epochs:</p>{_table(head, rows)}"
    if not figures and not table:
        return "<p>Nothing was kept that could tell: keep more epochs (--keep-every).</p>"
    drawn = "".join(f"<figure>{figure}</figure>" for figure in figures)
    return f'<div class="plots">{drawn}</div>{table}'


def _dimensions(analysis: Analysis) -> str:
    found = analysis.found
    names = [f"{i + 1}" for i in range(len(found.kl))]
    figures = [
        bars_figure("Nats a particle in each latent dimension", names, np.maximum(found.kl, 0.0), LEAST_KL),
        bars_figure("Variance explained by each component, %", names, 100.0 * found.components.explained),
    ]
    return f'<div class="plots">{"".join(f"<figure>{figure}</figure>" for figure in figures)}</div>'


def _settings(analysis: Analysis) -> str:
    rows = []
    for doc in describe_all(type(analysis.settings)):
        value = getattr(analysis.settings, doc.name)
        shown = _e(format_value(value)) + (f" {_e(doc.unit)}" if doc.unit else "")
        rows.append(f"<dt>{_e(doc.name)}</dt><dd>{f'<b>{shown}</b>' if value != doc.default else shown}</dd>")
    return f'<div class="settings"><dl>{"".join(rows)}</dl></div>'
