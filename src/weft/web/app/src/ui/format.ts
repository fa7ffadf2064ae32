/** Numbers and times as people read them. */

export const DASH = "–";

/** Three significant digits, without an exponent where it can be helped. */
export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 1);
  if (size >= 10 ** digits) return Math.round(value).toLocaleString("en");
  return Number(value.toPrecision(digits)).toString();
}

export function quantity(value: number | null | undefined, unit: string): string {
  const text = number(value);
  if (text === DASH || !unit) return text;
  return unit === "°" || unit === "%" ? `${text}${unit}` : `${text} ${unit}`;
}

export const count = (value: number): string => value.toLocaleString("en");

export const plural = (n: number, one: string, many = `${one}s`): string => `${count(n)} ${n === 1 ? one : many}`;

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

export function bytes(size: number | null | undefined): string {
  if (size === null || size === undefined) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let value = size;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

const two = (value: number): string => String(value).padStart(2, "0");

/** Local time: the hour alone for today, the date before it otherwise. */
export function moment(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return DASH;
  const date = new Date(seconds * 1000);
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (date.toDateString() === new Date().toDateString()) return clock;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock}`;
}

/** Labels of a time axis: the hour, and the day where it is another one. */
export function clockTicks(ticks: readonly number[]): string[] {
  const step = ticks.length > 1 ? ticks[1]! - ticks[0]! : 60;
  let day = "";
  return ticks.map((tick) => {
    const date = new Date(tick * 1000);
    const name = date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
    const clock = `${two(date.getHours())}:${two(date.getMinutes())}${step < 60 ? `:${two(date.getSeconds())}` : ""}`;
    if (step >= 86400) return name;
    const text = name === day ? clock : `${name} ${clock}`;
    day = name;
    return text;
  });
}

/** A settings value as a person would type it. */
export function settingText(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.map(settingText).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
