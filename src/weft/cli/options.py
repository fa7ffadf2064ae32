"""Command line options made from settings models, so that nothing is written twice."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Optional, get_args

import typer

from weft.errors import SettingsError
from weft.session.fields import FieldDoc, describe, format_value, parse_value
from weft.settings import Settings

__all__ = ["JsonOption", "SessionArgument", "keep_options", "settings_options", "split_assignment"]

SessionArgument = Annotated[Path, typer.Argument(help="The session's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def _help(doc: FieldDoc) -> str:
    facts = [f"in {doc.unit}" if doc.unit else "", "" if doc.is_flag else doc.allowed]
    if doc.required:
        facts.append("required")
    elif doc.default is not None:
        facts.append(f"default {format_value(doc.default)}")
    return f"{doc.description} [{'; '.join(fact for fact in facts if fact)}]"


def _option(doc: FieldDoc, flag: str) -> inspect.Parameter:
    if doc.is_flag:
        option = typer.Option(None, f"--{flag}/--no-{flag}", help=_help(doc), show_default=False)
        kind: Any = Optional[bool]  # noqa: UP045  (typer evaluates it)
    elif doc.allowed.startswith("a list of"):
        option = typer.Option(None, f"--{flag}", help=_help(doc), show_default=False, metavar="...")
        kind = Optional[list[str]]  # noqa: UP045
    else:
        metavar = (
            (doc.unit or "VALUE").replace("/", "_PER_") if not doc.unit or doc.unit.isascii() else "VALUE"
        )
        option = typer.Option(None, f"--{flag}", help=_help(doc), show_default=False, metavar=metavar)
        kind = Optional[str]  # noqa: UP045
    return inspect.Parameter(doc.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def settings_options(
    model: type[Settings],
    into: str = "settings",
    *,
    names: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a typer command one option for every field of a settings model.

    The command's parameter `into` receives a dictionary of the values that were given, checked one by
    one; what was left out is not in it.

    Parameters
    ----------
    model : type of Settings
    into : str
        The parameter of the command that gets the values.
    names : dict, optional
        Field → option name where it is not the field's own: ``{"dose_per_frame": "dose"}``.
    skip : collection of str
        Fields without an option.
    """
    names = names or {}
    docs = [describe(model, name) for name in model.model_fields if name not in skip]
    flags = {doc.name: names.get(doc.name, doc.name.replace("_", "-")) for doc in docs}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(**arguments: Any) -> Any:
            given: dict[str, Any] = {}
            for doc in docs:
                value = arguments.pop(doc.name)
                if isinstance(value, list) and value and get_args(doc.annotation)[0] is not str:
                    value = ",".join(value)  # numbers may be given at once
                if isinstance(value, str):
                    value = parse_value(model, doc.name, value, f"--{flags[doc.name]}")
                if value is not None and value != []:
                    given[doc.name] = tuple(value) if isinstance(value, list) else value
            return command(**arguments, **{into: given})

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != into]
        parameters += [_option(doc, flags[doc.name]) for doc in docs]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def keep_options(root: Path, section: str, values: Mapping[str, Any]) -> None:
    """Write what was given on the command line into a section of the session's weft.toml."""
    from weft.session.config import edit_file

    if values:
        texts = {key: format_value(value) for key, value in values.items()}
        # text is edited without its quotes
        plain = {key: text[1:-1] if text.startswith('"') else text for key, text in texts.items()}
        edit_file(root, {f"{section}.{key}": text for key, text in plain.items()})


def split_assignment(text: str) -> tuple[str, str]:
    """``section.key=value`` in its two parts.

    Raises
    ------
    SettingsError
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set {text}: write it as section.key=value.")
    return key.strip(), value.strip()
