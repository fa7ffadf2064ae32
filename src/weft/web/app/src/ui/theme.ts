/** Light or dark, and the colours that canvases need. */
import { computed, signal } from "@preact/signals";

export type Choice = "auto" | "light" | "dark";
const KEY = "weft-theme";
const system = window.matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(system.matches);
system.addEventListener("change", (event) => (systemDark.value = event.matches));

function stored(): Choice {
  try {
    const value = window.localStorage.getItem(KEY);
    return value === "light" || value === "dark" ? value : "auto";
  } catch {
    return "auto";
  }
}

export const themeChoice = signal<Choice>(stored());
export const dark = computed(() =>
  themeChoice.value === "auto" ? systemDark.value : themeChoice.value === "dark",
);

export function chooseTheme(choice: Choice): void {
  themeChoice.value = choice;
  try {
    window.localStorage.setItem(KEY, choice);
  } catch {
    // a browser that stores nothing forgets the choice, and that is all
  }
}

const NAMES = {
  text: "--text",
  muted: "--muted",
  grid: "--grid",
  panel: "--panel",
  line: "--line",
  good: "--good",
  bad: "--bad",
  mark: "--mark",
  accent: "--accent",
  range: "--range",
} as const;

export type Palette = Record<keyof typeof NAMES, string>;

/** Colours of the style sheet as canvases understand them; read again when the theme changes. */
export const palette = computed<Palette>(() => {
  document.documentElement.dataset["theme"] = dark.value ? "dark" : "light";
  const probe = document.createElement("span");
  document.body.append(probe);
  const entries = Object.entries(NAMES).map(([name, variable]) => {
    probe.style.color = `var(${variable})`;
    return [name, getComputedStyle(probe).color];
  });
  probe.remove();
  return Object.fromEntries(entries) as Palette;
});
