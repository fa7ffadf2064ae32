"""A session: a folder with settings, records and results, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weft.errors import SessionError, SettingsError
from weft.session import config, index, running
from weft.session.config import SessionSettings
from weft.session.discovery import find_movies, name_items, natural_key
from weft.session.items import Item, Movie
from weft.session.lock import SessionLock
from weft.session.particle_parts import write_session_particles
from weft.session.plan import StepState, item_state, step_states
from weft.session.records import Record, RecordStore
from weft.session.run_report import Progress, RunReport
from weft.session.selection import Judgement, Selection, Verdict
from weft.session.series_tables import write_tomograms_star
from weft.session.steps import steps_of
from weft.session.tables import is_prepared, write_micrographs_star
from weft.session.tilt_item import TiltSeries
from weft.session.tilt_table import FOLDER as TILT_TABLES
from weft.session.tilt_table import table_path

__all__ = ["ItemStatus", "Progress", "RunReport", "Session", "new", "open"]


@dataclass(frozen=True)
class ItemStatus:
    """How one item stands: three different things.

    Attributes
    ----------
    state : ``"done"``, ``"failed"``, ``"stale"`` or ``"new"``
        The worst of its steps.
    steps : dict
        Step → its state with the reason.
    verdict : Verdict
        Whether the selection takes it.
    """

    state: Literal["done", "failed", "stale", "new"]
    steps: Mapping[str, StepState]
    verdict: Verdict

    @property
    def reason(self) -> str:
        """Why it is failed or stale; empty otherwise."""
        return next((s.reason for s in self.steps.values() if s.state == self.state and s.reason), "")


class Session:
    """An opened session. Make one with :func:`weft.open` or :func:`weft.new`.

    Attributes
    ----------
    root : Path
        Its folder, absolute.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.store = RecordStore(self.root)
        if not (self.root / config.FILE_NAME).is_file():
            raise SessionError(
                f"{root} is not a Weft session (it has no {config.FILE_NAME}); make one with `weft new`."
            )

    def __repr__(self) -> str:
        return f"<Session {self.root}>"

    # ------------------------------------------------------------------ settings

    @property
    def settings(self) -> SessionSettings:
        """weft.toml as it is now.

        Raises
        ------
        SettingsError
        """
        return config.load(self.root)

    def set(self, key: str, value: str) -> None:
        """Change ``section.key`` in weft.toml.

        Raises
        ------
        SettingsError
        """
        config.edit_file(self.root, {key: value})

    # ------------------------------------------------------------------ items

    @property
    def items(self) -> dict[str, Item]:
        """All items by name, in natural order: those that have records, and those just found."""
        return self.items_of(self.store.read_all())

    @property
    def series(self) -> dict[str, TiltSeries]:
        """The tilt series by name."""
        return {name: item for name, item in self.items.items() if isinstance(item, TiltSeries)}

    def summaries(self, *, write_index: bool = False) -> dict[str, Record]:
        """All records without what is long in them, by name: their results are the metrics only.

        Parameters
        ----------
        write_index : bool
            Make index.sqlite current on the way: for the one who holds the session's lock.

        Raises
        ------
        SessionError
            When a file is not a record.
        """
        found, broken = index.load(self.store, write=write_index)
        for reason in broken.values():
            raise SessionError(reason)
        return {name: summary.record for name, summary in found.items()}

    def movie_sources(self, records: Mapping[str, Record]) -> dict[str, Path]:
        """The movies that belong to these records and to the files that are there now, by name."""
        settings = self.settings.input
        known = {record.input.path: name for name, record in records.items() if record.kind != "series"}
        sources = name_items(find_movies(settings, self.root), known)
        for name, record in records.items():
            if record.kind != "series":
                sources.setdefault(name, Path(record.input.path))
        return sources

    def items_of(self, records: Mapping[str, Record]) -> dict[str, Item]:
        """The items that belong to these records and to the files that are there now."""
        kind = "tilt" if self.settings.input.of_tilts else "movie"
        sources = self.movie_sources(records)
        items: dict[str, Item] = {
            name: Movie(self.root, name, path, records.get(name), kind) for name, path in sources.items()
        }
        # a table of a series is the file of its item
        tables = {path.stem: path for path in (self.root / TILT_TABLES).glob("*.json")}
        for name, record in records.items():
            if record.kind == "series":
                tables.setdefault(name, Path(record.input.path))
        for name, path in tables.items():
            if not name.startswith("."):
                items[name] = TiltSeries(self.root, name, path, records.get(name))
        return {name: items[name] for name in sorted(items, key=natural_key)}

    def __getitem__(self, name: str) -> Any:
        record = self.store.read(name)
        if record is not None:
            path = Path(record.input.path)
            if record.kind == "series":
                here = table_path(self.root, name)
                return TiltSeries(self.root, name, here if here.exists() else path, record)
            return Movie(self.root, name, path, record, record.kind)
        items = self.items
        if name in items:
            return items[name]
        similar = [item for item, movie in items.items() if movie.source.stem == name]
        if len(similar) == 1:
            return items[similar[0]]
        hint = f"; there are {', '.join(similar)}" if similar else f" among its {len(items)}"
        raise SessionError(f"{self.root} has no item {name!r}{hint}.")

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items.values())

    def __len__(self) -> int:
        return len(self.items)

    def status(self) -> dict[str, ItemStatus]:
        """How every item stands, by name."""
        settings, items = self.settings, self.items_of(self.summaries())
        series = {name for name, item in items.items() if item.kind == "series"}
        verdicts = self.selection.judge({name: item.metrics for name, item in items.items()}, series)
        out = {}
        for name, item in items.items():
            if item.record is None:
                states = {n: StepState("new", again=True) for n in steps_of(item.kind)}
                out[name] = ItemStatus("new", states, verdicts[name])
            else:
                states = step_states(item.record, settings, self.root)
                out[name] = ItemStatus(item_state(states), states, verdicts[name])
        return out

    # ------------------------------------------------------------------ work

    run = running.run  # a function of a session is a method of it; its help is there

    # ------------------------------------------------------------------ tables

    def write_tables(self, records: Mapping[str, Record]) -> None:
        """Write micrographs.star, its like of those selected or prepared, particles.star, tomograms.star."""
        write_tomograms_star(self.root / "tomograms.star", records.values(), self.root)
        if records and all(record.kind != "movie" for record in records.values()):
            return  # tilts are no micrographs
        write_micrographs_star(self.root / "micrographs.star", records.values(), self.root)
        prepared = self.root / "micrographs_preprocessed.star"
        if any(map(is_prepared, records.values())):
            write_micrographs_star(prepared, records.values(), self.root, prepared=True)
        else:
            prepared.unlink(missing_ok=True)
        chosen = list(records.values())
        if (self.root / "selection.json").exists():
            verdicts = self.selection.judge({name: record.metrics for name, record in records.items()})
            chosen = [record for name, record in records.items() if verdicts[name].selected]
            write_micrographs_star(self.root / "micrographs_selected.star", chosen, self.root)
        if any("particles" in record.steps for record in records.values()):
            write_session_particles(self.root, chosen)

    def reindex(self) -> int:
        """Make index.sqlite and the tables again from the records; the number of items.

        Raises
        ------
        SessionError
            When a run is going on.
        """
        with SessionLock(self.root):
            (self.root / index.FILE_NAME).unlink(missing_ok=True)
            records = self.summaries(write_index=True)
            self.write_tables(records)
            return len(records)

    # ------------------------------------------------------------------ selection

    @property
    def selection(self) -> Selection:
        """What was selected: ranges and decisions by hand."""
        return Selection.load(self.root)

    def verdict(self, name: str) -> Verdict:
        """Whether the selection takes one item; reads the other records only where that depends on them."""
        selection = self.selection
        found = self.summaries() if selection.among_all else self.store.read_all([name])
        metrics: dict[str, Mapping[str, Any]] = {name: {}}
        metrics.update({item: record.metrics for item, record in found.items()})
        series = {name} if name in found and found[name].kind == "series" else set()
        return selection.judge(metrics, series)[name]

    def select(self, selection: Selection) -> dict[str, Verdict]:
        """Keep a selection and write micrographs_selected.star; the verdict on every item with a record."""
        return dict(self.select_with_counts(selection).verdicts)

    def select_with_counts(self, selection: Selection) -> Judgement:
        """:meth:`select`, which also tells what each range does."""
        records = self.summaries()
        selection.save(self.root)
        self.write_tables(records)
        return selection.judgement(
            {n: record.metrics for n, record in records.items() if record.kind != "series"}
        )


def open(root: str | Path) -> Session:
    """Open a session.

    Raises
    ------
    SessionError
        When there is none.
    """
    return Session(root)


def new(root: str | Path, **settings: Any) -> Session:
    """Make a session.

    Parameters
    ----------
    root : path-like
        Its folder; made where it is missing.
    **settings
        Keys of [input] (``frames``, ``pixel_size``, ``voltage``, ``cs``, ``amplitude`` and ``dose_per_frame``
        are required), and whole sections as dictionaries: ``ctf={"range_max": 4.0}``.

    Raises
    ------
    SettingsError
        For an unknown key or a bad value; nothing is written.
    SessionError
        When there is a session already.
    """
    root = Path(root)
    if (root / config.FILE_NAME).exists():
        raise SessionError(f"{root} is a session already; delete its {config.FILE_NAME} to start again.")
    sections = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    given = {name: value for name, value in settings.items() if name not in sections and value is not None}
    for key in ("frames", "mdoc"):
        if given.get(key) is not None:
            patterns = [given[key]] if isinstance(given[key], str | Path) else list(given[key])
            given[key] = tuple(str(Path(pattern).expanduser().absolute()) for pattern in patterns)
    for name in ("gain", "defects"):
        if given.get(name):
            path = Path(given[name]).expanduser().absolute()
            if not path.is_file():
                raise SettingsError(f"{name}: there is no file {path}.")
            given[name] = str(path)
    checked = config.from_plain({"input": given, **sections}, "weft new")
    root.mkdir(parents=True, exist_ok=True)
    config.write_new(root, checked)
    return Session(root)
