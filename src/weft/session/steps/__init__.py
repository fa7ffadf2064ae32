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

__all__ = ["all_steps", "with_prerequisites"]


@cache
def all_steps() -> Mapping[str, Step]:
    """Every step by name, each one after those that it needs."""
    found: dict[str, Step] = {}
    for module in pkgutil.iter_modules(__path__):
        step = importlib.import_module(f"{__name__}.{module.name}").STEP
        found[step.name] = step
    order = TopologicalSorter({name: found[name].after for name in sorted(found)}).static_order()
    return MappingProxyType({name: found[name] for name in order})


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
        pending += [needed for needed in steps[name].after if needed not in wanted]
    return [name for name in steps if name in wanted]
