"""pytom_match_template.py with --no-tomogram-ctf: the tomogram's filter then holds the missing wedge only.

Version 0.14 multiplies the tomogram, too, with the CTF of the middle tilt whenever it knows defocus values:
the score then holds that CTF twice. No option of its own prevents it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from pytom_tm import entry_points, tmjob

_FLAG = "--no-tomogram-ctf"
_SWITCH = "PYTOM_NO_TOMOGRAM_CTF"  # for the processes that a split search starts: they import this file, too

_create_wedge = tmjob.create_wedge


def _without_ctf(*arguments: Any, per_tilt_weighting: bool | None = None, **settings: Any) -> Any:
    """The job asks for "no per-tilt weighting" by name for the tomogram's filter alone."""
    if per_tilt_weighting is False:
        shape, series, *rest = arguments
        arguments = (shape, series.replace(ctf_data=None), *rest)
    return _create_wedge(*arguments, per_tilt_weighting=per_tilt_weighting, **settings)


if _FLAG in sys.argv:
    os.environ[_SWITCH] = "1"
if _SWITCH in os.environ:
    tmjob.create_wedge = _without_ctf

if __name__ == "__main__":
    entry_points.match_template([word for word in sys.argv[1:] if word != _FLAG])
