"""Which movie of the session a tilt series means: by its name, without its ending, or by a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.session.series_description import DescribedTilt

__all__ = ["NOT_THERE", "Match", "MovieIndex", "movie_key"]

#: In the reason of a tilt whose movie may still come.
NOT_THERE = "is not among the frames"

_SUFFIX = re.compile(r"(?:\.(?:tiff?|eer|mrcs?|em|hdf5?|gz|bz2))+\Z")
#: What Tomography 5 appends to the names of its movies.
_APPENDED = re.compile(r"(?:_fractions|_eer)+\Z")
#: What follows a series' name: a number, an angle, and perhaps when it was taken. No movie fits two series:
#: an angle has no zeros before it, and nothing that looks like one comes after it.
_NUMBER_AND_ANGLE = re.compile(
    r"[_\- ]*(\d+)(?:[_ ]|_?(?=\[))\[?([+-]?(?:0|[1-9]\d?)(?:\.\d+)?)\]?"
    r"(?:_[a-z]{3}\d{1,2}_[\d.]+|_\d{8}_\d{6}|-\d+)?\Z"
)
#: Degrees by which a stage may miss the angle that stands in a name, beside the rounding of that name.
_MISSED = 0.25


@dataclass(frozen=True)
class Match:
    """The movie of a tilt.

    Attributes
    ----------
    item : str
        Empty where there is none.
    reason : str
        Why there is none.
    by : ``"name"``, ``"stem"`` or ``"angle"``
        How it was found: by its full name, by its name without the ending, by the series' name, a number and
        the angle.
    """

    item: str = ""
    reason: str = ""
    by: str = "name"


def movie_key(name: str) -> str:
    """A movie's name without what differs between programs: ending, capitals, ``_EER``, ``_fractions``."""
    return _APPENDED.sub("", _SUFFIX.sub("", name.lower()))


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[\\/]+", path.lower()) if part not in ("", ".", "..")]


def _shared(a: Iterable[str], b: Iterable[str]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


class MovieIndex:
    """A session's movies, to be found by what others call them.

    Parameters
    ----------
    movies : mapping
        Item → movie.
    """

    def __init__(self, movies: Mapping[str, Path]) -> None:
        self.movies = movies
        self._by_name: dict[str, list[str]] = {}
        self._by_key: dict[str, list[str]] = {}
        for item, path in movies.items():
            self._by_name.setdefault(path.name.lower(), []).append(item)
            self._by_key.setdefault(movie_key(path.name), []).append(item)

    def items_at(self, path: str) -> list[str]:
        """The items that are this very file."""
        same = self._by_name.get(Path(path).name.lower(), []) if path else []
        return [item for item in same if str(self.movies[item].absolute()) == path]

    def find(self, tilt: DescribedTilt, folder: Path) -> Match:
        """The movie that a file in `folder` names.

        Of several with one name, the one whose folders agree best with the path that the file states, then
        the one nearest to the file; where that is undecided there is none.
        """
        name = tilt.movie_name
        if not name:
            return Match(reason="no movie is named for it")
        found = self._by_name.get(name.lower(), [])
        by = "name" if found else "stem"
        if len(found := found or self._by_key.get(movie_key(name), [])) > 1:
            found = self._nearest(found, tilt.movie, folder)
        if len(found) > 1:
            first, second = (self.movies[item] for item in found[:2])
            return Match(reason=f"several frames fit its movie {name}: {first}, {second}")
        return Match(found[0], by=by) if found else Match(reason=f"its movie {name} {NOT_THERE}")

    def _nearest(self, items: list[str], stated: str, folder: Path) -> list[str]:
        above = _parts(stated)[-2::-1]
        here = _parts(str(folder.absolute()))
        ending = re.split(r"[\\/]", stated)[-1]

        def closeness(item: str) -> tuple[int, int, bool]:
            path = self.movies[item]
            parents = _parts(str(path.parent.absolute()))
            return _shared(above, parents[::-1]), _shared(here, parents), path.name == ending

        best = max(map(closeness, items))
        return [item for item in items if closeness(item) == best]

    def by_angle(
        self,
        series: str,
        tilts: Sequence[DescribedTilt],
        taken: Iterable[str] = (),
    ) -> dict[int, Match]:
        """Movies called ``<series>_<number>_<angle>``, for tilts whose file names none.

        Parameters
        ----------
        series : str
        tilts : sequence of DescribedTilt
            In the order of acquisition.
        taken : iterable of str
            Items that belong to other tilts.

        Returns
        -------
        dict
            Index of the tilt → its movie. A tilt is left out where no movie fits or it is not certain which.
        """
        if all(tilt.movie for tilt in tilts):
            return {}
        prefix = series.lower()
        candidates: list[tuple[int, float, float, str]] = []
        for key, items in self._by_key.items():
            fit = _fit(key, prefix)
            if fit is not None and len(items) == 1:
                candidates.append((*fit, items[0]))
        out: dict[int, Match] = {}
        done = set(taken)
        for i, tilt in enumerate(tilts):
            if tilt.angle is None or tilt.movie or i in out:
                continue
            near = sorted(c for c in candidates if abs(c[1] - tilt.angle) <= c[2] and c[3] not in done)
            alike = [j for j, t in enumerate(tilts) if _same(t, tilt.angle) and not t.movie]
            # repeated angles are told apart by the numbers, if there is one movie for each
            if len(near) == len(alike):
                for j, candidate in zip(alike, near, strict=True):
                    out[j] = Match(candidate[3], by="angle")
                    done.add(candidate[3])
        return out


def _same(tilt: DescribedTilt, angle: float) -> bool:
    return tilt.angle is not None and abs(tilt.angle - angle) <= 0.1


def _fit(key: str, series: str) -> tuple[int, float, float] | None:
    """Number, angle and its tolerance in degrees, of a movie's key that belongs to a series."""
    found = _NUMBER_AND_ANGLE.match(key, len(series)) if key.startswith(series) else None
    if found is None or key[len(series)].isdecimal():
        return None
    decimals = len(found.group(2).partition(".")[2])
    return int(found.group(1)), float(found.group(2)), 0.5 * 10.0**-decimals + _MISSED
