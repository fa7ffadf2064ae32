/** Which micrographs the gallery lists, and in what order. Its state is the address's query. */
import { columns } from "../data/columns";
import { brushed } from "../data/highlight";
import { selection } from "../data/store";

export interface Wanted {
  search: string;
  /** A state, or what the selection says: selected, rejected, included, excluded. */
  state: string;
  /** A column's name, "name" or "time"; "-" before it turns it round. */
  sort: string;
  /** "highlighted": only what a brush has taken. */
  only: string;
}

export const FILTERS: readonly [string, string][] = [
  ["", "All"],
  ["done", "Done"],
  ["failed", "Failed"],
  ["stale", "Stale"],
  ["pending", "New, processing"],
  ["selected", "Selected"],
  ["rejected", "Not selected"],
  ["included", "Included by hand"],
  ["excluded", "Excluded by hand"],
];

export function wantedOf(query: URLSearchParams): Wanted {
  const read = (name: string) => query.get(name) ?? "";
  return { search: read("search"), state: read("state"), sort: read("sort") || "-time", only: read("only") };
}

export function matches(index: number, state: string): boolean {
  const is = columns.state[index];
  switch (state) {
    case "":
      return true;
    case "pending":
      return is === "new" || is === "processing";
    case "selected":
      return columns.selected[index]!;
    case "rejected":
      return is === "done" && !columns.selected[index];
    case "included":
      return columns.manual[index] === "include";
    case "excluded":
      return columns.manual[index] === "exclude";
    default:
      return is === state;
  }
}

const natural = new Intl.Collator("en", { numeric: true });

/** Names are compared once: 10,000 log 10,000 comparisons by language rules would be felt. */
let rankedFor = -1;
let rank: Int32Array = new Int32Array(0);
function nameRank(): Int32Array {
  if (rankedFor !== columns.length) {
    rank = new Int32Array(columns.length);
    const sorted = columns.ids.map((_, i) => i).sort((a, b) => natural.compare(columns.ids[a]!, columns.ids[b]!));
    sorted.forEach((item, place) => (rank[item] = place));
    rankedFor = columns.length;
  }
  return rank;
}

const searchTexts: string[] = [];
let searchedIds: string[] = [];

function searchText(index: number): string {
  if (searchedIds !== columns.ids) {
    searchedIds = columns.ids;
    searchTexts.length = 0;
  }
  return (searchTexts[index] ??= `${columns.ids[index]} ${columns.folder[index]}`.toLowerCase());
}

/** What the gallery has listed last: the order of previous and next. */
export const lastList: { ids: string[] } = { ids: [] };

/** Indices of the items that are wanted, in the wanted order; what was not measured comes last. */
export function listed(wanted: Wanted): number[] {
  const words = wanted.search.toLowerCase().split(/\s+/).filter(Boolean);
  const base = wanted.only === "highlighted" ? [...brushed.value] : columns.ids.map((_, index) => index);
  const found = base.filter(
    (index) =>
      matches(index, wanted.state) &&
      (words.length === 0 || words.every((word) => searchText(index).includes(word))),
  );
  const down = wanted.sort.startsWith("-");
  const name = wanted.sort.replace(/^-/, "");
  const values =
    name === "name" ? nameRank() : name === "time" ? columns.time : (columns.column(name)?.values ?? nameRank());
  const sign = down ? -1 : 1;
  return found.sort((a, b) => {
    const [x, y] = [values[a]!, values[b]!];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y)) || a - b;
    return sign * (x - y) || sign * (a - b);
  });
}

/** Why the ranges leave an item out, in words. */
export function reasons(index: number): string[] {
  const chosen = selection.value;
  if (!chosen || columns.selected[index] || columns.manual[index]) return [];
  const found: string[] = [];
  for (const { name, label, unit } of chosen.quantities) {
    const [low, high] = chosen.ranges[name] ?? [null, null];
    if (low === null && high === null) continue;
    const value = columns.column(name)?.values[index] ?? Number.NaN;
    const text = `${label} ${Number(value.toPrecision(3))}${unit ? ` ${unit}` : ""}`;
    if (Number.isNaN(value)) found.push(`${label} not measured`);
    else if (low !== null && value < low) found.push(`${text} < ${low}`);
    else if (high !== null && value > high) found.push(`${text} > ${high}`);
  }
  return found;
}
