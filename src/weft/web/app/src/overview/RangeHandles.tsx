/** The accepted range as two lines across the plot, dragged by pointer or moved by keys. */
import { useRef } from "preact/hooks";
import type { Bounds } from "../data/types";
import { niceStep } from "../plots/canvas";
import { BOTTOM, TOP } from "../plots/series";
import { quantity } from "../ui/format";

interface Props {
  label: string;
  unit: string;
  scale: [number, number];
  bounds: Bounds;
  disabled: boolean;
  onDrag: (bounds: Bounds) => void;
  onCommit: (bounds: Bounds) => void;
}

type Side = 0 | 1;
const KEY_PAUSE = 400;

export function RangeHandles({ label, unit, scale, bounds, disabled, onDrag, onCommit }: Props) {
  const layer = useRef<HTMLDivElement>(null);
  const latest = useRef<Bounds>(bounds);
  const timer = useRef(0);
  latest.current = bounds;
  const [min, max] = scale;
  const span = max - min || 1;
  const step = niceStep(span, 200);

  /** From the top of the plot: 0 to 1. */
  const fraction = (side: Side): number => {
    const value = bounds[side];
    if (value === null) return side === 1 ? 0 : 1;
    return Math.max(0, Math.min(1, (max - value) / span));
  };

  const moved = (side: Side, value: number | null): Bounds => {
    const other = latest.current[1 - side] ?? null;
    let rounded = value === null ? null : Number((Math.round(value / step) * step).toPrecision(6));
    if (rounded !== null && other !== null) {
      rounded = side === 1 ? Math.max(rounded, other) : Math.min(rounded, other);
    }
    return side === 1 ? [other, rounded] : [rounded, other];
  };

  function drag(side: Side, event: PointerEvent): void {
    if (disabled || event.button !== 0) return;
    event.preventDefault();
    const handle = event.currentTarget as HTMLElement;
    handle.setPointerCapture(event.pointerId);
    handle.focus();
    const rect = layer.current!.getBoundingClientRect();
    const inner = rect.height - TOP - BOTTOM;
    let next: Bounds | null = null;
    const follow = (at: PointerEvent) => {
      const y = at.clientY - rect.top - TOP;
      // at the edge of the plot there is no limit
      const free = side === 1 ? y <= 1 : y >= inner - 1;
      next = moved(side, free ? null : max - (Math.max(0, Math.min(inner, y)) / inner) * span);
      onDrag(next);
    };
    const end = () => {
      handle.removeEventListener("pointermove", follow);
      handle.removeEventListener("pointerup", end);
      handle.removeEventListener("pointercancel", end);
      if (next) onCommit(next);
    };
    handle.addEventListener("pointermove", follow);
    handle.addEventListener("pointerup", end);
    handle.addEventListener("pointercancel", end);
  }

  function key(side: Side, event: KeyboardEvent): void {
    if (disabled) return;
    const steps: Record<string, number> = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    const by = steps[event.key];
    const free = event.key === "Delete" || event.key === (side === 1 ? "Home" : "End");
    if (by === undefined && !free) return;
    event.preventDefault();
    const from = latest.current[side] ?? (side === 1 ? max : min);
    const next = moved(side, free ? null : from + (by ?? 0) * Math.max(step, niceStep(span, 100)));
    latest.current = next;
    onDrag(next);
    window.clearTimeout(timer.current);
    timer.current = window.setTimeout(() => onCommit(latest.current), KEY_PAUSE);
  }

  const top = (side: Side) => `calc(${TOP}px + (100% - ${TOP + BOTTOM}px) * ${fraction(side).toFixed(5)})`;
  const handle = (side: Side) => {
    const value = bounds[side];
    const name = side === 1 ? "upper" : "lower";
    return (
      <div
        class={`range-handle range-${name}${value === null ? " parked" : ""}`}
        style={{ top: top(side) }}
        role="slider"
        tabIndex={disabled ? -1 : 0}
        aria-label={`${label}: ${name} limit`}
        aria-orientation="vertical"
        aria-valuemin={min}
        aria-valuemax={max}
        aria-valuenow={value ?? (side === 1 ? max : min)}
        aria-valuetext={value === null ? "no limit" : quantity(value, unit)}
        aria-disabled={disabled}
        onPointerDown={(event) => drag(side, event)}
        onKeyDown={(event) => key(side, event)}
      >
        <span class="range-grip" />
      </div>
    );
  };
  return (
    <div class={`range-layer${disabled ? " disabled" : ""}`} ref={layer}>
      <div
        class="range-shade"
        style={{ top: `${TOP}px`, height: `calc((100% - ${TOP + BOTTOM}px) * ${fraction(1).toFixed(5)})` }}
      />
      <div
        class="range-shade"
        style={{ bottom: `${BOTTOM}px`, height: `calc((100% - ${TOP + BOTTOM}px) * ${(1 - fraction(0)).toFixed(5)})` }}
      />
      {handle(1)}
      {handle(0)}
    </div>
  );
}
