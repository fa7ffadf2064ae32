"""pytom-match-pick's search alone, without its filters of the tomogram; run by the interpreter that has it.

    python direct_search.py TOMOGRAM TEMPLATE MASK STEP OUT.npz [--weights FILE.npy]

STEP is in degrees. OUT gets the best scores and their angles' numbers [z, y, x], the list of angles (ZXZ,
radians), the standard deviation of all scores, and what the search took. The weights [z, y, x], in the order
of an FFT, all of them, multiply the turned template's transform.
"""

from __future__ import annotations

import argparse
import time

import mrcfile
import numpy as np
from pytom_tm.angles import angle_to_angle_list
from pytom_tm.matching import TemplateMatchingGPU


def main() -> None:
    """Search as told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("tomogram", "template", "mask"):
        parser.add_argument(name, type=lambda path: np.ascontiguousarray(mrcfile.read(path).T))
    parser.add_argument("step", type=float)
    parser.add_argument("out")
    parser.add_argument("--weights")
    words = parser.parse_args()
    wedge = None
    if words.weights:
        # its arrays are [x, y, z], halved along the last axis
        wedge = np.ascontiguousarray(np.load(words.weights).T[..., : len(words.template) // 2 + 1])
    angles = angle_to_angle_list(words.step)
    ids = list(range(len(angles)))
    job = TemplateMatchingGPU("0", 0, words.tomogram, words.template, words.mask, angles, ids, wedge=wedge)
    cpu, wall = time.process_time(), time.perf_counter()
    scores, numbers, statistics = job.run()
    took = [time.process_time() - cpu, time.perf_counter() - wall]
    np.savez(
        words.out,
        scores=np.asarray(scores).T,
        numbers=np.asarray(numbers).astype(np.int32).T,
        angles=np.array(angles),
        std=statistics["std"],
        took=took,
    )


if __name__ == "__main__":
    main()
