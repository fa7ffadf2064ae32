"""What is done, what is stale, what has failed, and what a run has to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weft.session.config import SessionSettings
from weft.session.records import FileIdentity, Record, fingerprint
from weft.session.step import fingerprint_basis
from weft.session.steps import all_steps
from weft.session.tilt_table import current_input

__all__ = [
    "Expectations",
    "State",
    "StepState",
    "expected_fingerprints",
    "item_state",
    "states_under",
    "step_states",
    "steps_to_run",
]

State = Literal["done", "failed", "stale", "new"]


@dataclass(frozen=True)
class StepState:
    """How one step of one item stands, and why.

    Attributes
    ----------
    state : ``"done"``, ``"failed"``, ``"stale"`` or ``"new"``
    reason : str
        For people; empty when done or new.
    again : bool
        Whether a run would do it (failures of the item's own are not tried again unasked).
    """

    state: State
    reason: str = ""
    again: bool = False


class Expectations:
    """What the settings ask of every item: made once, asked for thousands.

    Parameters
    ----------
    settings : SessionSettings
    root : Path
        The session.

    Attributes
    ----------
    bases : dict
        Step that the settings ask for → what its fingerprint has in common for all items.
    reads : dict
        Step → the settings that it reads.
    """

    def __init__(self, settings: SessionSettings, root: Path) -> None:
        self.settings = settings
        self.root = root
        wanted = {name: step for name, step in all_steps().items() if step.wanted(settings)}
        self.bases = {name: fingerprint_basis(step, settings, root) for name, step in wanted.items()}
        self.reads = {name: step.reads(settings) for name, step in wanted.items()}

    def kind_of(self, kind: str) -> str:
        """What an item is under these settings: movies become tilts when the session is told of mdocs.

        Parameters
        ----------
        kind : str
            What it was when its record was written.
        """
        return kind if kind == "series" else "tilt" if self.settings.input.of_tilts else "movie"

    def fingerprints(self, kind: str, content: str) -> dict[str, str]:
        """The fingerprint that each step of an item would have if it ran now.

        Parameters
        ----------
        kind : str
            Of the item.
        content : str
            Hash of its input.
        """
        out: dict[str, str] = {}
        for name, basis in self.bases.items():
            step = all_steps()[name]
            if kind in step.kinds:
                # what the settings do not ask for is not waited for
                after = {before: out[before] for before in step.after if before in out}
                # the same step does other things to a tilt than to a movie
                of_kind = {"kind": kind} if kind == "tilt" else {}
                out[name] = fingerprint({**basis, **of_kind, "source": content, "after": after})
        return out


def expected_fingerprints(
    kind: str, source: FileIdentity, settings: SessionSettings, root: Path
) -> dict[str, str]:
    """The fingerprint that each step of one item would have if it ran now."""
    return Expectations(settings, root).fingerprints(kind, source.content)


def step_states(
    record: Record, settings: SessionSettings, root: Path, source: FileIdentity | None = None
) -> dict[str, StepState]:
    """How every step of one item stands.

    Parameters
    ----------
    source : FileIdentity, optional
        The input as it is now; looked at when not given.
    """
    return states_under(Expectations(settings, root), record, source or current_input(record))


def states_under(
    expectations: Expectations,
    record: Record,
    source: FileIdentity,
    exists: Callable[[str], bool] | None = None,
) -> dict[str, StepState]:
    """How every step of one of many items stands, as what it is under these settings.

    Parameters
    ----------
    source : FileIdentity
        The input as it is now.
    exists : callable, optional
        Whether an output is there, by its path in the session; each is looked for when not given.
    """
    root = expectations.root
    there = exists or (lambda path: (root / path).exists())
    expected = expectations.fingerprints(expectations.kind_of(record.kind), source.content)
    out: dict[str, StepState] = {}
    for name, wanted in expected.items():
        step = all_steps()[name]
        done = record.steps.get(name)
        if done is None:
            out[name] = StepState("new", again=True)
        elif done.fingerprint != wanted:
            before = [n for n in step.after if n in out and out[n].state != "done"]
            if source.content != record.input.content:
                of_series = "its tilts have changed"
                reason = of_series if record.kind == "series" else "the input file has changed"
            elif before:
                reason = f"{', '.join(before)} must run first"
            elif changed := _changed(done.settings, expectations.reads[name]):
                reason = f"changed: {', '.join(changed)}"
            else:
                reason = "an input file or an earlier step has changed"
            out[name] = StepState("stale", reason, again=True)
        elif done.status == "failed":
            error = done.error
            fault = error is not None and error.item_fault
            out[name] = StepState("failed", error.message if error else "", again=not fault)
        elif missing := [path for path in done.outputs.values() if not there(path)]:
            out[name] = StepState("stale", f"{missing[0]} is missing", again=True)
        elif any(out[n].state != "done" for n in step.after if n in out):
            out[name] = StepState("stale", f"{', '.join(step.after)} must run first", again=True)
        else:
            out[name] = StepState("done")
    return out


def _changed(old: Mapping[str, Mapping[str, object]], new: Mapping[str, Mapping[str, object]]) -> list[str]:
    return [
        f"{section}.{key}"
        for section, values in new.items()
        for key, value in values.items()
        if old.get(section, {}).get(key) != value
    ]


def item_state(states: Mapping[str, StepState]) -> State:
    """One word for an item: the worst of its steps, failures first."""
    found = {state.state for state in states.values()}
    worst: tuple[State, ...] = ("failed", "stale", "new")
    return next((state for state in worst if state in found), "done")


def steps_to_run(states: Mapping[str, StepState], wanted: Iterable[str], *, retry: bool = False) -> list[str]:
    """The wanted steps that have to run, in order; none after one that stays failed."""
    todo: list[str] = []
    blocked: set[str] = set()
    for name in wanted:
        if name not in states:
            continue
        state = states[name]
        after = all_steps()[name].after
        if any(n in blocked for n in after) or (state.state == "failed" and not (retry or state.again)):
            blocked.add(name)
        elif state.state != "done" or any(n in todo for n in after):
            todo.append(name)
    return todo
