"""Every error that Weft raises on purpose.

::

    WeftError
    ├── RequestError            the request was wrong: exit code 2
    │   ├── SettingsError       a setting has no such name, or a value outside its limits
    │   └── SessionError        no such session or item; another process holds it
    └── ItemError               this item cannot be processed; the others go on: exit code 1
        ├── InputFileError      a file of this item cannot be used
        │   ├── FormatError     not the format that it claims to be, or a variant that is not supported
        │   ├── TruncatedError  shorter than its header says
        │   └── CorruptError    of the right length, but a part of it cannot be decoded
        ├── GainError           the gain reference does not fit the movie
        └── FitError            the data do not support the fit that was asked for

A message is one sentence: which file, which item or frame, what was expected, what to do.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CorruptError",
    "FitError",
    "FormatError",
    "GainError",
    "InputFileError",
    "ItemError",
    "RequestError",
    "SessionError",
    "SettingsError",
    "TruncatedError",
    "WeftError",
]


class WeftError(Exception):
    """Base of all errors raised on purpose."""


class RequestError(WeftError):
    """The request was wrong; nothing was done."""


class SettingsError(RequestError):
    """A setting has no such name, or a value outside its limits."""


class SessionError(RequestError):
    """No such session or item, or somebody else holds it."""


class ItemError(WeftError):
    """One item cannot be processed; it costs that item and nothing else."""


class InputFileError(ItemError):
    """A file cannot be used.

    Parameters
    ----------
    path : path-like
        The file.
    message : str
        What is wrong with it and what to do, without the file's name.
    frame : int, optional
        The frame (0-based) at which reading failed.
    """

    def __init__(self, path: str | Path, message: str, frame: int | None = None) -> None:
        self.path = Path(path)
        self.message = message
        self.frame = frame
        where = f"{path}" if frame is None else f"{path}, frame {frame}"
        super().__init__(f"{where}: {message}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.message, self.frame)


class FormatError(InputFileError):
    """Not the format that it claims to be, or a variant that is not supported."""


class TruncatedError(InputFileError):
    """The file is shorter than its header says."""


class CorruptError(InputFileError):
    """The file is complete, but a part of it cannot be decoded."""


class GainError(ItemError):
    """The gain reference or defect map does not fit the movie."""


class FitError(ItemError):
    """The data do not support the fit that was asked for."""
