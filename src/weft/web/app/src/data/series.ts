/** Tilt series: what the server says of them, kept current from events. */
import { signal } from "@preact/signals";
import { get, send } from "./api";
import type { Curve, Item, Point, State, StepInfo } from "./types";

export type MapName = "raw" | "deconvolved" | "denoised";
export type Axis = "x" | "y" | "z";

export interface AlignmentHead {
  method: string;
  verdict: string;
  axis: number | null;
  residual: number | null;
  residual_px: number | null;
  expected_error: number | null;
  markers: number | null;
}

export interface CtfHead {
  defocus: number | null;
  resolution: number | null;
  score: number | null;
  verdict: string | null;
}

export interface HandHead {
  hand: number | null;
  origin: "found" | "set" | "assumed" | null;
  verdict: "certain" | "likely" | "undecidable" | null;
  significance: number | null;
}

export interface SeriesHead {
  id: string;
  name: string;
  state: State;
  reason: string;
  step: string;
  waiting: string;
  time: number;
  processed: number | null;
  revision: string;
  tilts: number;
  used: number;
  to_come: number;
  angle_min: number | null;
  angle_max: number | null;
  dose: number | null;
  alignment: AlignmentHead | null;
  ctf: CtfHead | null;
  hand: HandHead | null;
  tomogram: { pixel_size: number | null; shape: number[] | null; maps: MapName[] } | null;
  pictures: string[];
}

export interface SeriesDetails extends SeriesHead {
  origin: string;
  form: string;
  pixel_size: number | null;
  changes: string[];
  notes: string[];
  steps: StepInfo[];
  error: string | null;
}

export interface Tilt {
  index: number;
  item: string;
  name: string;
  angle: number;
  date: string;
  exposure: number | null;
  dose: number | null;
  used: boolean;
  position: number | null;
  reason: string;
  doubt: string;
  decision: boolean | null;
  pending: boolean;
  pictured: boolean;
  counts: number | null;
  relative_counts: number | null;
  motion: number | null;
  defocus: number | null;
  defocus_error: number | null;
  astigmatism: number | null;
  resolution: number | null;
  fitted: boolean | null;
  residual: number | null;
  residual_max: number | null;
  observations: number | null;
  expected_error: number | null;
  aligned: boolean | null;
}

export interface TiltList {
  revision: string;
  tilts: Tilt[];
}

export interface Observations {
  marker: number[];
  tilt: number[];
  x: number[];
  y: number[];
  dx: number[];
  dy: number[];
  weight: number[];
}

export interface AlignmentDetails extends AlignmentHead {
  notes: string[];
  levelling: string;
  level_x: number;
  level_y: number;
  thickness: number | null;
  pixel_size: number;
  image_size: Point;
  volume_size: number[];
  tilts: { index: number; stage_angle: number; angle: number; axis: number; shift: Point }[];
  positions: { xyz: number[]; observations: number; residual: number | null }[];
  observations: Observations;
}

export interface CtfDetails extends CtfHead {
  notes: string[];
  fit_range: number[];
  level_x: number;
  level_y: number;
  level_error: number[];
  fitted: number;
  curve: Curve | null;
}

export interface HandTilt {
  index: number;
  angle: number;
  predicted: number;
  measured: number;
  error: number;
  used: boolean;
  difference: number;
}

export interface HandDetails extends HandHead {
  found: number;
  reason: string;
  scores: [number, number];
  slope: number;
  slope_error: number;
  tilts: HandTilt[];
}

export interface SessionHand {
  hand: number | null;
  verdict: HandHead["verdict"];
  reason: string;
  log_odds: number;
  plus: number;
  minus: number;
  series: number;
  contradicting: string[];
  setting: string | null;
}

export interface TomogramInfo {
  map: MapName;
  shape: [number, number, number];
  pixel_size: number | null;
  low: number;
  high: number;
  black: number;
  white: number;
}

const one = (id: string) => `api/series/${encodeURIComponent(id)}`;

export const seriesApi = {
  list: () => get<{ series: SeriesHead[] }>("api/series"),
  sessionHand: () => get<SessionHand>("api/handedness"),
  details: (id: string, signal?: AbortSignal) => get<SeriesDetails>(one(id), signal),
  tilts: (id: string, signal?: AbortSignal) => get<TiltList>(`${one(id)}/tilts`, signal),
  decide: (id: string, tilts: number[], keep: boolean | null) =>
    send<TiltList & { steps: StepInfo[] }>("POST", `${one(id)}/tilts`, { tilts, keep }),
  alignment: (id: string, signal?: AbortSignal) => get<AlignmentDetails>(`${one(id)}/alignment`, signal),
  ctf: (id: string, signal?: AbortSignal) => get<CtfDetails>(`${one(id)}/ctf`, signal),
  hand: (id: string, signal?: AbortSignal) => get<HandDetails>(`${one(id)}/handedness`, signal),
  tomogram: (id: string, map: MapName, signal?: AbortSignal) =>
    get<TomogramInfo>(`${one(id)}/tomogram?map=${map}`, signal),
};

const query = (values: Record<string, string | number | boolean>): string =>
  new URLSearchParams(Object.entries(values).map(([name, value]) => [name, String(value)])).toString();

/** Of a series' pictures: they change when it is processed, and not when tilts are decided about. */
function pictureRevision(revision: string): string {
  const [processed = ""] = revision.split("-");
  return processed === "0" ? revision : processed;
}

export const tiltThumbnail = (id: string, tilt: number, revision: string): string =>
  `${one(id)}/tilts/${tilt}/thumbnail?${query({ v: pictureRevision(revision) })}`;

export const tiltView = (id: string, tilt: number, size: number, revision: string): string =>
  `${one(id)}/tilts/${tilt}/view?${query({ size, v: pictureRevision(revision) })}`;

export const seriesPicture = (id: string, name: string, revision: string): string =>
  `${one(id)}/picture/${encodeURIComponent(name)}?${query({ v: pictureRevision(revision) })}`;

export interface SliceOptions {
  axis: Axis;
  index?: number;
  map: MapName;
  thickness?: number;
  size?: number;
  stretched?: boolean;
}

export const slice = (id: string, options: SliceOptions, revision: string): string =>
  `${one(id)}/slice?${query({ ...options, format: "jpeg", v: pictureRevision(revision) })}`;

export const seriesList = signal<SeriesHead[]>([]);
export const seriesLoaded = signal(false);
export const sessionHand = signal<SessionHand | null>(null);
/** Goes up with every change of any series or of its tilts. */
export const seriesVersion = signal(0);

export async function loadSeries(): Promise<void> {
  try {
    seriesList.value = (await seriesApi.list()).series;
    seriesLoaded.value = true;
    seriesVersion.value++;
    // the records of all series are read for it, the first time
    sessionHand.value = await seriesApi.sessionHand();
  } catch {
    // the connection says that the server is away
  }
}

const PAUSE = 600;
let timer = 0;

/** Ask again, once for many events. */
export function reloadSeries(): void {
  if (timer) return;
  timer = window.setTimeout(() => {
    timer = 0;
    void loadSeries();
  }, PAUSE);
}

/** A series is made of its tilts: what happens to them is news of it. */
export function seriesNews(items: Item[]): void {
  if (items.some((item) => item.kind === "series" || item.kind === "tilt")) reloadSeries();
}
