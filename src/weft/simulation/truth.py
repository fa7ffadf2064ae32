"""What is true about a simulated movie, as plain JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from weft.simulation.scene import Scene

__all__ = ["movie_truth"]


def movie_truth(scene: Scene, seed: int) -> dict[str, Any]:
    """The truth with the keys that the project's scoring scripts read.

    ============== ==========================================================================
    seed           of the simulation
    optics         pixel (Å), kv, cs (mm), amplitude, phase_shift (degrees)
    frames, shape  number of frames; [ny, nx]
    dose_per_frame e/Å²
    defocus        Å, mean of U and V at the image's centre (nx/2, ny/2)
    astig          U - V, Å
    astig_angle    of U, degrees
    plane          [dz/dx, dz/dy]
    track_xy       25 places, Å
    tracks         (frames, 25, 2) Å: place in frame f less place in the aligned average
    global_shift   (frames, 2) Å: the same for the specimen as a whole
    particles_xy   Å, in the aligned average
    eulers         rot, tilt, psi of each particle, degrees
    radius         of a particle, Å
    gain           name of the gain reference's file; None until it is written
    ============== ==========================================================================
    """
    s = scene.settings
    # 10 % to 90 % of each side
    fractions = np.linspace(0.1, 0.9, 5)
    x, y = np.meshgrid(fractions * s.width * s.pixel_size, fractions * s.height * s.pixel_size)
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    return {
        "seed": seed,
        "optics": {
            "pixel": s.pixel_size,
            "kv": s.voltage,
            "cs": s.cs,
            "amplitude": s.amplitude,
            "phase_shift": s.phase_shift,
        },
        "frames": s.frames,
        "shape": [s.height, s.width],
        "dose_per_frame": s.dose_per_frame,
        "defocus": s.defocus * 1e4,
        "astig": s.astigmatism * 1e4,
        "astig_angle": s.astigmatism_angle,
        "plane": list(scene.plane),
        "track_xy": places.tolist(),
        "tracks": scene.motion.track(places).tolist(),
        "global_shift": scene.motion.drift.tolist(),
        "particles_xy": scene.particles.xy.tolist(),
        "eulers": scene.particles.eulers.tolist(),
        "radius": scene.specimen.radius,
        "gain": None,
    }
