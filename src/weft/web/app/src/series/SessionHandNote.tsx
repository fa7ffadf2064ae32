/** What all series together say about the hand, and the button that settles it. */
import { useState } from "preact/hooks";
import { api } from "../data/api";
import { reloadSeries, type SessionHand } from "../data/series";
import { complain, readonly, say } from "../data/store";
import { handSign, VerdictWord, withMinus } from "./words";

/** Set one hand for all series; those that were made with the other one are made again. */
export function UseHand({ hand, setting }: { hand: number; setting: string | null }) {
  const [busy, setBusy] = useState(false);
  const wanted = hand > 0 ? "+1" : "-1";
  if (readonly.value || setting === null || setting === wanted) return null;
  async function use(): Promise<void> {
    setBusy(true);
    try {
      await api.apply({ "handedness.hand": wanted });
      say(`Hand ${handSign(hand)} is used for all series from now on; results of the other one are made again.`);
      reloadSeries();
    } catch (error) {
      complain(error);
    } finally {
      setBusy(false);
    }
  }
  return (
    <button type="button" class="button" disabled={busy} onClick={() => void use()}>
      Use hand {handSign(hand)} for all
    </button>
  );
}

export function SessionHandNote({ hand }: { hand: SessionHand | null }) {
  if (!hand || hand.series === 0) return null;
  const set = hand.setting !== null && hand.setting !== "auto";
  const against = hand.contradicting.length > 0;
  return (
    <section class={`notice hand-note${against ? " notice-warning" : ""}`} aria-label="Hand of the session">
      <p>
        <strong>Hand {handSign(hand.hand)}</strong> <VerdictWord verdict={hand.verdict} />{" "}
        {withMinus(hand.reason)}.
        {against && ` Against it: ${hand.contradicting.join(", ")}.`}
        {set && ` The settings say ${handSign(Number(hand.setting))} for all series.`}
      </p>
      {hand.hand ? <UseHand hand={hand.hand} setting={hand.setting} /> : null}
    </section>
  );
}
