/** The picks of one micrograph while a person changes them. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { api } from "../data/api";
import { complain, say } from "../data/store";
import type { Pick, Picks } from "../data/types";
import { leastScores, picker } from "./controls";

const NOTHING: Picks = { picks: [], diameter: null, picker: "", pickers: [] };
/** Under which picks of people are filed. */
export const MANUAL = "manual";

export interface PickEditor {
  /** Those that are shown: none below the least score. */
  picks: Pick[];
  /** How many there are. */
  total: number;
  /** Lowest and highest score; null where there are none, or all are the same. */
  scores: [number, number] | null;
  diameter: number | null;
  picker: string;
  pickers: string[];
  changed: boolean;
  canUndo: boolean;
  /** Remove the pick at a place, or add one where there is none within `reach` (Å). */
  toggle(x: number, y: number, reach: number): void;
  setDiameter(diameter: number | null): void;
  undo(): void;
  revert(): void;
  /** Keep those that are shown as picked by hand. */
  save(): Promise<void>;
}

interface State {
  id: string;
  saved: Picks;
  draft: Picks;
  history: Picks[];
}

const HISTORY = 100;
const fresh = (id: string, picks: Picks): State => ({ id, saved: picks, draft: picks, history: [] });

/** What was changed and not saved waits here while other micrographs are looked at. */
const drafts = new Map<string, Picks>();

/** What was picked by hand has no score, and is always shown. */
const shown = (pick: Pick, least: number): boolean => pick.score === null || pick.score >= least;

/** Lowest and highest score of some picks. */
function rangeOf(picks: readonly Pick[]): [number, number] | null {
  const scores = picks.flatMap((pick) => pick.score ?? []);
  if (scores.length < 2) return null;
  const low = scores.reduce((a, b) => Math.min(a, b));
  const high = scores.reduce((a, b) => Math.max(a, b));
  return high > low ? [low, high] : null;
}

/** The picks without the nearest one that is shown within `reach`; with a new one where there is none. */
function toggled(picks: Pick[], x: number, y: number, reach: number, least: number): Pick[] {
  let nearest: Pick | null = null;
  let best = reach;
  const distance = (pick: Pick) => Math.hypot(pick.x - x, pick.y - y);
  for (const pick of picks) {
    if (shown(pick, least) && distance(pick) <= best) {
      best = distance(pick);
      nearest = pick;
    }
  }
  if (nearest) return picks.filter((pick) => pick !== nearest);
  // it takes the place of what was too weak to be shown
  const others = picks.filter((pick) => distance(pick) > reach);
  return [...others, { x: Math.round(x * 100) / 100, y: Math.round(y * 100) / 100, score: null }];
}

export function usePicks(id: string, stored: Picks | null, leastOf: (picker: string) => number): PickEditor {
  const [state, setState] = useState<State>(() => fresh(id, NOTHING));
  const { saved, draft, history } = state.id === id ? state : fresh(id, NOTHING);
  const changed = draft !== saved;

  useEffect(() => {
    if (!stored) setState(fresh(id, NOTHING));
    else setState({ ...fresh(id, stored), draft: drafts.get(id) ?? stored });
  }, [id, stored]);

  /** Every change goes through here: it starts from the newest state, however fast clicks come, and is kept. */
  const update = (change: (now: State) => State) =>
    setState((now) => {
      const next = change(now);
      if (next.draft !== next.saved) drafts.set(next.id, next.draft);
      else drafts.delete(next.id);
      return next;
    });

  useEffect(
    () => () => {
      if (drafts.has(id)) say(`The picks of ${id} are not saved; they wait until you come back to it.`);
    },
    [id],
  );

  useEffect(() => {
    if (!changed) return;
    const warn = (event: BeforeUnloadEvent) => event.preventDefault();
    window.addEventListener("beforeunload", warn);
    return () => window.removeEventListener("beforeunload", warn);
  }, [changed]);

  const least = leastOf(draft.picker);
  const scores = useMemo(() => rangeOf(draft.picks), [draft.picks]);
  const picks = useMemo(() => draft.picks.filter((pick) => shown(pick, least)), [draft.picks, least]);
  const put = (change: (draft: Picks) => Picks) =>
    update((now) => ({ ...now, draft: change(now.draft), history: [...now.history, now.draft].slice(-HISTORY) }));
  return {
    picks,
    total: draft.picks.length,
    scores,
    diameter: draft.diameter,
    picker: draft.picker,
    pickers: draft.pickers,
    changed,
    canUndo: history.length > 0,
    toggle: (x, y, reach) => put((now) => ({ ...now, picks: toggled(now.picks, x, y, reach, leastOf(now.picker)) })),
    setDiameter: (diameter) => put((now) => ({ ...now, diameter })),
    undo: () =>
      update((now) => {
        const before = now.history.at(-1);
        return before ? { ...now, draft: before, history: now.history.slice(0, -1) } : now;
      }),
    revert: () => update((now) => fresh(id, now.saved)),
    async save() {
      try {
        const kept = await api.savePicks(id, { ...draft, picks });
        update((now) => {
          if (now.id !== id) {
            drafts.delete(id);
            return now;
          }
          // what was changed while it was being saved stays a change
          return now.draft === draft ? fresh(id, kept) : { ...now, saved: kept, draft: { ...now.draft, picker: kept.picker, pickers: kept.pickers } };
        });
        // from now on people's own are shown, all of them
        picker.value = "";
        leastScores.value = { ...leastScores.value, [MANUAL]: -Infinity };
        say(`${kept.picks.length} picks of ${id} saved`);
      } catch (error) {
        complain(error);
      }
    },
  };
}
