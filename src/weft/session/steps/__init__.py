"""One file a step. To add a step, put a file here that defines ``STEP``; nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import TopologicalSorter
from types import MappingProxyType
from typing import TYPE_CHECKING

from weft.errors import SettingsError

if TYPE_CHECKING:
    from weft.session.step import Step

__all__ = ["all_steps", "steps_of", "with_prerequisites"]


@cache
def all_steps() -> Mapping[str, Step]:
    """Every step by name, each one after those that it needs."""
    found: dict[str, Step] = {}
    for module in pkgutil.iter_modules(__path__):
        step = importlib.import_module(f"{__name__}.{module.name}").STEP
        found[step.name] = step
    needs = {name: (*found[name].after, *found[name].of_tilts) for name in sorted(found)}
    return MappingProxyType({name: found[name] for name in TopologicalSorter(needs).static_order()})


def steps_of(kind: str, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """Those of the named steps, or of all, that items of a kind have."""
    steps = all_steps()
    return tuple(name for name in (steps if names is None else names) if kind in steps[name].kinds)


def with_prerequisites(names: Iterable[str] | None) -> list[str]:
    """The named steps and all that they need, in order; every step for None.

    Raises
    ------
    SettingsError
        For a name that is no step.
    """
    steps = all_steps()
    if names is None:
        return list(steps)
    wanted: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in steps:
            raise SettingsError(f"{name!r} is not a step; there are {', '.join(steps)}.")
        wanted.add(name)
        needs = (*steps[name].after, *steps[name].of_tilts)
        pending += [needed for needed in needs if needed not in wanted]
    return [name for name in steps if name in wanted]
