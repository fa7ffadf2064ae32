"""The deconvolution step: off until asked for, and made anew when what it uses changes."""

from __future__ import annotations

from collections.abc import Callable

import mrcfile
import numpy as np

from weft.session.session import Session


def test_written_only_when_asked_for(new_session: Callable[..., Session]) -> None:
    session = new_session()
    session.run(workers=0, only="movie_000")
    assert not (session.root / "deconv").exists()
    session.set("deconvolution.write", "true")
    assert session.run(workers=0, only="movie_000").exit_code == 0
    with (
        mrcfile.open(session.root / "deconv" / "movie_000.mrc") as m,
        mrcfile.open(session.root / "average" / "movie_000.mrc") as average,
    ):
        assert m.data.shape == average.data.shape
        assert float(m.voxel_size.x) == float(average.voxel_size.x)
        # the low-frequency contrast that the filter lifts
        assert np.isfinite(m.data).all()
        assert m.data.std() > 0
