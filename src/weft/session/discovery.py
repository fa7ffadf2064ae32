"""From glob patterns to items with names of their own."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from weft.session.input import InputSettings

__all__ = [
    "MOVIE_SUFFIXES",
    "OUTPUT_FOLDERS",
    "expand",
    "find_movies",
    "item_name",
    "name_items",
    "natural_key",
]

#: What a folder that is given instead of a pattern is searched for.
MOVIE_SUFFIXES = (".tif", ".tiff", ".mrc", ".mrcs", ".eer", ".em")

#: Folders of a session that hold results.
OUTPUT_FOLDERS = (
    "average",
    "powerspectrum",
    "thumbnails",
    "deconv",
    "preprocessed",
    "mask",
    "picks",
    "tiltseries",
    "tiltstack",
    "reconstruction",
    "matching",
    "particles",
    "models",
    "reports",
    "records",
    "logs",
)

_LONGEST = 180  # bytes: room for suffixes and for the temporary name beside it within the 255 of a file name


def natural_key(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sorting key with numbers as numbers: movie_2 before movie_10."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def expand(pattern: str, root: Path, recursive: bool) -> Iterable[Path]:
    """The files that a pattern, a folder or a plain path stands for, in no order."""
    path = Path(pattern).expanduser()
    if not path.is_absolute():
        path = root / path
    if path.is_dir():
        deep = "**/*" if recursive else "*"
        found = path.glob(deep)
        return (p for p in found if p.suffix.lower() in MOVIE_SUFFIXES)
    names = glob.glob(str(path), recursive=True)
    if recursive:
        names += glob.glob(str(path.parent / "**" / path.name), recursive=True)
    return map(Path, names)


def find_movies(settings: InputSettings, root: Path) -> list[Path]:
    """The files that the patterns of [input] frames stand for, in natural order.

    Relative patterns are relative to the session's folder. The gain reference and the defect map are
    left out where a pattern catches them, and so is what the session itself has written.
    """
    others = {
        (root / Path(name).expanduser()).resolve() for name in (settings.gain, settings.defects) if name
    }
    own = {(root / folder).resolve() for folder in OUTPUT_FOLDERS}
    found: dict[str, None] = {}
    # of thousands of files in one folder, the folder is looked at once
    folders: dict[str, bool] = {}
    names = {path.name for path in others}

    def ours(path: Path) -> bool:
        real = path.resolve()
        return real in others or not own.isdisjoint((real, *real.parents))

    for pattern in settings.frames:
        for path in expand(pattern, root, settings.recursive):
            text = str(path)  # the functions of os take a third of the time of Path's
            folder, name = os.path.split(text)
            if folder not in folders:
                folders[folder] = ours(Path(folder))
            if folders[folder] or not os.path.isfile(text):
                continue
            if (name in names or os.path.islink(text)) and ours(path):
                continue
            found.setdefault(text if os.path.isabs(text) else str(path.absolute()))
    return [Path(text) for text in sorted(found, key=natural_key)]


def item_name(path: Path) -> str:
    """A file's name without its ending, as RELION, shells and file systems all take it.

    STAR files of RELION cannot hold spaces or quotes, and other names are too long: such characters
    become ``_``, and what is too long is cut and marked with a hash.
    """
    name = _cleaned(path.stem)
    if len(name.encode()) > _LONGEST:
        head = name.encode()[: _LONGEST - 9].decode(errors="ignore")
        name = f"{head}_{_hash(path.name)}"
    return name or "_"


def _cleaned(text: str) -> str:
    return re.sub(r"[^\w.+-]|^[.-]", "_", text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def name_items(paths: Iterable[Path], known: Mapping[str, str]) -> dict[str, Path]:
    """Give every file a name that no other has.

    Parameters
    ----------
    paths : iterable of Path
        In the order in which names are given away.
    known : dict
        Path → name of items that have one; they keep it.

    Returns
    -------
    dict
        Name → path. The first file of a stem gets the stem, another one ``stem__folder``, and where that
        is taken too, ``stem__hash`` of its path.
    """
    out = {known[str(path)]: path for path in paths if str(path) in known}
    taken = set(known.values())
    for path in paths:
        if str(path) in known:
            continue
        stem = item_name(path)
        choices = (
            stem,
            f"{stem}__{item_name(path.parent / (path.parent.name + '.d'))}",
            f"{stem}__{_hash(str(path))}",
        )
        name = next(choice for choice in choices if choice not in taken and len(choice.encode()) <= 210)
        taken.add(name)
        out[name] = path
    return out
