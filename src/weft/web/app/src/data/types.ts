/** What the server says and hears, as `/openapi.json` describes it. */

export type State = "new" | "processing" | "done" | "failed" | "stale";
export type Decision = "include" | "exclude" | null;
export type Metrics = Record<string, number | string | boolean | null>;

export interface Worker {
  name: string;
  state: string;
  item: string | null;
  seconds: number | null;
}

export interface Alert {
  id: string;
  level: "warning" | "error";
  text: string;
  items: string[];
}

export interface Counts {
  total: number;
  done: number;
  failed: number;
  stale: number;
  new: number;
  processing: number;
  excluded: number;
  selected: number;
}

export interface Status {
  session: string;
  version: string;
  readonly: boolean;
  /** Whether the movies are tilts of series. */
  of_tilts?: boolean;
  items: Counts;
  throughput: { per_hour: number | null; recent_per_hour: number | null };
  backlog: number;
  time_left_s: number | null;
  disk: { free: number; total: number };
  workers: Worker[];
  watching: boolean;
  paused: string | null;
  waiting: { name: string; reason: string }[];
  alerts: Alert[];
}

export interface Item {
  id: string;
  name: string;
  kind: string;
  state: State;
  reason: string;
  step: string;
  selected: boolean;
  reasons: string[];
  manual: Decision;
  time: number;
  processed: number | null;
  folder: string;
  /** As in the record. */
  metrics: Metrics;
  /** In the names and units of the columns. */
  shown?: Record<string, number | null>;
  outputs: string[];
  revision: string;
}

export interface StepInfo {
  name: string;
  state: string;
  reason: string;
  seconds: number | null;
  settings: Record<string, Record<string, unknown>>;
}

export interface ItemDetails extends Item {
  source: string;
  size: number | null;
  shape: number[] | null;
  pixel_size: number | null;
  extent: Point | null;
  steps: StepInfo[];
  error: string | null;
  notes: string[];
}

export interface MetricColumn {
  label: string;
  unit: string;
  values: (number | null)[];
}

export interface ColumnsReply {
  version: number;
  ids: string[];
  time: number[];
  state: State[];
  selected: number[];
  kind?: string[];
  folder?: string[];
  reason?: string[];
  revision?: string[];
  metrics: Record<string, MetricColumn>;
}

export type Bounds = [number | null, number | null];

export interface Quantity {
  name: string;
  label: string;
  unit: string;
  min: number | null;
  max: number | null;
  passes: number;
  only: number;
}

export interface Selection {
  ranges: Record<string, Bounds>;
  include: string[];
  exclude: string[];
  quantities: Quantity[];
  selected: number;
}

export interface SelectionEvent extends Partial<Selection> {
  changed?: Record<string, number>;
}

export interface Field {
  name: string;
  key: string;
  description: string;
  unit: string;
  kind: "bool" | "int" | "float" | "text" | "choice" | "list";
  choices: string[];
  allowed: string;
  required: boolean;
  default: unknown;
  value: unknown;
}

export interface Section {
  name: string;
  description?: string;
  fields: Field[];
}

export interface SettingsReply {
  sections: Section[];
}

export interface Preview {
  errors: Record<string, string>;
  steps: Record<string, number>;
  items: number;
}

export interface Advice {
  kind: string;
  folder: string;
  text: string;
  evidence: Record<string, unknown>;
}

export interface Curve {
  frequency: number[];
  data: (number | null)[];
  fit: (number | null)[];
  quality: (number | null)[];
}

export type Point = [number, number];

export interface Tracks {
  extent: Point;
  global: Point[];
  local: { at: Point; track: Point[] }[];
}

export interface DefocusMap {
  extent: Point;
  rows: number[][];
}

export interface Pick {
  x: number;
  y: number;
  /** How sure the picker is; null of those picked by hand. */
  score: number | null;
}

export interface Picks {
  picks: Pick[];
  diameter: number | null;
  /** Whose they are: "manual" for people's own. */
  picker: string;
  /** Who has picked in this micrograph. */
  pickers: string[];
}

export interface TrainingOrder {
  picks: string;
  name: string;
  start: string;
  diameter?: number | null;
}

/** Parts of the pixels that are right: which network on which data. */
export interface Accuracies {
  step: number;
  old_on_old: number | null;
  new_on_old: number | null;
  old_on_new: number | null;
  new_on_new: number | null;
}

/** A picking network that is being taught, or was. */
export interface Training {
  state: "none" | "running" | "done" | "failed" | "stopped";
  order: TrainingOrder | null;
  text: string;
  left_out: string[];
  steps: number | null;
  history: Accuracies[];
  seconds: number | null;
  model: string;
  models: string[];
  /** Whose picks can be learned: in how many micrographs. */
  pickers: Record<string, number>;
}
