"""Which item of a session is meant by the name that another program has for its micrograph."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

__all__ = ["MicrographNames", "name_forms"]

_ENDINGS = re.compile(
    r"\.(mrcs?|tiff?|eer|em|st|map|png|jpe?g|gain|star|c?box|txt|tsv|cs|pos|xmd|json|xml|hdf)$", re.IGNORECASE
)
#: cryoSPARC's numbers of 64 bits before the name.
_UID = re.compile(r"^\d{15,21}_(?=.)")
#: What programs add to the name of a movie or a micrograph.
_ADDED = re.compile(
    r"[_-](auto_?pick|manual_?pick|automatch|auto|pick(s|ed)?|coords?|centered|extract(ed)?|particles?|stack"
    r"|(masks?_)?boxnet\w*|topaz|cryolo|template\w*|default"
    r"|aligned_mic(_dw)?|(patch|rigid|full)_aligned(_non)?(_doseweighted)?|(non_?)?doseweighted|aligned"
    r"|frames_sum|sum|avg|average|mic|micrograph|corr(ected)?|(no)?dw|no-dw|denoised|even|odd|ctf"
    r"|frames?|frameimage|fractions?|movie|eer|x?gain)$",
    re.IGNORECASE,
)


def name_forms(name: str) -> list[str]:
    """Names that may be meant, the nearest first: without folders and endings, then without additions."""
    text = PurePosixPath(name.strip().replace("\\", "/").removeprefix(">")).name
    forms = [text]
    while (short := _ENDINGS.sub("", forms[-1])) not in ("", forms[-1]):
        forms.append(short)
    if (short := _UID.sub("", forms[-1])) != forms[-1]:
        forms.append(short)
    while (short := _ADDED.sub("", forms[-1])) not in ("", forms[-1]):
        forms.append(short)
        if (bare := _ENDINGS.sub("", short)) not in ("", short):
            forms.append(bare)  # movie.tif_frames.mrc
    return forms


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Path: ...


@dataclass(frozen=True)
class _Entry:
    name: str
    folder: str


class MicrographNames:
    """Finds items by the names that others have for them.

    Parameters
    ----------
    items : iterable
        With ``name`` and ``source``, the movie's file.
    """

    def __init__(self, items: Iterable[_Named]) -> None:
        self._exact: dict[str, list[_Entry]] = {}
        self._core: dict[str, list[_Entry]] = {}
        for item in items:
            entry = _Entry(item.name, item.source.parent.name)
            exact = dict.fromkeys([item.name, item.source.stem, item.source.name])
            for text in exact:
                self._exact.setdefault(text, []).append(entry)
            for text in dict.fromkeys(name_forms(own)[-1] for own in exact):
                self._core.setdefault(text, []).append(entry)

    def find(self, name: str) -> tuple[str, ...]:
        """The items that may be meant: one where the name is clear, none where it is of no item."""
        forms = name_forms(name)
        folders = PurePosixPath(name.replace("\\", "/")).parts[:-1]
        for form in forms:
            if form in self._exact:
                return _by_folder(self._exact[form], form, folders)
        # additions on both sides: movie_fractions here, movie_aligned there
        if forms[-1] in self._core:
            return _by_folder(self._core[forms[-1]], "", folders)
        return ()


def _by_folder(entries: list[_Entry], form: str, folders: tuple[str, ...]) -> tuple[str, ...]:
    if len(entries) > 1:
        inside = [entry for entry in entries if entry.folder in folders]
        if len(inside) == 1:
            return (inside[0].name,)
        own = [entry for entry in entries if entry.name == form]
        if len(own) == 1 and "average" in folders:  # Weft's own averages have the items' names
            return (own[0].name,)
    return tuple(entry.name for entry in entries)
