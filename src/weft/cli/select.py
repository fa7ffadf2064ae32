"""weft select."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from weft.cli.options import JsonOption, SessionArgument

if TYPE_CHECKING:
    from weft.session.selection import FilterCount, Selection

app = typer.Typer(rich_markup_mode=None, add_completion=False)


def _range_options(command: Any) -> Any:
    """One option for every quantity that can be filtered by."""
    import functools

    from weft.session.selection import QUANTITIES

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        ranges = {name: arguments.pop(name) for name in QUANTITIES}
        command(**arguments, ranges={name: text for name, text in ranges.items() if text is not None})

    parameters = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.name != "ranges"
    ]
    for name, quantity in QUANTITIES.items():
        unit = f", {quantity.unit}" if quantity.unit else ""
        flag = f"--{name.replace('_', '-')}"
        option = typer.Option(None, flag, metavar="LOW:HIGH", help=f"{quantity.description}{unit}.")
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=option, annotation=Optional[str]))  # noqa: UP045
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _line(name: str, selection: Selection, count: FilterCount) -> str:
    """What one range does, in words."""
    from weft.session.selection import QUANTITIES

    low, high = selection.ranges[name]
    bounds = f"{'' if low is None else f'{low:g}'}:{'' if high is None else f'{high:g}'}"
    unit = f" {QUANTITIES[name].unit}" if QUANTITIES[name].unit else ""
    head = f"{name} {bounds}{unit}: "
    if not count.passes and not count.rejects:
        return head + (
            "not measured in any item, so none is selected" if count.unmeasured else "nothing is measured yet"
        )
    parts = [f"{count.passes} {'passes' if count.passes == 1 else 'pass'}"]
    if count.rejects:
        parts.append(f"{count.rejects} {'lies' if count.rejects == 1 else 'lie'} outside")
    if count.unmeasured:
        parts.append(f"{count.unmeasured} not measured")
    alone = f"; {count.only} left out by this alone" if count.only else ""
    return head + ", ".join(parts) + alone


@app.command()
@_range_options
def select(
    session: SessionArgument,
    include: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="Take it in any case.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="Never take it.")] = None,
    undecide: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="Ask the ranges again.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget all ranges and decisions first.")] = False,
    as_json: JsonOption = False,
    ranges: Any = None,
) -> None:
    """Choose micrographs by their metrics or by hand; writes micrographs_selected.star.

    A range is LOW:HIGH, and either may be left out; ":" removes a range. What was chosen before stays.
    Says for every range how many items lie within it, and how many it alone leaves out.
    """
    import json

    from weft.session.selection import Selection, parse_range
    from weft.session.session import open as open_session

    opened = open_session(session)
    selection = Selection() if reset else opened.selection
    for name, text in ranges.items():
        selection = selection.with_range(name, *parse_range(text))
    for accept, names in ((True, include), (False, exclude), (None, undecide)):
        selection = selection.decide_all([opened[name].name for name in names or ()], accept)
    result = opened.select_with_counts(selection)
    verdicts = result.verdicts
    chosen = [name for name, verdict in verdicts.items() if verdict.selected]
    if as_json:
        left_out = {name: list(v.reasons) for name, v in verdicts.items() if not v.selected}
        filters = {
            name: {"range": list(selection.ranges[name]), **vars(count)}
            for name, count in result.counts.items()
        }
        report = {"selected": chosen, "left_out": left_out, "filters": filters}
        typer.echo(json.dumps(report, indent=1, ensure_ascii=False))
        return
    for name, count in result.counts.items():
        typer.echo(_line(name, selection, count))
    for word, found in (("included", selection.include), ("excluded", selection.exclude)):
        if found:
            typer.echo(f"{_items(len(found))} {word} by hand")
    if not result.measured:
        typer.echo(f"kept; nothing is measured yet, so nothing can be chosen: weft run {opened.root}")
        return
    waiting = len(verdicts) - result.measured
    note = f" ({_items(waiting)} not measured)" if waiting else ""
    path = opened.root / "micrographs_selected.star"
    typer.echo(f"{len(chosen)} of {_items(result.measured)} selected{note}: {path}")


def _items(count: int) -> str:
    return f"{count} item{'' if count == 1 else 's'}"
