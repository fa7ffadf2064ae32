/** All items as columns: fetched once, then kept current from events. Everything that plots or lists reads this. */
import { signal } from "@preact/signals";
import type { ColumnsReply, Decision, Item, State } from "./types";

export interface Column {
  name: string;
  label: string;
  unit: string;
  /** NaN where it was not measured. */
  values: number[];
}

const number = (value: unknown): number => (typeof value === "number" ? value : Number.NaN);

export class Columns {
  /** Goes up with every change; views read it to be drawn again. */
  readonly version = signal(0);
  readonly loaded = signal(false);
  /** The server's version that was loaded last. */
  serverVersion = 0;
  ids: string[] = [];
  readonly at = new Map<string, number>();
  time: number[] = [];
  state: State[] = [];
  selected: boolean[] = [];
  kind: string[] = [];
  folder: string[] = [];
  manual: Decision[] = [];
  reason: string[] = [];
  revision: string[] = [];
  readonly metrics = new Map<string, Column>();
  private ordered: number[] | null = null;
  private pending = 0;

  get length(): number {
    return this.ids.length;
  }

  load(reply: ColumnsReply): void {
    this.serverVersion = reply.version;
    this.state = reply.state;
    this.selected = reply.selected.map(Boolean);
    const fill = <T>(given: T[] | undefined, value: T): T[] => given ?? reply.ids.map(() => value);
    this.kind = fill(reply.kind, "movie");
    this.folder = fill(reply.folder, "");
    this.manual = fill<Decision>(undefined, null);
    this.reason = fill(reply.reason, "");
    // what events have told stays, where the columns do not tell it
    const known = new Map(this.revision.map((revision, index) => [this.ids[index], revision]));
    this.revision = reply.revision ?? reply.ids.map((id) => known.get(id) ?? "");
    this.ids = reply.ids;
    this.time = reply.time;
    this.at.clear();
    this.ids.forEach((id, index) => this.at.set(id, index));
    this.metrics.clear();
    for (const [name, column] of Object.entries(reply.metrics)) {
      const values = column.values.map(number);
      this.metrics.set(name, { name, label: column.label, unit: column.unit, values });
    }
    this.ordered = null;
    this.loaded.value = true;
    this.version.value++;
  }

  /** Write items into the columns; false when something is missing and all must be fetched again. */
  put(items: Item[]): boolean {
    let whole = true;
    for (const item of items) {
      let index = this.at.get(item.id);
      if (index === undefined) {
        index = this.ids.length;
        this.ids.push(item.id);
        this.at.set(item.id, index);
        this.ordered = null;
      } else if (this.time[index] !== item.time) {
        this.ordered = null;
      }
      this.time[index] = item.time;
      this.state[index] = item.state;
      this.selected[index] = item.selected;
      this.kind[index] = item.kind;
      this.folder[index] = item.folder;
      this.manual[index] = item.manual;
      this.reason[index] = item.reason;
      this.revision[index] = item.revision;
      const shown = item.shown ?? {};
      for (const column of this.metrics.values()) column.values[index] = number(shown[column.name]);
      // a metric that no item had until now: only the server knows its label and unit
      const unknown = Object.keys(shown).some((name) => !this.metrics.has(name) && shown[name] !== null);
      if (!item.shown || unknown) whole = false;
    }
    this.touch();
    return whole;
  }

  /** Decisions by hand, where the selection tells them. */
  setManual(include: readonly string[], exclude: readonly string[]): void {
    this.manual = this.ids.map(() => null);
    for (const [ids, decision] of [[include, "include"], [exclude, "exclude"]] as const) {
      for (const id of ids) {
        const index = this.at.get(id);
        if (index !== undefined) this.manual[index] = decision;
      }
    }
    this.touch();
  }

  /** Take over which items are selected, where the server says only that. */
  setSelected(ids: readonly string[], selected: boolean): void {
    for (const id of ids) {
      const index = this.at.get(id);
      if (index !== undefined) this.selected[index] = selected;
    }
    this.touch();
  }

  /** Indices in the order of acquisition. */
  order(): number[] {
    if (!this.ordered) {
      const { time } = this;
      this.ordered = this.ids.map((_, index) => index).sort((a, b) => time[a]! - time[b]! || a - b);
    }
    return this.ordered;
  }

  /** Whether anything was measured: then it has pictures. */
  measured(index: number): boolean {
    for (const { values } of this.metrics.values()) if (!Number.isNaN(values[index])) return true;
    return false;
  }

  column(name: string): Column | undefined {
    return this.metrics.get(name);
  }

  /** One redraw for many events that come together. */
  private touch(): void {
    if (this.pending) return;
    this.pending = window.setTimeout(() => {
      this.pending = 0;
      this.version.value++;
    }, 100);
  }
}

export const columns = new Columns();
