"""Maps of the Electron Microscopy Data Bank, by number."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from weft.errors import InputFileError, RequestError
from weft.formats.atomic import atomic_write
from weft.formats.mrc import read_header

__all__ = ["SERVER", "cache_folder", "fetch_map", "map_url"]

SERVER = "https://ftp.ebi.ac.uk/pub/databases/emdb/structures"
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/weft``, or ``~/.cache/weft``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "weft"


def map_url(number: int, server: str | None = None) -> str:
    """The address of an entry's map."""
    return f"{server or SERVER}/EMD-{number}/map/emd_{number}.map.gz"


def fetch_map(number: int, *, server: str | None = None, timeout: float = 60.0) -> Path:
    """The map of an EMDB entry, from the cache or from the network.

    Parameters
    ----------
    number : int
        3883 for EMD-3883.
    server : str, optional
        In place of the EBI's.
    timeout : float
        Seconds without an answer after which it is given up.

    Returns
    -------
    Path
        An MRC file, packed, in the cache; its header has been read.

    Raises
    ------
    RequestError
        No such entry, or no way to reach the server.
    """
    url = map_url(number, server)
    path = cache_folder() / f"emd_{number}.map.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(url, path, timeout)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise RequestError(f"EMD-{number}: the EMDB has no map at {url}; check the number.") from None
            raise RequestError(_by_hand(number, url, f"{error.code} {error.reason}")) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise RequestError(_by_hand(number, url, str(reason))) from None
    try:
        read_header(path)
    except InputFileError as error:
        path.unlink(missing_ok=True)
        raise RequestError(_by_hand(number, url, f"what came is no map: {error.message}")) from None
    return path


def _by_hand(number: int, url: str, reason: str) -> str:
    return (
        f"EMD-{number} cannot be downloaded ({reason}); download {url} by hand and give the file with --map."
    )


def _download(url: str, path: Path, timeout: float) -> None:
    with urllib.request.urlopen(url, timeout=timeout) as answer, atomic_write(path) as file:
        expected = answer.headers.get("Content-Length")
        got = 0
        while block := answer.read(_CHUNK):
            file.write(block)
            got += len(block)
        if expected is not None and got != int(expected):
            raise OSError(f"the connection ended after {got} of {expected} bytes")
