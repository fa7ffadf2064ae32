"""All ten operations on one large micrograph, beside the transforms and passes that they need.

    python benchmarks/preprocessing.py [--side 4096]

Both are measured in this run, on one thread, in CPU seconds. What is needed: for each operation the fewest
SciPy, NumPy or torch calls that do its arithmetic on arrays that are there already: a copy for the crop, a
logarithm, two selections of a median, one pass to compare with the limits, a negation, a forward and a
backward transform for the downsampling, another pair for the filters, mean and standard deviation, one
subtraction and one division. Denoising is measured apart. Memory is the highest resident size of a process of
its own, above what it holds before the image is there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.fft
import torch

from weft.micrographs.preprocessing import OPERATIONS, PreprocessSettings, preprocess
from weft.micrographs.total_variation import denoise

_REPEATS = 5


def micrograph(side: int) -> np.ndarray:
    """Counts with a few hot pixels."""
    rng = np.random.default_rng(0)
    image = rng.normal(60.0, 8.0, (side, side)).astype(np.float32)
    image.reshape(-1)[rng.integers(0, side * side, side)] = 900.0
    return image


def cpu(action: Callable[[], object]) -> float:
    """The least CPU seconds of several runs; the first only warms up."""
    action()
    best = float("inf")
    for _ in range(_REPEATS):
        begin = time.process_time()
        action()
        best = min(best, time.process_time() - begin)
    return best


def needed(image: np.ndarray, settings: PreprocessSettings) -> dict[str, float]:
    """CPU seconds of each primitive."""
    crop = settings.crop or 0
    inside = image[crop:-crop, crop:-crop]
    work = np.ascontiguousarray(inside)
    spectrum = scipy.fft.rfft2(work)
    m = int(work.shape[0] / (settings.downsample or 1.0))
    small_spectrum = np.ascontiguousarray(spectrum[:m, : m // 2 + 1])
    small = np.ascontiguousarray(work[:m, :m])
    scratch, flat = work.copy(), work.reshape(-1)
    tensor = torch.from_numpy(small)
    gain = np.ones(small_spectrum.shape, np.float32)

    def select() -> None:
        scratch.reshape(-1)[:] = flat
        scratch.reshape(-1).partition(flat.size // 2)

    return {
        "crop: copy": cpu(lambda: inside.copy()),
        "log: add, log, multiply, add": cpu(lambda: np.add(work, 1, out=scratch))
        + cpu(lambda: np.log(work, out=scratch))
        + 2 * cpu(lambda: np.multiply(work, 2, out=scratch)),
        "bad pixels: two medians": 2 * cpu(select),
        "bad pixels: deviations": 2 * cpu(lambda: np.subtract(work, 1, out=scratch)),
        "bad pixels: compare": cpu(lambda: np.flatnonzero(work > 1e9)),
        "invert: negate": cpu(lambda: np.negative(work, out=scratch)),
        "downsample: rfft2": cpu(lambda: scipy.fft.rfft2(work)),
        "downsample: crop and irfft2": cpu(lambda: small_spectrum.copy())
        + cpu(lambda: scipy.fft.irfft2(small_spectrum, s=small.shape)),
        "filters: rfft2, multiply, irfft2": cpu(lambda: scipy.fft.rfft2(small))
        + cpu(lambda: np.multiply(small_spectrum, gain, out=small_spectrum.copy()))
        + cpu(lambda: scipy.fft.irfft2(small_spectrum, s=small.shape)),
        "normalise: mean and deviation, subtract, divide": cpu(lambda: torch.var_mean(tensor))
        + 2 * cpu(lambda: np.multiply(small, 1.0, out=small)),
    }


def peak(side: int, settings: PreprocessSettings) -> float:
    """Highest resident size of a process that prepares one image, in images."""
    code = (
        "import json, resource, sys, numpy as np, torch\n"
        "from benchmarks.preprocessing import micrograph\n"
        "from weft.micrographs.preprocessing import PreprocessSettings, preprocess\n"
        "torch.set_num_threads(1)\n"
        "given = PreprocessSettings.model_validate(json.loads(sys.argv[1]))\n"
        "preprocess(micrograph(256), given)\n"
        "image = np.zeros((int(sys.argv[2]),) * 2, np.float32)\n"
        "rng = np.random.default_rng(0)\n"
        "for row in image: row[:] = rng.normal(60, 8, row.size)\n"
        "pages = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "preprocess(image, given)\n"
        "high = [l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1]\n"
        "print((int(high) * 1024 - pages + image.nbytes) / image.nbytes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings.model_dump()), str(side)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=4096)
    side = parser.parse_args().side
    torch.set_num_threads(1)
    image = micrograph(side)
    everything = PreprocessSettings.model_validate(dict.fromkeys(OPERATIONS, True))
    others = PreprocessSettings.model_validate(everything.model_dump() | {"denoise": None})
    whole = cpu(lambda: preprocess(image, everything))
    small = torch.from_numpy(image[: (side - 20) // 2, : (side - 20) // 2].copy())
    smoothing = cpu(lambda: denoise(small, 50))
    parts = needed(image, everything)
    total = sum(parts.values())
    for name, seconds in parts.items():
        print(f"{name:<52}{1e3 * seconds:8.0f} ms")
    print(f"{'needed':<52}{1e3 * total:8.0f} ms")
    print(f"{'denoising, apart':<52}{1e3 * smoothing:8.0f} ms")
    print(f"{'all ten operations':<52}{1e3 * whole:8.0f} ms")
    print(f"{'all ten without denoising, over what is needed':<52}{(whole - smoothing) / total:8.2f}")
    print(f"{'the nine others in one go':<52}{1e3 * cpu(lambda: preprocess(image, others)):8.0f} ms")
    for name, settings in (("all ten", everything), ("without downsampling", _full_size(everything))):
        print(f"{'highest memory, ' + name:<52}{peak(side, settings):8.2f} images")
    print(f"(this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB)")


def _full_size(settings: PreprocessSettings) -> PreprocessSettings:
    return PreprocessSettings.model_validate(settings.model_dump() | {"downsample": None})


if __name__ == "__main__":
    main()
