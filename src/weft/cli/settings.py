"""weft settings."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.cli.options import JsonOption, SessionArgument

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"ignore_unknown_options": True})  # -6 is a value
def settings(
    session: SessionArgument,
    key: Annotated[str | None, typer.Argument(help="section.key, or a section.")] = None,
    value: Annotated[str | None, typer.Argument(help="The new value.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Read or change the settings of a session. Changing one says what becomes stale.

    Without KEY all are listed, those that differ from their defaults marked with *. Comments in weft.toml
    are kept.
    """
    import json

    from weft.errors import SettingsError
    from weft.session.fields import describe, describe_all, format_value
    from weft.session.session import open as open_session

    opened = open_session(session)
    current = opened.settings
    if key is not None and value is not None:
        before = {name: status.state for name, status in opened.status().items()}
        opened.set(key, value)
        after = opened.status()
        section, name = key.split(".", 1)
        typer.echo(f"{key} = {format_value(getattr(opened.settings.values[section], name))}")
        stale = [n for n, status in after.items() if status.state == "stale" and before.get(n) != "stale"]
        if stale:
            steps = {step for n in stale for step, s in after[n].steps.items() if s.state == "stale"}
            typer.echo(f"{len(stale)} items became stale ({', '.join(sorted(steps))}); weft run {session}")
        return
    if as_json:
        plain = current.plain()
        if key is not None:
            section, _, name = key.partition(".")
            found = plain.get(section, {})
            typer.echo(json.dumps(found.get(name) if name else found, indent=1, ensure_ascii=False))
        else:
            typer.echo(json.dumps(plain, indent=1, ensure_ascii=False))
        return
    if key is None or "." not in key:
        if key is not None and key not in current.values:
            raise SettingsError(f"{key}: there is no such section; there are {', '.join(current.values)}.")
        for section, values in current.values.items():
            if key is not None and section != key:
                continue
            typer.echo(f"[{section}]")
            for doc in describe_all(type(values)):
                now = getattr(values, doc.name)
                mark = "*" if not doc.required and now != doc.default else " "
                unit = f"  {doc.unit}" if doc.unit else ""
                typer.echo(f"{mark} {doc.name} = {format_value(now)}{unit}")
        return
    section, _, name = key.partition(".")
    values_of = current.values.get(section)
    if values_of is None or name not in type(values_of).model_fields:
        raise SettingsError(f"{key} is not a setting; `weft settings {session}` lists all.")
    doc = describe(type(values_of), name)
    typer.echo(f"{key} = {format_value(getattr(values_of, name))}{f' {doc.unit}' if doc.unit else ''}")
    default = "required" if doc.required else f"default {format_value(doc.default)}"
    typer.echo(f"{doc.description} ({doc.allowed}; {default})")
