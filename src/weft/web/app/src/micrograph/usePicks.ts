/** The picks of one micrograph while a person changes them. */
import { useEffect, useState } from "preact/hooks";
import { api } from "../data/api";
import { complain, say } from "../data/store";
import type { Pick, Picks } from "../data/types";

const NOTHING: Picks = { picks: [], diameter: null, edited: false };

export interface PickEditor {
  picks: Pick[];
  diameter: number | null;
  edited: boolean;
  changed: boolean;
  canUndo: boolean;
  /** Remove the pick at a place, or add one where there is none within `reach` (Å). */
  toggle(x: number, y: number, reach: number): void;
  setDiameter(diameter: number | null): void;
  undo(): void;
  revert(): void;
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

/** The picks without the nearest one within `reach`; with a new one where there is none. */
function toggled(picks: Pick[], x: number, y: number, reach: number): Pick[] {
  let nearest = -1;
  let best = reach;
  picks.forEach((pick, index) => {
    const distance = Math.hypot(pick.x - x, pick.y - y);
    if (distance <= best) {
      best = distance;
      nearest = index;
    }
  });
  if (nearest >= 0) return picks.filter((_, index) => index !== nearest);
  return [...picks, { x: Math.round(x * 100) / 100, y: Math.round(y * 100) / 100 }];
}

export function usePicks(id: string, stored: Picks | null): PickEditor {
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

  const put = (change: (draft: Picks) => Picks) =>
    update((now) => ({ ...now, draft: change(now.draft), history: [...now.history, now.draft].slice(-HISTORY) }));
  return {
    picks: draft.picks,
    diameter: draft.diameter,
    edited: draft.edited,
    changed,
    canUndo: history.length > 0,
    toggle: (x, y, reach) => put((now) => ({ ...now, picks: toggled(now.picks, x, y, reach) })),
    setDiameter: (diameter) => put((now) => ({ ...now, diameter })),
    undo: () =>
      update((now) => {
        const before = now.history.at(-1);
        return before ? { ...now, draft: before, history: now.history.slice(0, -1) } : now;
      }),
    revert: () => update((now) => fresh(id, now.saved)),
    async save() {
      try {
        const kept = (await api.savePicks(id, draft)) ?? { ...draft, edited: true };
        update((now) => {
          if (now.id !== id) {
            drafts.delete(id);
            return now;
          }
          // what was changed while it was being saved stays a change
          return now.draft === draft ? fresh(id, kept) : { ...now, saved: kept, draft: { ...now.draft, edited: true } };
        });
        say(`${kept.picks.length} picks of ${id} saved`);
      } catch (error) {
        complain(error);
      }
    },
  };
}
