/** What the whole page shares: signals, and the actions that change the session. */
import { computed, signal } from "@preact/signals";
import { api, ApiError } from "./api";
import { columns } from "./columns";
import { home } from "../router";
import { loadSeries, seriesNews } from "./series";
import type { Advice, Bounds, Decision, Item, Selection, SelectionEvent, Status } from "./types";

export type Connection = "connecting" | "live" | "reconnecting";

export const connection = signal<Connection>("connecting");
export const status = signal<Status | null>(null);
export const ofTilts = computed(() => status.value?.of_tilts ?? false);
export const selection = signal<Selection | null>(null);
export const advice = signal<Advice[]>([]);
/** Goes up when the settings have changed on the server. */
export const settingsVersion = signal(0);
/** Items that came with the last event: views of one item look whether theirs is among them. */
export const arrived = signal<Item[]>([]);
export const readonly = computed(() => status.value?.readonly ?? false);

export interface Toast {
  id: number;
  text: string;
  level: "note" | "error";
}
export const toasts = signal<Toast[]>([]);
let toastId = 0;

export function dismiss(id: number): void {
  toasts.value = toasts.value.filter((toast) => toast.id !== id);
}

export function say(text: string, level: Toast["level"] = "note"): void {
  const id = ++toastId;
  toasts.value = [...toasts.value.slice(-3), { id, text, level }];
  window.setTimeout(() => dismiss(id), level === "error" ? 12000 : 4000);
}

export function complain(error: unknown): void {
  if (error instanceof DOMException && error.name === "AbortError") return;
  say(error instanceof Error ? error.message : String(error), "error");
}

export async function loadAll(): Promise<void> {
  const [found, chosen, now] = await Promise.all([api.columns(), api.selection(), api.status()]);
  columns.load(found);
  keepSelection(chosen);
  takeStatus(now);
  void loadAdvice();
  if (now.of_tilts) void loadSeries();
}

export function takeStatus(found: Status): void {
  status.value = found;
  home.value = found.of_tilts ? "series" : "overview";
}

function keepSelection(found: Selection): void {
  selection.value = found;
  columns.setManual(found.include, found.exclude);
}

export async function loadAdvice(): Promise<void> {
  try {
    advice.value = await api.advice();
  } catch {
    // advice is an extra: alerts tell what is wrong
  }
}

export function takeItems(items: Item[]): void {
  // series have lists of their own
  if (!columns.put(items.filter((item) => item.kind !== "series"))) reloadColumns();
  arrived.value = items;
  seriesNews(items);
}

const RELOAD_DELAY = 150;
const RELOAD_PAUSE = 1500;
let reloading = 0;
let reloaded = 0;

/** After a change of ranges many verdicts flip: fetch the columns again, once for many changes. */
export function reloadColumns(): void {
  if (reloading) return;
  const wait = Math.max(RELOAD_DELAY, reloaded + RELOAD_PAUSE - performance.now());
  reloading = window.setTimeout(() => {
    reloading = 0;
    reloaded = performance.now();
    api.columns().then((found) => {
      columns.load(found);
      if (selection.value) keepSelection(selection.value);
    }, complain);
  }, wait);
}

export function takeSelection(event: SelectionEvent): void {
  if (event.quantities && event.ranges && event.include && event.exclude) {
    keepSelection({ ...event } as Selection);
  } else {
    api.selection().then(keepSelection, complain);
  }
  if (!event.changed) return reloadColumns();
  const changed = Object.entries(event.changed);
  columns.setSelected(changed.filter(([, selected]) => selected).map(([id]) => id), true);
  columns.setSelected(changed.filter(([, selected]) => !selected).map(([id]) => id), false);
}

/** Set ranges of the selection; null takes one away. */
export async function setRanges(ranges: Record<string, Bounds | null>): Promise<void> {
  const before = selection.value;
  if (before) {
    // shown at once, and put right by the answer
    const shown = { ...before.ranges };
    for (const [name, bounds] of Object.entries(ranges)) {
      if (bounds === null || (bounds[0] === null && bounds[1] === null)) delete shown[name];
      else shown[name] = bounds;
    }
    selection.value = { ...before, ranges: shown };
  }
  try {
    const found: SelectionEvent = await api.setRanges(ranges);
    takeSelection(found);
  } catch (error) {
    selection.value = before;
    complain(error);
  }
}

export async function decide(ids: string[], decision: Decision): Promise<void> {
  if (readonly.value || ids.length === 0) return;
  try {
    await api.decide(ids, decision);
    const chosen = selection.value;
    const decided = new Set(ids);
    const others = (names: string[]) => names.filter((name) => !decided.has(name));
    if (chosen) {
      const include = [...others(chosen.include), ...(decision === "include" ? ids : [])];
      const exclude = [...others(chosen.exclude), ...(decision === "exclude" ? ids : [])];
      keepSelection({ ...chosen, include, exclude });
    }
    if (decision !== null) columns.setSelected(ids, decision === "include");
    // only the server knows what the ranges say of an undecided item
    else reloadColumns();
    const what = decision === "include" ? "included" : decision === "exclude" ? "excluded" : "left to the ranges";
    say(ids.length === 1 ? `${ids[0]} ${what}` : `${ids.length.toLocaleString()} micrographs ${what}`);
  } catch (error) {
    complain(error);
  }
}

export async function retry(ids: string[]): Promise<boolean> {
  if (readonly.value || ids.length === 0) return false;
  try {
    await api.retry(ids);
    say(ids.length === 1 ? `${ids[0]} will be processed again` : `${ids.length} items will be processed again`);
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

export async function togglePause(): Promise<void> {
  try {
    await (status.value?.paused ? api.resume() : api.pause());
    takeStatus(await api.status());
  } catch (error) {
    complain(error);
  }
}

export { ApiError };
