/** States of items: a colour, a shape and a word each, so that none of the three is needed alone. */
import type { Decision, State } from "../data/types";

export const STATES: readonly State[] = ["done", "failed", "stale", "processing", "new"];

export const STATE_WORDS: Record<State, string> = {
  done: "done",
  failed: "failed",
  stale: "stale",
  processing: "processing",
  new: "new",
};

const SHAPES: Record<State | "include" | "exclude" | "rejected", string> = {
  done: "M3 8.5 6.5 12 13 4.5",
  failed: "M4 4 12 12M12 4 4 12",
  stale: "M12.5 6A5 5 0 1 0 13 9.5M13 2.5V6.2H9.3",
  processing: "M8 2.5A5.5 5.5 0 0 1 13.5 8H8Z",
  new: "M8 3A5 5 0 1 1 7.99 3Z",
  include: "M8 3V13M3 8H13",
  exclude: "M3 8H13",
  rejected: "M8 3 13 12.5H3Z",
};

export function Shape({ of }: { of: keyof typeof SHAPES }) {
  return (
    <svg class={`shape shape-${of}`} viewBox="0 0 16 16" aria-hidden="true">
      <path d={SHAPES[of]} />
    </svg>
  );
}

export function StateBadge({ state }: { state: State }) {
  return (
    <span class={`badge state-${state}`}>
      <Shape of={state} />
      {STATE_WORDS[state]}
    </span>
  );
}

/** What the selection says: by hand or by the ranges. */
export function VerdictBadge({ selected, manual }: { selected: boolean; manual: Decision }) {
  if (manual === "include") return <span class="badge verdict-in"><Shape of="include" />included by hand</span>;
  if (manual === "exclude") return <span class="badge verdict-out"><Shape of="exclude" />excluded by hand</span>;
  if (selected) return <span class="badge verdict-in"><Shape of="done" />selected</span>;
  return <span class="badge verdict-out"><Shape of="rejected" />not selected</span>;
}
