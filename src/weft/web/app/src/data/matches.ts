/** Known structures that were searched in a tomogram, and what noise alone would give. */
import { get, send } from "./api";
import type { Axis } from "./series";

export interface SearchedTemplate {
  stem: string;
  diameter: number;
  symmetry: string;
  file: string | null;
  written: number | null;
  cut_off: number | null;
}

export interface HandExperiment {
  hand: number;
  p: number | null;
  places: number | null;
  sentence: string;
  picture: boolean;
}

export interface Search {
  job: string;
  revision: string;
  time: number;
  templates: SearchedTemplate[];
  voxel_size: number;
  shape: [number, number, number];
  origin: [number, number, number];
  volume_size: [number, number, number];
  hand: number;
  search_space: number;
  mean: number;
  std: number;
  rotations: number | null;
  seconds: number | null;
  angular_step: number[];
  weighting: string | null;
  low: number;
  high: number;
  verdict: HandExperiment | null;
}

/** What of [candidates] is changed here. */
export interface Rules {
  cut_off: number;
  false_positives: number;
  number: number;
  tophat: boolean;
}

export interface MatchList {
  searches: Search[];
  problems: string[];
  rules: Rules & { particle_diameter: number; separation: number; margin: number };
}

/** Candidates, best first: a higher cut-off or a smaller number only cuts the list short. */
export interface PickList {
  job: string;
  revision: string;
  tophat: boolean;
  automatic: number;
  lowest: number;
  complete: boolean;
  x: number[];
  y: number[];
  z: number[];
  score: number[];
  template: number[];
}

export interface RecallCurve {
  particles: number;
  background: number;
  lowest: number;
  best: number | null;
  cut_offs: number[];
  recall: number[];
  false_discovery: number[];
}

export interface Saved {
  count: number;
  cut_off: number;
  files: string[];
  matches: MatchList;
}

const all = (id: string) => `api/series/${encodeURIComponent(id)}/matches`;
const one = (id: string, job: string) => `${all(id)}/${encodeURIComponent(job)}`;

export const matchesApi = {
  list: (id: string, signal?: AbortSignal) => get<MatchList>(all(id), signal),
  picks: (id: string, job: string, tophat: boolean, falsePositives: number, limit: number, signal?: AbortSignal) =>
    get<PickList>(
      `${one(id, job)}/candidates?${new URLSearchParams({
        tophat: String(tophat),
        false_positives: String(falsePositives),
        limit: String(limit),
      })}`,
      signal,
    ),
  estimate: (id: string, job: string, signal?: AbortSignal) => get<RecallCurve>(`${one(id, job)}/estimate`, signal),
  save: (id: string, job: string, rules: Rules) => send<Saved>("POST", `${one(id, job)}/candidates`, rules),
};

export const scoreSlice = (id: string, job: string, axis: Axis, index: number, size: number, revision: string): string =>
  `${one(id, job)}/slice?${new URLSearchParams({ axis, index: String(index), size: String(size), v: revision })}`;

export const handPicture = (id: string, job: string, revision: string): string =>
  `${one(id, job)}/hand?${new URLSearchParams({ v: revision })}`;

/** The complementary error function: a series below 2, a continued fraction above; to some 1e-13. */
export function erfc(x: number): number {
  if (x < 0) return 2 - erfc(-x);
  const bell = Math.exp(-x * x) / Math.sqrt(Math.PI);
  if (x < 2) {
    let term = x;
    let sum = x;
    for (let n = 1; n < 80 && term > 1e-17 * sum; n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return 1 - 2 * bell * sum;
  }
  let tail = x;
  for (let n = 80; n > 0; n--) tail = x + n / 2 / tail;
  return bell / tail;
}

type Noise = Pick<Search, "mean" | "std" | "search_space">;

/** How many of all scores lie above a cut-off by chance. */
export const byChance = (of: Noise, cutOff: number): number =>
  0.5 * of.search_space * erfc((cutOff - of.mean) / (of.std * Math.SQRT2));

/** The cut-off above which so many lie by chance. */
export function falseAlarm(of: Noise, wanted: number): number {
  let [low, high] = [of.mean - 8 * of.std, of.mean + 40 * of.std];
  for (let i = 0; i < 70; i++) {
    const middle = (low + high) / 2;
    if (byChance(of, middle) > wanted) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** How many of the list stay. */
export function kept(picks: PickList, cutOff: number, most: number): number {
  // scores fall
  let [low, high] = [0, picks.score.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (picks.score[middle]! >= cutOff) low = middle + 1;
    else high = middle;
  }
  return Math.min(low, most);
}

/** A curve at one place; null where it says nothing. */
export function along(x: readonly number[], y: readonly number[], at: number): number | null {
  if (x.length === 0 || at < x[0]!) return null;
  let i = x.findIndex((value) => value >= at);
  if (i < 0) return y.at(-1)!;
  i = Math.max(i, 1);
  const part = (at - x[i - 1]!) / (x[i]! - x[i - 1]! || 1);
  return y[i - 1]! + part * (y[i]! - y[i - 1]!);
}
