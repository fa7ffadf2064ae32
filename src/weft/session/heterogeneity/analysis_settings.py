"""What `weft vae analyze` can be told."""

from __future__ import annotations

from weft.settings import Settings, setting

__all__ = ["AnalysisSettings"]


class AnalysisSettings(Settings):
    """How a trained landscape is looked at."""

    epoch: int = setting(0, "Of the latent coordinates and the network; 0 is the last.", ge=0, le=100000)
    clusters: int = setting(
        0, "k-means clusters; 0 takes as many as have gaps between them, perhaps one.", ge=0, le=200
    )
    components: int = setting(2, "Principal components that volumes are made along.", ge=0, le=16)
    steps: int = setting(7, "Volumes along each component.", ge=2, le=100)
    path: int = setting(
        10,
        "Volumes along a way through the particles themselves, past all clusters, or from one end of the "
        "first component to the other; 0 is none.",
        ge=0,
        le=200,
    )
    tail: float = setting(
        5.0,
        "Part of the particles left beyond either end of a component's volumes.",
        unit="%",
        ge=0.0,
        le=45.0,
    )
    on_data: bool = setting(
        False, "Volumes along components are those of the particles nearest to the straight line, not on it."
    )
    size: int = setting(0, "Side of the volumes' box; 0 is that of the images.", unit="px", ge=0, le=1024)
    low_pass: float = setting(
        0.0, "Volumes are filtered to this resolution; 0 is not.", unit="Å", ge=0.0, le=500.0
    )
    invert: bool = setting(False, "Change the sign of the volumes' density.")
    pixel_size: float = setting(
        0.0,
        "Pixel size written into the volumes, if that of the images is wrong; 0 takes it as it is.",
        unit="Å",
        ge=0.0,
        le=100.0,
    )
    epochs: int = setting(
        6, "Kept epochs, the last ones, that are compared with each other for convergence.", ge=0, le=100
    )
    umap: bool = setting(False, "Also a UMAP of the latent space; needs `pip install umap-learn`.")
    seed: int = setting(0, "Of what is drawn at random.", ge=0, le=2**31 - 1)
