"""Plain advice about a trained landscape: what is wrong with it, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weft.heterogeneity.convergence import LossTrend, Movement, VolumeAgreement
from weft.heterogeneity.correlates import Correlate
from weft.heterogeneity.structure import fewest

__all__ = ["LEAST_KL", "Advice", "ClusterFacts", "Facts", "advise", "kl_by_dimension"]

Array = NDArray[np.float64]

#: A latent dimension with less carries nothing, nats a particle.
LEAST_KL = 0.01
#: A loss is still falling when the last fifth of the training brought more than this part of its fall.
_STILL_FALLING = 0.05
#: Particles still move when they move by more than this part of the spread between two kept epochs.
_STILL_MOVING = 0.25
#: Volumes of the same particle still change below this correlation.
_STILL_CHANGING = 0.95
#: Fewer particles than this can hardly teach a network.
_FEW = 100
#: A component follows what explains more than this share of its ranks' variance.
_FOLLOWS = 0.25
_SIGNIFICANT = 0.01
#: Junk: density of less than this part of the median cluster's; particles from so few of the tomograms.
_FAINT = 0.5
_FEW_TOMOGRAMS = 0.25
#: A cluster this small is one of outliers.
_OUTLIERS = 0.01


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes
    ----------
    level : str
        ``warning``: look at this first; ``note``: good to know; ``good``.
    about : str
        A few words: ``not converged``, ``posterior collapsed``, ``junk cluster`` ...
    text : str
        What was seen and what to do.
    """

    level: Literal["warning", "note", "good"]
    about: str
    text: str


@dataclass(frozen=True)
class ClusterFacts:
    """What is known of one cluster.

    Attributes
    ----------
    name : str
    size : int
    density : float
        Standard deviation of its volume under the mask.
    tomograms : (t,) int64
        Its particles in every tomogram; empty where tomograms are not known.
    """

    name: str
    size: int
    density: float
    tomograms: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Facts:
    """All that advice is made from.

    Attributes
    ----------
    particles : int
    kl : (d,)
        Nats a particle of every latent dimension.
    heaps : int
        Clusters that the data fall into; 1 is none.
    asked : int
        Clusters that were asked for; 0 is as many as there are.
    clusters : sequence of ClusterFacts
    loss : LossTrend or None
    movement : sequence of Movement
    volumes : sequence of VolumeAgreement
    correlates : sequence of Correlate
    notes : sequence of str
        What could not be looked at, and why.
    """

    particles: int
    kl: Array
    heaps: int
    asked: int = 0
    clusters: Sequence[ClusterFacts] = ()
    loss: LossTrend | None = None
    movement: Sequence[Movement] = ()
    volumes: Sequence[VolumeAgreement] = ()
    correlates: Sequence[Correlate] = ()
    notes: Sequence[str] = ()


def kl_by_dimension(mu: NDArray[np.floating], log_var: NDArray[np.floating]) -> Array:
    """Mean Kullback-Leibler divergence from N(0, 1) of every latent dimension, nats a particle.

    Kingma & Welling 2014, appendix B: ½ (μ² + σ² − 1 − log σ²).

    Parameters
    ----------
    mu, log_var : (n, d)

    Returns
    -------
    (d,)
    """
    mean, log = np.asarray(mu, np.float64), np.asarray(log_var, np.float64)
    return np.asarray(0.5 * (mean**2 + np.exp(log) - 1.0 - log).mean(0))


def advise(facts: Facts) -> list[Advice]:
    """What to tell, the most pressing first."""
    out = [
        *_posterior(facts.kl),
        *_training(facts),
        *_amount(facts.particles),
        *_structure(facts),
        *_junk(facts),
        *_followers(facts.correlates),
        *(Advice("note", "not looked at", text) for text in facts.notes),
    ]
    rank = {"warning": 0, "good": 1, "note": 2}
    return sorted(out, key=lambda one: rank[one.level])


def _posterior(kl: Array) -> list[Advice]:
    carrying = int((kl >= LEAST_KL).sum())
    if carrying == 0:
        return [
            Advice(
                "warning",
                "posterior collapsed",
                f"The latent carries nothing: no dimension holds more than {LEAST_KL:g} nats a particle. "
                "All that follows is noise. Train with a smaller weight of the KL term or one that grows "
                "slowly, for longer, or accept that the particles are alike.",
            )
        ]
    if carrying < len(kl):
        one = carrying == 1
        return [
            Advice(
                "note",
                "unused dimensions",
                f"{carrying} of {len(kl)} latent dimensions {'carries' if one else 'carry'} more than "
                f"{LEAST_KL:g} nats a particle; the others are idle, which does no harm. A smaller --latent "
                "would do.",
            )
        ]
    return []


def _training(facts: Facts) -> list[Advice]:
    reasons = []
    loss = facts.loss
    if loss is not None and loss.certain and loss.recent > _STILL_FALLING:
        reasons.append(
            f"the loss is still falling: {100 * loss.recent / loss.epochs:.1f} % of its whole fall in each "
            f"of the last {loss.epochs} epochs"
        )
    if facts.movement and facts.movement[-1].moved > _STILL_MOVING:
        last = facts.movement[-1]
        reasons.append(
            f"particles still move in the latent space: by {100 * last.moved:.0f} % of its spread between "
            f"epochs {last.before} and {last.after}"
        )
    if facts.movement and facts.heaps > 1 and facts.movement[-1].agreement < 0.8:
        last = facts.movement[-1]
        reasons.append(
            f"clusters are not the same in epochs {last.before} and {last.after} "
            f"(adjusted Rand index {last.agreement:.2f})"
        )
    newest = [one for one in facts.volumes if one.after == max(v.after for v in facts.volumes)]
    if newest and (worst := min(one.correlation for one in newest)) < _STILL_CHANGING:
        reasons.append(
            f"volumes of the same particle still change: correlation {worst:.2f} between epochs "
            f"{newest[0].before} and {newest[0].after}"
        )
    out = []
    if reasons:
        text = "; ".join(reasons)
        out.append(
            Advice(
                "warning",
                "not converged",
                f"{text[0].upper()}{text[1:]}. Resume the training with more --epochs.",
            )
        )
    elif loss is not None and (facts.movement or facts.volumes):
        out.append(
            Advice(
                "good",
                "converged",
                "Neither the loss nor the latent space nor the volumes change much any more.",
            )
        )
    elif loss is None:
        out.append(
            Advice(
                "note",
                "convergence unknown",
                "The training has too few epochs to tell whether it has converged.",
            )
        )
    if loss is not None and loss.rising:
        out.append(
            Advice(
                "warning",
                "overfitted",
                "The loss of the validation particles rises while that of the others falls: the network "
                "learns the noise. Use an earlier epoch (--epoch), or a smaller network.",
            )
        )
    return out


def _amount(particles: int) -> list[Advice]:
    if particles < _FEW:
        return [
            Advice(
                "warning",
                "few particles",
                f"{particles} particles are few for a network: structures that a few of them have will not "
                "be learnt, and clusters may be chance. Add data before believing details.",
            )
        ]
    return []


def _structure(facts: Facts) -> list[Advice]:
    if facts.particles < (least := fewest(len(facts.kl))):
        return [
            Advice(
                "note",
                "clusters not tested",
                f"With fewer than {least} particles nobody can tell clusters from chance.",
            )
        ]
    if facts.heaps > 1:
        further = (
            f" The {facts.asked} that were asked for are not those."
            if facts.asked and facts.asked != facts.heaps
            else ""
        )
        return [
            Advice(
                "good",
                "clusters",
                f"The particles fall into {facts.heaps} clusters with gaps between them, more than one heap "
                f"would show by chance.{further}",
            )
        ]
    text = (
        "The particles form one heap, or a continuum: there is no gap that would make clusters. Look at the "
        "traversals: they show what changes along it, if anything does."
    )
    if facts.asked > 1:
        text += f" The {facts.asked} clusters that were asked for are parts of it, cut where k-means pleased."
    return [Advice("note", "no cluster structure", text)]


def _junk(facts: Facts) -> list[Advice]:
    out = []
    densities = [one.density for one in facts.clusters]
    usual = float(np.median(densities)) if len(densities) > 2 else max(densities, default=0.0)
    everywhere = (
        sum((one.tomograms for one in facts.clusters), np.zeros_like(facts.clusters[0].tomograms))
        if (facts.clusters)
        else np.zeros(0, np.int64)
    )
    for one in facts.clusters if len(facts.clusters) > 1 else ():
        reasons = []
        if one.density < _FAINT * usual:
            reasons.append(f"its volume has {100 * one.density / usual:.0f} % of the usual contrast")
        # an even draw of a few particles cannot reach many tomograms
        if len(everywhere) >= 4 and one.size >= 20:
            here, usually = _effective(one.tomograms), _effective(everywhere)
            if here < _FEW_TOMOGRAMS * min(usually, one.size):
                reasons.append(
                    f"its particles come from {here:.1f} tomograms, as it were, where all come from "
                    f"{usually:.1f}"
                )
        if one.size < max(5, _OUTLIERS * facts.particles):
            reasons.append(f"it holds {one.size} particles, perhaps outliers")
        if reasons:
            out.append(
                Advice(
                    "warning",
                    "junk cluster",
                    f"Cluster {one.name} may be junk: {'; '.join(reasons)}. Look at its volume and at its "
                    "particles in the tomograms; leave it out by `weft vae select`, and train again.",
                )
            )
    return out


def _effective(counts: NDArray[np.int64]) -> float:
    """The number of equally used tomograms with the same entropy."""
    part = counts[counts > 0] / max(int(counts.sum()), 1)
    return math.exp(-float((part * np.log(part)).sum()))


def _followers(found: Sequence[Correlate]) -> list[Advice]:
    out = []
    told = set()
    for one in found:
        # the strongest of each coordinate is enough
        if one.share < _FOLLOWS or one.p > _SIGNIFICANT or one.coordinate in told:
            continue
        told.add(one.coordinate)
        how = f"ρ = {one.size:.2f}".replace("-", "−") if one.kind == "number" else f"ε² = {one.size:.2f}"
        out.append(
            Advice(
                "warning",
                "follows the experiment",
                f"{one.coordinate.upper()} goes with {one.known} ({how}): it may describe how particles were "
                "recorded or cut out, and not their structure.",
            )
        )
    return out
