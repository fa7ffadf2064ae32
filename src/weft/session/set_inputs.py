"""What `weft preprocess` is given: files, folders, patterns, tables, sessions; looked at again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weft.errors import RequestError, WeftError
from weft.formats.relion_geometry import micrographs_of
from weft.formats.star import Table, read_star
from weft.session.discovery import expand, natural_key

__all__ = ["SetInputs"]


@dataclass
class SetInputs:
    """What the command was given, looked at again whenever somebody asks."""

    given: Sequence[str]
    output: Path
    #: a table that cannot be read is one that is being written
    patient: bool = False
    stars: dict[Path, dict[str, Table]] = field(default_factory=dict)
    #: path of a micrograph → its name in each table that lists it, and the pixel size that the table says
    names: dict[Path, list[tuple[Path, str]]] = field(default_factory=dict)
    pixel_sizes: dict[Path, float] = field(default_factory=dict)
    _seen: dict[Path, int] = field(default_factory=dict)

    def find(self) -> list[Path]:
        """All micrographs that are there now, in the order of the tables and of their names."""
        found: dict[Path, None] = {}
        for text in self.given:
            path = Path(text).expanduser()
            if path.is_dir() and (path / "weft.toml").is_file():
                path = path / "micrographs.star"
            if path.suffix.lower() == ".star":
                found.update(dict.fromkeys(self._of_star(path.absolute())))
            else:
                paths = (Path(p).absolute() for p in expand(text, Path.cwd(), recursive=False))
                found.update(dict.fromkeys(sorted(paths, key=lambda p: natural_key(str(p)))))
        own = self.output.resolve()
        return [path for path in found if path.is_file() and own not in path.resolve().parents]

    def _of_star(self, star: Path) -> list[Path]:
        try:
            self._read_star(star)
        except OSError as error:
            if not self.patient:
                raise RequestError(f"{star} cannot be read: {error.strerror}.") from None
        except WeftError:
            if not self.patient:
                raise
        return [path for path, places in self.names.items() if any(place == star for place, _ in places)]

    def _read_star(self, star: Path) -> None:
        time_ = star.stat().st_mtime_ns
        if self._seen.get(star) != time_:
            blocks = read_star(star)
            for name, pixel_size in micrographs_of(blocks, str(star)).items():
                path = _located(name, star)
                if (star, name) not in self.names.setdefault(path, []):
                    self.names[path].append((star, name))
                if pixel_size is not None:
                    self.pixel_sizes[path] = pixel_size
            self.stars[star] = blocks
            self._seen[star] = time_


def _located(name: str, star: Path) -> Path:
    """RELION's names are relative to its project, which is somewhere above the table, or where one is."""
    path = Path(name)
    if path.is_absolute():
        return path
    places = [Path.cwd(), *star.parents]
    return next((place / path for place in places if (place / path).is_file()), star.parent / path)
