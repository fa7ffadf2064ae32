"""The hand of a session: what all its tilt series say together, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.defocus.handedness import Handedness, SessionHand, session_hand

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["describe_hands", "hands_of"]


def hands_of(session: Session) -> dict[str, Handedness]:
    """What each series of a session says, by name; of those whose CTF is fitted."""
    out = {}
    for name, series in session.series.items():
        done = series.record.steps.get("tilt_ctf") if series.record else None
        if done is not None and done.status == "done":
            out[name] = series.handedness
    return out


def describe_hands(session: Session) -> str:
    """A table of both hands' scores, the session's verdict, and how to fix it."""
    found = hands_of(session)
    if not found:
        return "No tilt series has been fitted yet: there is no handedness to judge."
    width = max(len(name) for name in found)
    lines = [f"{'series':<{width}}  score of +1  score of -1  significance  verdict"]
    for name, one in found.items():
        plus, minus = one.scores
        verdict = f"{one.hand:+.0f} {one.verdict}" if one.hand else one.verdict
        lines.append(
            f"{name:<{width}}  {plus:11.1f}  {minus:11.1f}  {abs(one.significance):12.1f}  "
            f"{verdict}: {one.reason}"
        )
    whole: SessionHand = session_hand(list(found.values()))
    said = f"{whole.hand:+.0f}, {whole.verdict}" if whole.hand else whole.verdict
    lines.append(f"session: {said} ({whole.reason})")
    setting = session.settings.plain()["handedness"]["hand"]
    if setting != "auto":
        lines.append(f"used for all series: {setting} (handedness.hand in weft.toml)")
    elif whole.hand:
        lines.append(f"to use it for all: weft tilts handedness {session.root} --set {whole.hand:+.0f}")
    return "\n".join(lines)
