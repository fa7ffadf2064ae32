/** Views by the address's hash: `#/micrograph/<id>`, `#/micrographs?state=failed`. */
import { computed, signal } from "@preact/signals";

const hash = signal(window.location.hash);
window.addEventListener("hashchange", () => (hash.value = window.location.hash));

/** The view that is seen first: known once the server has told what the session holds. */
export const home = signal("");

export interface Route {
  view: string;
  id: string;
  query: URLSearchParams;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const route = computed<Route>(() => {
  const [path = "", query = ""] = hash.value.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view = "", ...rest] = path.split("/");
  return { view: view || home.value, id: decode(rest.join("/")), query: new URLSearchParams(query) };
});

export const address = {
  overview: "#/overview",
  series: (id = "", query: Record<string, string> = {}) => {
    const text = new URLSearchParams(query).toString();
    return `#/series${id ? `/${encodeURIComponent(id)}` : ""}${text ? `?${text}` : ""}`;
  },
  settings: "#/settings",
  micrographs: (query: Record<string, string> = {}) => {
    const text = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "")).toString();
    return `#/micrographs${text ? `?${text}` : ""}`;
  },
  micrograph: (id: string) => `#/micrograph/${encodeURIComponent(id)}`,
};

export function go(to: string): void {
  window.location.hash = to;
}

/** Change the query without a step in the browser's history. */
export function replaceQuery(to: string): void {
  window.history.replaceState(null, "", to);
  hash.value = to;
}
