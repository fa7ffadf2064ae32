"""Which files describe tilt series: mdocs, ``.tomostar``, RELION's tables, stacks with angles beside them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from weft.errors import WeftError
from weft.formats.mdoc import is_override
from weft.session.discovery import OUTPUT_FOLDERS, natural_key
from weft.session.series_description import STACK_SUFFIXES, angle_sources, series_stem
from weft.session.series_reading import is_relion_series, mdoc_kind

__all__ = ["find_origins", "why_no_origins"]

_ORIGINS = (".mdoc", ".tomostar", ".star", *STACK_SUFFIXES)


def find_origins(pattern: str, root: Path) -> list[Path]:
    """The files that describe tilt series, for a folder, a glob pattern or one file.

    Parameters
    ----------
    pattern : str
        Relative to `root`. A folder stands for its mdocs, ``.tomostar`` files, tables of tilt series of
        RELION 5, and stacks with angles beside them (``.rawtlt``, ``.tlt``, mdoc).
    root : Path
        The session's folder.

    Returns
    -------
    list of Path
        Absolute, in natural order. Left out are mdocs of single movies and of montages, recognised by their
        content, mdocs that an ``_override`` replaces, and stacks whose mdoc is there; but one file that is
        named itself is given whatever it is, so that importing it can say what is wrong.
    """
    single, found = _expand(pattern, root)
    if single:
        return found
    overridden = {_plain_name(path) for path in found if is_override(path)}
    found = _without_mere_movies(found)
    chosen = [path for path in found if _describes_series(path) and not _is_in(path, overridden)]
    with_mdoc = {(p.parent, series_stem(p)) for p in chosen if p.suffix.lower() == ".mdoc"}
    best: dict[tuple[Path, str], Path] = {}
    for path in chosen:
        if path.suffix.lower() in STACK_SUFFIXES:
            key = (path.parent, series_stem(path))
            if key not in with_mdoc and (key not in best or _rank(path) < _rank(best[key])):
                best[key] = path
    rest = [path for path in chosen if path.suffix.lower() not in STACK_SUFFIXES]
    return sorted([*rest, *best.values()], key=lambda p: natural_key(str(p)))


def why_no_origins(pattern: str, root: Path) -> str:
    """A sentence that says why :func:`find_origins` finds nothing; empty where it does find something."""
    if find_origins(pattern, root):
        return ""
    kinds = [mdoc_kind(path) for path in _expand(pattern, root)[1] if path.suffix.lower() == ".mdoc"]
    if kinds.count("movie"):
        return (
            f"{pattern} has the mdocs of {kinds.count('movie')} single movies, but none of a tilt series; "
            "give the folder of the series' own mdocs."
        )
    if kinds:
        return f"{pattern} has {len(kinds)} mdocs, but none of them describes a tilt series."
    return (
        f"{pattern} has no mdoc, no .tomostar, no table of tilt series of RELION 5, and no stack with a "
        ".rawtlt, .tlt or mdoc beside it."
    )


def _expand(pattern: str, root: Path) -> tuple[bool, list[Path]]:
    """Whether one file is named itself, and the files of the right kinds that the pattern stands for."""
    path = Path(pattern).expanduser()
    path = path if path.is_absolute() else root / path
    if path.is_file():
        return True, [path]
    entries: Iterable[Path] = [path] if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    own = {str((root / folder).absolute()) for folder in OUTPUT_FOLDERS}
    found: dict[str, None] = {}
    for entry in entries:
        try:
            files = list(entry.iterdir()) if entry.is_dir() else [entry]
        except OSError:
            continue  # a folder that cannot be read: `why_no_origins` speaks where nothing else is found
        for file in files:
            right = file.suffix.lower() in _ORIGINS and not file.name.startswith(".")
            if right and file.is_file() and own.isdisjoint(map(str, file.absolute().parents)):
                found.setdefault(str(file.absolute()))
    return False, [Path(text) for text in sorted(found, key=natural_key)]


def _without_mere_movies(found: list[Path]) -> list[Path]:
    """Leave out stacks without anything of their name beside them: one look at a folder of 10,000 movies."""
    folders = {path.parent for path in found if path.suffix.lower() in STACK_SUFFIXES}
    described: dict[Path, set[str]] = {}
    for folder in folders:
        described[folder] = set()
        with suppress(OSError):
            tell = [
                name for name in os.listdir(folder) if name.lower().endswith((".mdoc", ".rawtlt", ".tlt"))
            ]
            described[folder] = {series_stem(Path(name)) for name in tell}
    return [
        path
        for path in found
        if path.suffix.lower() not in STACK_SUFFIXES or series_stem(path) in described[path.parent]
    ]


def _rank(stack: Path) -> int:
    return STACK_SUFFIXES.index(stack.suffix.lower())


def _plain_name(override: Path) -> tuple[Path, str]:
    return override.parent, series_stem(override)


def _is_in(path: Path, overridden: set[tuple[Path, str]]) -> bool:
    mdoc = path.suffix.lower() == ".mdoc"
    return mdoc and not is_override(path) and (path.parent, series_stem(path)) in overridden


def _describes_series(path: Path) -> bool:
    """Whether a file that was found, not named, is to be imported; what cannot be read is, to be told."""
    suffix = path.suffix.lower()
    if suffix == ".mdoc":
        return mdoc_kind(path) in ("series", "unreadable")
    if suffix == ".star":
        return is_relion_series(path)
    if suffix in STACK_SUFFIXES:
        try:
            sources = list(angle_sources(path))
        except (OSError, WeftError):
            return False
        mdocs = [p for p in sources if p.suffix.lower() == ".mdoc"]
        return len(mdocs) < len(sources) or any(mdoc_kind(p) == "series" for p in mdocs)
    return True
