/** Which micrographs the pointer or a brush has singled out, in whatever plot. */
import { computed, signal } from "@preact/signals";
import { columns } from "./columns";

/** Index of the item under the pointer, or −1. */
export const hovered = signal(-1);

/** Indices of the brushed items, in the order of acquisition. */
export const brushed = signal<readonly number[]>([]);

/** The stretch that all series show, as places in the order of acquisition; `last` moves along; null is everything. */
export type Zoom = { last: number } | { from: number; to: number } | null;
export const zoom = signal<Zoom>(null);

/** What the x axis counts: the order of acquisition, or hours and minutes. */
export const axis = signal<"order" | "time">("order");

export const brushedIds = computed(() => brushed.value.map((index) => columns.ids[index] ?? ""));

/** One flag an item: plots ask for every point. */
export const brushedMask = computed(() => {
  const mask = new Uint8Array(columns.length);
  for (const index of brushed.value) mask[index] = 1;
  return mask;
});

export function clearBrush(): void {
  brushed.value = [];
}
