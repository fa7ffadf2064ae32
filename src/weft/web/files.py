"""Finding a result's file: always from the session's own knowledge, never outside its folder."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Outside", "check_folder", "inside"]


class Outside(Exception):
    """The file lies outside the session, whatever it is called."""


def inside(root: Path, relative: str) -> Path:
    """The real path of a file of the session, links followed.

    Parameters
    ----------
    root : Path
        The session.
    relative : str
        As a record names it.

    Raises
    ------
    Outside
        For an absolute path, ``..``, or a link that leads elsewhere.
    FileNotFoundError
        When it is not there, or is no plain file.
    """
    real_root = root.resolve()
    try:
        path = (real_root / relative).resolve()
    except (OSError, RuntimeError, ValueError):
        # a loop of links, or a name that no file system takes
        raise FileNotFoundError(relative) from None
    if not path.is_relative_to(real_root):
        raise Outside(relative)
    if not path.is_file():
        raise FileNotFoundError(relative)
    return path


def check_folder(root: Path, folder: Path) -> None:
    """Make sure that a folder of the session, about to be written to, is no link to somewhere else.

    Raises
    ------
    Outside
    """
    if not folder.resolve().is_relative_to(root.resolve()):
        raise Outside(str(folder))
