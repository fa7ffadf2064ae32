"""pytom_match_template.py with --no-tomogram-ctf: the tomogram's filter then holds the missing wedge only.

Version 0.14 multiplies the tomogram, too, with the CTF of the middle tilt whenever it knows defocus values: the
score then holds that CTF twice; no option of its own prevents it.
"""

from __future__ import annotations

import sys
from typing import Any

from pytom_tm import entry_points, tmjob

_create_wedge = tmjob.create_wedge


def _without_ctf(*arguments: Any, per_tilt_weighting: bool | None = None, **settings: Any) -> Any:
    """The job asks for "no per-tilt weighting" by name for the tomogram's filter alone."""
    if per_tilt_weighting is False:
        shape, series, *rest = arguments
        arguments = (shape, series.replace(ctf_data=None), *rest)
    return _create_wedge(*arguments, per_tilt_weighting=per_tilt_weighting, **settings)


if __name__ == "__main__":
    words = sys.argv[1:]
    if "--no-tomogram-ctf" in words:
        words.remove("--no-tomogram-ctf")
        tmjob.create_wedge = _without_ctf
    entry_points.match_template(words)
