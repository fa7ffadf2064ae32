"""What is done, what is stale, what has failed, and what a run has to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weft.session.config import SessionSettings
from weft.session.records import FileIdentity, Record
from weft.session.step import expected_fingerprint
from weft.session.steps import all_steps

__all__ = ["State", "StepState", "expected_fingerprints", "item_state", "step_states", "steps_to_run"]

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


def expected_fingerprints(
    kind: str, source: FileIdentity, settings: SessionSettings, root: Path
) -> dict[str, str]:
    """The fingerprint that each step of an item would have if it ran now."""
    out: dict[str, str] = {}
    for name, step in all_steps().items():
        if kind in step.kinds and step.wanted(settings):
            out[name] = expected_fingerprint(step, settings, root, source, out)
    return out


def step_states(
    record: Record, settings: SessionSettings, root: Path, source: FileIdentity | None = None
) -> dict[str, StepState]:
    """How every step of an item stands.

    Parameters
    ----------
    source : FileIdentity, optional
        The input as it is now; looked at when not given.
    """
    source = source or record.input.refreshed()
    expected = expected_fingerprints(record.kind, source, settings, root)
    out: dict[str, StepState] = {}
    for name, wanted in expected.items():
        step = all_steps()[name]
        done = record.steps.get(name)
        if done is None:
            out[name] = StepState("new", again=True)
        elif done.fingerprint != wanted:
            before = [n for n in step.after if out[n].state != "done"]
            if source.content != record.input.content:
                reason = "the input file has changed"
            elif before:
                reason = f"{', '.join(before)} must run first"
            elif changed := _changed(done.settings, step.reads(settings)):
                reason = f"changed: {', '.join(changed)}"
            else:
                reason = "an input file or an earlier step has changed"
            out[name] = StepState("stale", reason, again=True)
        elif done.status == "failed":
            error = done.error
            fault = error is not None and error.item_fault
            out[name] = StepState("failed", error.message if error else "", again=not fault)
        elif missing := [path for path in done.outputs.values() if not (root / path).exists()]:
            out[name] = StepState("stale", f"{missing[0]} is missing", again=True)
        elif any(out[n].state != "done" for n in step.after):
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
