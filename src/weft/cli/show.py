"""weft status, weft show."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.options import JsonOption, SessionArgument

if TYPE_CHECKING:
    from weft.session.session import ItemStatus, Session

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_SHOWN = 20


def _figures(opened: Session, found: dict[str, ItemStatus]) -> dict[str, Any]:
    states = Counter(status.state for status in found.values())
    steps: dict[str, Counter[str]] = {}
    for status in found.values():
        for name, step in status.steps.items():
            steps.setdefault(name, Counter())[step.state] += 1
    return {
        "session": str(opened.root),
        "items": {
            "total": len(found),
            **{state: states[state] for state in ("done", "failed", "stale", "new")},
            "selected": sum(status.verdict.selected and status.state == "done" for status in found.values()),
            "excluded": len(opened.selection.exclude),
        },
        "steps": {name: dict(counts) for name, counts in steps.items()},
        "failed": {name: s.reason for name, s in found.items() if s.state == "failed"},
        "stale": {name: s.reason for name, s in found.items() if s.state == "stale"},
    }


@app.command()
def status(
    session: SessionArgument,
    as_json: JsonOption = False,
) -> None:
    """How the items of a session stand: done, failed, stale or new, and why."""
    from weft.session.lock import SessionLock
    from weft.session.session import open as open_session

    opened = open_session(session)
    figures = _figures(opened, opened.status())
    holder = SessionLock(opened.root).living_holder()
    figures["running"] = {"pid": holder["pid"], "host": holder["host"]} if holder else None
    if as_json:
        typer.echo(json.dumps(figures, indent=1, ensure_ascii=False))
        return
    items = figures["items"]
    typer.echo(f"{opened.root}: {items['total']} item{'' if items['total'] == 1 else 's'}")
    for state in ("done", "stale", "new", "failed"):
        if items[state]:
            per_step = ", ".join(f"{n} {c[state]}" for n, c in figures["steps"].items() if c.get(state))
            typer.echo(f"  {state:<7}{items[state]:>6}   ({per_step})")
    typer.echo(f"  {'selected':<7}{items['selected']:>5}   ({items['excluded']} excluded by hand)")
    if holder:
        typer.echo(f"running: process {holder['pid']} on {holder['host']}")
    for kind in ("failed", "stale"):
        reasons = figures[kind]
        for name, reason in list(reasons.items())[:_SHOWN]:
            typer.echo(f"{kind}: {name}: {reason}")
        if len(reasons) > _SHOWN:
            typer.echo(f"... and {len(reasons) - _SHOWN} more (--json lists all)")


def _remarks(item: Any) -> list[str]:
    """Of a tilt series: which tilts are left out, and what each step has to say."""
    done = {name: step.results for name, step in item.record.steps.items() if step.status == "done"}
    stack, align, ctf = (done.get(name, {}) for name in ("stack", "align", "tilt_ctf"))
    out = [
        f"left out: tilt {tilt['index']} ({tilt['angle']:g}°), {tilt['reason']}"
        for tilt in stack.get("tilts", ())
        if not tilt["used"]
    ]
    out += [f"tilts: {note}" for note in stack.get("notes", ())]
    out += [f"alignment: {note}" for note in align.get("alignment", {}).get("notes", ())]
    out += [f"CTF: {note}" for note in ctf.get("ctf", {}).get("notes", ())]
    out += [f"hand: {ctf['handedness']['reason']}"] if "handedness" in ctf else []
    return out


@app.command()
def show(
    session: SessionArgument,
    item: Annotated[str, typer.Argument(help="Name of the item: the movie's file name without its ending.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole record, for programs.")] = False,
) -> None:
    """Everything that is known about one item: input, steps, metrics, files."""
    from weft.session.plan import step_states
    from weft.session.session import open as open_session

    opened = open_session(session)
    movie = opened[item]
    record = movie.record
    verdict = opened.verdict(movie.name) if record else None
    states = step_states(record, opened.settings, opened.root) if record else {}
    if as_json:
        data: dict[str, Any] = record.to_dict() if record else {"item": movie.name, "steps": {}}
        data["metrics"] = movie.metrics
        data["states"] = {name: {"state": s.state, "reason": s.reason} for name, s in states.items()}
        data["selected"] = verdict.selected if verdict else None
        typer.echo(json.dumps(data, indent=1, ensure_ascii=False))
        return
    typer.echo(f"{movie.name}\n  file      {movie.source}")
    if record is None or verdict is None:
        typer.echo("  not processed yet")
        return
    why = f" ({', '.join(verdict.reasons)})" if verdict.reasons else ""
    typer.echo(f"  selected  {'yes' if verdict.selected else 'no'}{why}")
    for name, state in states.items():
        seconds = record.timings.get(name)
        facts = [f"{seconds:.1f} s" if seconds is not None else "", state.reason]
        text = "; ".join(fact for fact in facts if fact)
        typer.echo(f"  {name:<9} {state.state}{f' ({text})' if text else ''}")
    for text in _remarks(movie):
        typer.echo(f"  {text}")
    typer.echo("metrics")
    for key, value in movie.metrics.items():
        typer.echo(f"  {key:<24} {f'{value:.6g}' if isinstance(value, float) else value}")
    typer.echo("files")
    for key, path in movie.paths.items():
        typer.echo(f"  {key:<24} {path}")
