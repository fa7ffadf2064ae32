/** What the pointer and the keys do in every plot of micrographs: hover, open, brush. */
import { columns } from "../data/columns";
import { brushed, clearBrush, hovered } from "../data/highlight";
import { address, go } from "../router";
import { signal } from "@preact/signals";
import type { Cloud } from "./cloud";

/** Where the card of the hovered micrograph is to be shown, in the window; null hides it. */
export const cardAt = signal<{ x: number; y: number } | null>(null);

const REACH = 14;
const CLICK = 4;

export function attach(element: HTMLElement, cloud: () => Cloud): () => void {
  let start: { x: number; y: number } | null = null;
  let dragging = false;
  const box = document.createElement("div");
  box.className = "brush-box";
  element.append(box);

  const place = (event: PointerEvent) => {
    const rect = element.getBoundingClientRect();
    return { x: event.clientX - rect.left, y: event.clientY - rect.top };
  };

  function hover(item: number, x: number, y: number): void {
    hovered.value = item;
    cardAt.value = item < 0 ? null : { x, y };
  }

  function move(event: PointerEvent): void {
    const at = place(event);
    if (!start) {
      if (event.pointerType === "mouse") {
        hover(cloud().nearest(at.x, at.y, REACH), event.clientX, event.clientY);
      }
      return;
    }
    if (!dragging && Math.hypot(at.x - start.x, at.y - start.y) < CLICK) return;
    dragging = true;
    hover(-1, 0, 0);
    const [left, right] = [Math.min(at.x, start.x), Math.max(at.x, start.x)];
    const [top, bottom] = [Math.min(at.y, start.y), Math.max(at.y, start.y)];
    box.style.display = "block";
    box.style.transform = `translate(${left}px, ${top}px)`;
    box.style.width = `${right - left}px`;
    box.style.height = `${bottom - top}px`;
    brushed.value = cloud().within(left, top, right, bottom);
  }

  function down(event: PointerEvent): void {
    if (event.button !== 0) return;
    start = place(event);
    dragging = false;
    if (event.pointerType === "mouse") element.setPointerCapture(event.pointerId);
  }

  function up(event: PointerEvent): void {
    if (!start) return;
    const at = place(event);
    box.style.display = "none";
    if (!dragging) {
      const item = cloud().nearest(at.x, at.y, event.pointerType === "mouse" ? REACH : 2 * REACH);
      const id = columns.ids[item];
      // the first tap shows which one it is, the second opens it
      if (event.pointerType !== "mouse" && hovered.value !== item) hover(item, event.clientX, event.clientY);
      else if (id !== undefined) go(address.micrograph(id));
      else clearBrush();
    }
    start = null;
    dragging = false;
  }

  function stop(): void {
    start = null;
    dragging = false;
    box.style.display = "none";
  }

  function leave(): void {
    if (!start) hover(-1, 0, 0);
  }

  /** Arrows go through the points in the order of acquisition. */
  function key(event: KeyboardEvent): void {
    const points = cloud();
    const id = columns.ids[hovered.value];
    if (event.key === "Enter" && id !== undefined) {
      go(address.micrograph(id));
    } else if (event.key === "Escape") {
      clearBrush();
      hover(-1, 0, 0);
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      if (points.n === 0) return;
      const slot = points.slot(hovered.value);
      const step = event.key === "ArrowRight" ? 1 : -1;
      const next = slot < 0 ? points.n - 1 : Math.min(points.n - 1, Math.max(0, slot + step));
      const rect = element.getBoundingClientRect();
      hover(points.items[next]!, rect.left + points.x[next]!, rect.top + points.y[next]!);
    } else {
      return;
    }
    event.preventDefault();
  }

  element.addEventListener("pointermove", move);
  element.addEventListener("pointerdown", down);
  element.addEventListener("pointerup", up);
  element.addEventListener("pointercancel", stop);
  element.addEventListener("pointerleave", leave);
  element.addEventListener("keydown", key);
  element.addEventListener("blur", leave);
  return () => {
    element.removeEventListener("pointermove", move);
    element.removeEventListener("pointerdown", down);
    element.removeEventListener("pointerup", up);
    element.removeEventListener("pointercancel", stop);
    element.removeEventListener("pointerleave", leave);
    element.removeEventListener("keydown", key);
    element.removeEventListener("blur", leave);
    box.remove();
  };
}
