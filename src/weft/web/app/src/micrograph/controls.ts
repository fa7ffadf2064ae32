/** How micrographs are looked at: kept from one to the next. */
import { signal } from "@preact/signals";

export const contrast = signal<[number, number]>([0, 255]);
export const deconvolve = signal(true);
export const strength = signal(1);
export const falloff = signal(1);
export const denoised = signal(false);
export const showPicks = signal(true);
export const showMask = signal(false);
export const showDefocus = signal(false);
