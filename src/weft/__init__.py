"""Weft: real-time pre-processing of cryo-EM movies and cryo-ET tilt series.

::

    import weft
    session = weft.open("SESSION")
    session.run(steps=["motion", "ctf"])
    movie = session["stem"]
    movie.track(xy), movie.ctf.at(xy), movie.metrics

Names are loaded when they are first used, so that ``import weft`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from weft.__about__ import __version__

# torch's idle threads spin by default, which on busy cores costs several times the work itself; they read
# this once, when torch is first imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from weft.defocus.micrograph import CTFModel, CTFSettings, fit_ctf
    from weft.errors import (
        CorruptError,
        FitError,
        FormatError,
        GainError,
        InputFileError,
        ItemError,
        RequestError,
        SessionError,
        SettingsError,
        TruncatedError,
        WeftError,
    )
    from weft.micrographs.preprocessing import Preprocessed, PreprocessSettings, preprocess
    from weft.movies.average import AverageSettings, make_average
    from weft.movies.motion import MotionModel, MotionSettings, fit_motion
    from weft.physics.optics import Optics
    from weft.session.items import Movie
    from weft.session.run_report import RunReport
    from weft.session.session import Session, new, open

#: Public name → module that defines it. The whole public API is here.
_PUBLIC = {
    "AverageSettings": "weft.movies.average",
    "CTFModel": "weft.defocus.micrograph",
    "CTFSettings": "weft.defocus.micrograph",
    "CorruptError": "weft.errors",
    "FitError": "weft.errors",
    "FormatError": "weft.errors",
    "GainError": "weft.errors",
    "InputFileError": "weft.errors",
    "ItemError": "weft.errors",
    "MotionModel": "weft.movies.motion",
    "MotionSettings": "weft.movies.motion",
    "Movie": "weft.session.items",
    "Optics": "weft.physics.optics",
    "PreprocessSettings": "weft.micrographs.preprocessing",
    "Preprocessed": "weft.micrographs.preprocessing",
    "RequestError": "weft.errors",
    "RunReport": "weft.session.run_report",
    "Session": "weft.session.session",
    "SessionError": "weft.errors",
    "SettingsError": "weft.errors",
    "TruncatedError": "weft.errors",
    "WeftError": "weft.errors",
    "fit_ctf": "weft.defocus.micrograph",
    "fit_motion": "weft.movies.motion",
    "make_average": "weft.movies.average",
    "new": "weft.session.session",
    "open": "weft.session.session",
    "preprocess": "weft.micrographs.preprocessing",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
