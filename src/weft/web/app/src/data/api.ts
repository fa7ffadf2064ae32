/** Requests to the server. Addresses are relative: the page also works behind a proxy's prefix. */
import { signal } from "@preact/signals";
import type {
  Advice,
  Bounds,
  ColumnsReply,
  Curve,
  Decision,
  DefocusMap,
  ItemDetails,
  Picks,
  Preview,
  Selection,
  SettingsReply,
  Status,
  Tracks,
  Training,
  TrainingOrder,
} from "./types";

/** Set once the server has refused the cookie: only the start address helps then. */
export const expired = signal(false);

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly errors: Record<string, string> = {},
  ) {
    super(message);
  }
}

interface ErrorBody {
  detail?: unknown;
  errors?: Record<string, string>;
}

function sentence(detail: unknown): string {
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) {
    return detail.map((part: { msg?: string }) => part.msg ?? JSON.stringify(part)).join("; ");
  }
  if (detail && typeof detail === "object" && "message" in detail) return String(detail.message);
  return "";
}

async function failure(reply: Response): Promise<ApiError> {
  let body: ErrorBody = {};
  try {
    body = (await reply.json()) as ErrorBody;
  } catch {
    // not JSON: the status has to do
  }
  const nested = body.detail as { errors?: Record<string, string> } | undefined;
  const errors = body.errors ?? (nested && typeof nested === "object" ? nested.errors : undefined);
  return new ApiError(reply.status, sentence(body.detail) || `The server answered ${reply.status}.`, errors);
}

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  let reply: Response;
  try {
    reply = await fetch(path, { credentials: "same-origin", ...init });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (reply.status === 401) expired.value = true;
  if (!reply.ok) throw await failure(reply);
  return reply;
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await request(path, { signal })).json()) as T;
}

export async function send<T>(method: string, path: string, body: unknown = {}): Promise<T> {
  const headers = { "Content-Type": "application/json" };
  const reply = await request(path, { method, headers, body: JSON.stringify(body) });
  const text = await reply.text();
  return (text ? JSON.parse(text) : null) as T;
}

const item = (id: string) => `api/items/${encodeURIComponent(id)}`;

export interface ViewOptions {
  size: number;
  strength?: number;
  falloff?: number;
  highpass?: number;
  denoised?: boolean;
}

export const picture = (id: string, kind: "thumbnail" | "powerspectrum", revision: string) =>
  // with a revision it may be kept for ever, without one it is asked for again
  `${item(id)}/picture/${kind}${revision ? `?v=${encodeURIComponent(revision)}` : ""}`;

/** Before and after preprocessing, with their power spectra. */
export const comparisonAddress = (id: string, revision: string) =>
  `${item(id)}/comparison?v=${encodeURIComponent(revision)}`;

export function viewAddress(id: string, options: ViewOptions, revision: string): string {
  const query = new URLSearchParams({ size: String(options.size), v: revision });
  for (const key of ["strength", "falloff", "highpass"] as const) {
    const value = options[key];
    if (value !== undefined) query.set(key, String(value));
  }
  if (options.denoised) query.set("denoised", "1");
  return `${item(id)}/view?${query}`;
}

/** A picture decoded off the main thread. */
export async function bitmap(path: string, signal?: AbortSignal): Promise<ImageBitmap> {
  const blob = await (await request(path, { signal })).blob();
  return createImageBitmap(blob, { colorSpaceConversion: "none" });
}

export const api = {
  status: () => get<Status>("api/status"),
  columns: () => get<ColumnsReply>("api/columns"),
  selection: () => get<Selection>("api/selection"),
  setRanges: (ranges: Record<string, Bounds | null>) =>
    send<Selection>("PUT", "api/selection", { ranges }),
  item: (id: string, signal?: AbortSignal) => get<ItemDetails>(item(id), signal),
  curve: (id: string, signal?: AbortSignal) => get<Curve>(`${item(id)}/curve`, signal),
  tracks: (id: string, signal?: AbortSignal) => get<Tracks>(`${item(id)}/tracks`, signal),
  defocus: (id: string, signal?: AbortSignal) => get<DefocusMap>(`${item(id)}/defocus`, signal),
  mask: (id: string, revision: string) => bitmap(`${item(id)}/mask?v=${encodeURIComponent(revision)}`),
  /** Without a picker those of people, else those of the model that is set. */
  picks: (id: string, picker: string, signal?: AbortSignal) =>
    get<Picks>(`${item(id)}/picks${picker ? `?picker=${encodeURIComponent(picker)}` : ""}`, signal),
  /** Becomes "manual"; what the picker has found stays as it is. */
  savePicks: (id: string, { picks, diameter, picker }: Picks) =>
    send<Picks>("PUT", `${item(id)}/picks`, {
      picks: picks.map(({ x, y }) => ({ x, y })),
      diameter,
      ...(picker ? { picker } : {}),
    }),
  training: (signal?: AbortSignal) => get<Training>("api/picking/train", signal),
  train: (order: TrainingOrder) => send<Training>("POST", "api/picking/train", order),
  stopTraining: () => send<Training>("POST", "api/picking/train/stop"),
  retry: (items: string[]) => send<unknown>("POST", "api/retry", { items }),
  decide: (items: string[], decision: Decision) =>
    send<unknown>("POST", "api/decisions", {
      items,
      accept: decision === null ? null : decision === "include",
    }),
  settings: () => get<SettingsReply>("api/settings"),
  preview: (changes: Record<string, string>) => send<Preview>("POST", "api/settings/preview", { changes }),
  apply: (changes: Record<string, string>) => send<SettingsReply>("POST", "api/settings", { changes }),
  advice: () => get<Advice[]>("api/advice"),
  pause: () => send<unknown>("POST", "api/pause"),
  resume: () => send<unknown>("POST", "api/resume"),
};
