"""Write docs/reference/settings.md and cli.md from the settings models and the commands themselves.

Run it after a change of either: ``make docs``. tests/test_docs.py fails where they have drifted apart.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.core
import typer.main

from weft.cli import COMMANDS, app
from weft.session.config import sections
from weft.session.fields import describe_all, format_value
from weft.session.selection import QUANTITIES
from weft.session.steps import all_steps

HERE = Path(__file__).resolve().parent
MARK = "<!-- Made by docs/make_reference.py: change the settings models or the commands, not this page. -->"

SECTIONS = {
    "input": "Where the data are and what the microscope did. `weft new` asks for what has no default; "
    "relative paths are relative to the session's folder.",
    "motion": "How motion is estimated: [science/motion.md](../science/motion.md).",
    "average": "What is written about an aligned movie.",
    "preprocess": "A prepared copy of every average, made when any operation is switched on: "
    "[howto/preprocess.md](../howto/preprocess.md).",
    "ctf": "How the contrast transfer function is fitted: [science/ctf.md](../science/ctf.md).",
    "alerts": "When a live session draws attention to itself: [howto/advice.md](../howto/advice.md). "
    "No result depends on it.",
    "advice": "What to tell the acquisition, off by default: [howto/advice.md](../howto/advice.md). "
    "No result depends on it.",
    "engine": "How the work is spread over processes. No result depends on it, so a change makes nothing "
    "stale.",
    "live": "How `weft live` takes in files: [howto/live.md](../howto/live.md). No result depends on it.",
}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("**", "\\*\\*")


def settings_page() -> str:
    """Every section of weft.toml as a table."""
    lines = [
        "# Settings",
        "",
        MARK,
        "",
        "`weft.toml` in the session's folder holds all settings, each with a comment. Change them there, "
        "with `weft settings SESSION KEY VALUE`, or with `weft run SESSION --set KEY=VALUE`; a key is "
        '`section.name`. Unknown keys and values outside their limits are errors. TOML has no none: `""` '
        "stands for it.",
    ]
    readers: dict[str, list[str]] = {}
    input_keys: dict[str, list[str]] = {}
    for step in all_steps().values():
        for name in step.sections:
            readers.setdefault(name, []).append(step.name)
        for key in step.input_keys:
            input_keys.setdefault(key, []).append(step.name)
    for section, model in sections().items():
        lines += ["", f"## [{section}]", "", SECTIONS.get(section, inspect.getdoc(model) or "")]
        if section in readers:
            lines[-1] += f" A change makes {' and '.join(readers[section])}, and what follows, stale."
        by_key = section == "input"
        head = ["key", "default", "unit", "allowed", "what it is", *(["read by"] if by_key else [])]
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for doc in describe_all(model):
            default = "required" if doc.required else f"`{format_value(doc.default)}`"
            row = [f"`{doc.name}`", default, doc.unit, _cell(doc.allowed), _cell(doc.description)]
            if by_key:
                row.append(", ".join(input_keys.get(doc.name, [])))
            lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "## Selection",
        "",
        "What `weft select` filters by is kept in `selection.json`, apart from the settings: a selection "
        "makes nothing stale.",
        "",
        "| quantity | unit | what it is | metric of the record |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{n}` | {q.unit} | {_cell(q.description)} | `{q.metric}` |" for n, q in QUANTITIES.items()]
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name: ``("weft export motion", command)``."""
    group = typer.main.get_command(app)
    yield "weft", group
    context = group.make_context("weft", ["doctor"], resilient_parsing=True)
    for name in COMMANDS:
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        inside = getattr(command, "commands", None)
        if not inside:
            yield f"weft {name}", command
        for sub, subcommand in (inside or {}).items():
            yield f"weft {name} {sub}", subcommand


def _is_argument(parameter: Any) -> bool:
    return isinstance(parameter, typer.core.TyperArgument)


def _rows(command: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        text = parameter.help or ""
        if _is_argument(parameter):
            optional = "" if parameter.required else " (optional)"
            yield f"`{parameter.name.upper()}`{optional}", _cell(text)
            continue
        names = " / ".join([*parameter.opts, *parameter.secondary_opts])
        value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
        plain = isinstance(parameter.default, int | float | str) and not isinstance(parameter.default, bool)
        default = f" [default {parameter.default}]" if plain else ""
        yield f"`{names}{value}`", _cell(text) + default


def cli_page() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# Commands",
        "",
        MARK,
        "",
        "`weft COMMAND --help` says the same. Options that stand for settings take the values that "
        "`weft.toml` takes. Exit codes: 0 done, 1 some items failed (the rest are finished and written), 2 "
        "the request was wrong and nothing was done, 130 stopped with Ctrl-C.",
    ]
    for name, command in commands():
        if name == "weft":
            lines += ["", "## weft", ""]
        else:
            arguments = [p for p in command.params if _is_argument(p)]
            shown = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
            lines += ["", f"## {name}", "", f"    {' '.join([name, *shown, '[OPTIONS]'])}", ""]
        text = inspect.cleandoc(command.help or "")
        lines += [text, "", "| | |", "|---|---|"]
        lines += [f"| {left} | {right} |" for left, right in _rows(command)]
    return "\n".join(lines) + "\n"


PAGES = {HERE / "reference" / "settings.md": settings_page, HERE / "reference" / "cli.md": cli_page}


def main() -> int:
    """Write the pages."""
    for path, page in PAGES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(page(), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
