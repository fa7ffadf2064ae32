"""The public API is this list and nothing else; a name is added here on purpose or not at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

import weft

PUBLIC = [
    "AverageSettings",
    "CTFModel",
    "CTFSettings",
    "CorruptError",
    "FitError",
    "FormatError",
    "GainError",
    "InputFileError",
    "ItemError",
    "MotionModel",
    "MotionSettings",
    "Movie",
    "Optics",
    "PreprocessSettings",
    "Preprocessed",
    "RequestError",
    "RunReport",
    "Session",
    "SessionError",
    "SettingsError",
    "TruncatedError",
    "WeftError",
    "__version__",
    "fit_ctf",
    "fit_motion",
    "make_average",
    "new",
    "open",
    "preprocess",
]


def test_the_list() -> None:
    assert sorted(weft.__all__) == PUBLIC
    assert {*weft._PUBLIC, "__version__"} == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(weft, name)
    assert isinstance(value, str) or value.__doc__


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = weft.nonsense  # type: ignore[attr-defined]


def test_importing_weft_imports_nothing_heavy() -> None:
    code = "import weft, sys; print(any(m in sys.modules for m in ('numpy', 'torch', 'pydantic', 'dask')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
