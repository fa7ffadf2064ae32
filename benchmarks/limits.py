"""What the machine itself needs for the least that has to be done: the ratio to it is what can be gained."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from measuring import Usage, measure_call

__all__ = ["motion_limits", "spectra_limit"]

FRAMES = 8  # that are timed; the rest takes as long
MOST_PATCHES = 400


def motion_limits(movie: Path, gain: Path, threads: int) -> dict[str, Usage]:
    """Seconds for all frames of a TIFF movie: decoding, gain, one transform each, copying memory."""
    import mrcfile
    import tifffile

    with tifffile.TiffFile(movie) as file:
        count = len(file.pages)
    few = min(FRAMES, count)
    raw = [_decoded(movie, i) for i in range(few)]
    with mrcfile.open(gain, permissive=True) as opened:
        factors = np.array(opened.data, dtype=np.float32)
    out = np.empty(raw[0].shape, dtype=np.float32)
    other = np.empty_like(out)
    size = tuple(scipy.fft.next_fast_len(n, real=True) for n in out.shape)
    out[:] = raw[0]

    def decode(i: int) -> None:
        _decoded(movie, i)

    def convert(i: int) -> None:
        np.multiply(raw[i], factors, out=out, dtype=np.float32, casting="unsafe")

    def transform(_: int) -> None:
        scipy.fft.rfft2(out, s=size, workers=threads)

    def copy(_: int) -> None:
        np.copyto(other, out)

    limits = {}
    pool = ThreadPoolExecutor(threads)
    with pool:
        for name, each, parallel in (
            ("LZW decoding", decode, True),
            ("conversion and gain", convert, False),
            ("one real FFT of each frame", transform, False),
            ("one copy of each frame (float32)", copy, False),
        ):
            run: Callable[..., Any] = pool.map if parallel else map
            each(0)  # the first touches new memory

            def all_of_them(run: Callable[..., Any] = run, each: Callable[[int], None] = each) -> None:
                list(run(each, range(few)))

            limits[name] = _times(min((measure_call(all_of_them) for _ in range(2)), key=_cpu), count / few)
    return limits


def _decoded(movie: Path, index: int) -> Any:
    import tifffile

    with tifffile.TiffFile(movie) as file:
        return file.pages[index].asarray(maxworkers=1)


def spectra_limit(shape: tuple[int, int], window: int, threads: int) -> tuple[Usage, int]:
    """Transforms of half-overlapping windows of an image: one each, and how many there are."""
    patches = [(-(-n // (window // 2)) - 1) for n in shape]
    count = max(1, patches[0]) * max(1, patches[1])
    few = min(count, MOST_PATCHES)
    patch = np.random.default_rng(0).standard_normal((window, window), dtype=np.float32)
    scipy.fft.rfft2(patch, workers=threads)

    def transform() -> None:
        for _ in range(few):
            scipy.fft.rfft2(patch, workers=threads)

    return _times(min((measure_call(transform) for _ in range(2)), key=_cpu), count / few), count


def _cpu(usage: Usage) -> float:
    return usage.cpu


def _times(usage: Usage, factor: float) -> Usage:
    return Usage(usage.cpu * factor, usage.wall * factor, 0.0, 0.0, usage.others)
