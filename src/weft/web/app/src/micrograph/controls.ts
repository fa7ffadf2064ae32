/** How micrographs are looked at: kept from one to the next. */
import { signal } from "@preact/signals";

export const contrast = signal<[number, number]>([0, 255]);
export const deconvolve = signal(true);
export const strength = signal(1);
export const falloff = signal(1);
export const denoised = signal(false);
export const showPicks = signal(true);
export const showMask = signal(true);
export const showDefocus = signal(false);
/** The picker whose picks are shown; empty for people's own, else those of the model that is set. */
export const picker = signal("");
/** Picker → the least score that is shown. */
export const leastScores = signal<Readonly<Record<string, number>>>({});
/** Whether the panel for teaching the picker is open. */
export const teaching = signal(false);
