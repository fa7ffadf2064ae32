/** What is said about tilt series, in words and badges. */
import type { HandHead, SeriesHead } from "../data/series";
import { DASH } from "../ui/format";
import { Shape } from "../ui/states";

export const STEP_NAMES: Record<string, string> = {
  stack: "Stack",
  align: "Alignment",
  tilt_ctf: "CTF",
  reconstruct: "Tomogram",
  match: "Search",
  candidates: "Candidates",
};

export const stepName = (step: string): string => STEP_NAMES[step] ?? step.replaceAll("_", " ");

const METHODS: Record<string, string> = {
  fiducials: "gold beads",
  patches: "patches",
  none: "stage angles only",
};

export const methodName = (method: string): string => METHODS[method] ?? method;

/** With a true minus, and a plus: −60.0°, +3.0°. */
export function degrees(angle: number | null | undefined, digits = 1): string {
  if (angle === null || angle === undefined) return DASH;
  const text = Math.abs(angle).toFixed(digits);
  return `${Number(text) === 0 ? "" : angle < 0 ? "−" : "+"}${text}°`;
}

/** Of a defocus in Å. */
export const micrometres = (angstrom: number | null | undefined, decimals = 2): string =>
  angstrom === null || angstrom === undefined ? DASH : `${(angstrom * 1e-4).toFixed(decimals)} µm`;

/** As many decimals for all: numbers below each other are compared. */
export const angstrom = (value: number | null | undefined, decimals = 1): string =>
  value === null || value === undefined ? DASH : `${value.toFixed(decimals)} Å`;

export const signed = (value: number, decimals = 2): string => value.toFixed(decimals).replace("-", "−");

export const percent = (value: number | null | undefined): string =>
  value === null || value === undefined ? DASH : `${Math.round(100 * value)} %`;

export const handSign = (hand: number | null | undefined): string =>
  hand === null || hand === undefined ? DASH : hand > 0 ? "+1" : hand < 0 ? "−1" : "undecided";

/** Server's sentences have plain hyphens for minus. */
export const withMinus = (text: string): string => text.replaceAll(/(^|[\s(])-(?=\d)/g, "$1−");

const GOOD = new Set(["good", "certain"]);
const POOR = new Set(["bad"]);

export function VerdictWord({ verdict }: { verdict: string | null | undefined }) {
  if (!verdict) return null;
  const kind = GOOD.has(verdict) ? "done" : POOR.has(verdict) ? "failed" : "stale";
  const shape = kind === "done" ? "done" : kind === "failed" ? "failed" : "rejected";
  return (
    <span class={`verdict-word state-${kind}`}>
      <Shape of={shape} />
      {verdict}
    </span>
  );
}

export function handWords(hand: HandHead | null): string {
  if (!hand) return DASH;
  const origin = { found: "", set: ", set by hand", assumed: ", assumed" }[hand.origin ?? "found"];
  return `${handSign(hand.hand)}${origin}`;
}

export function rangeWords(one: SeriesHead): string {
  return one.angle_min === null ? DASH : `${degrees(one.angle_min, 0)} … ${degrees(one.angle_max, 0)}`;
}

/** A sentence of the session about a series, whose name stands beside it already. */
export const about = (name: string, text: string): string => withMinus(text.replace(`${name}: `, ""));

/** The one sentence that explains the state; empty where the state says it all. */
export function why(one: SeriesHead): string {
  const reason = `${one.step ? `${stepName(one.step)}: ` : ""}${about(one.name, one.reason)}`;
  if (one.state === "failed") return reason;
  if (one.waiting) return about(one.name, one.waiting);
  if (one.state === "stale") return reason;
  if (one.to_come > 0) return `${one.to_come} of ${one.tilts} movies are still to be processed`;
  return "";
}
