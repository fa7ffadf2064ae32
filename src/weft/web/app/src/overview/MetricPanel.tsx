/** One metric: its range, its series and its histogram. */
import { effect, useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { columns } from "../data/columns";
import { axis, brushed, hovered, zoom } from "../data/highlight";
import { readonly, selection, setRanges } from "../data/store";
import type { Bounds, Quantity } from "../data/types";
import { cancel, schedule } from "../plots/frames";
import { SeriesPlot } from "../plots/series";
import { count } from "../ui/format";
import { palette } from "../ui/theme";
import { RangeHandles } from "./RangeHandles";
import { RangeInputs } from "./RangeInputs";

const NO_BOUNDS: Bounds = [null, null];

function within(name: string, [low, high]: Bounds): number {
  let n = 0;
  for (const value of columns.column(name)?.values ?? []) {
    if (value >= (low ?? Number.NEGATIVE_INFINITY) && value <= (high ?? Number.POSITIVE_INFINITY)) n++;
  }
  return n;
}

interface Props {
  name: string;
  label: string;
  unit: string;
  quantity: Quantity | undefined;
}

export function MetricPanel({ name, label, unit, quantity }: Props) {
  const host = useRef<HTMLDivElement>(null);
  const histogram = useRef<HTMLCanvasElement>(null);
  const scale = useSignal<[number, number]>([0, 1]);
  /** The range while it is dragged: the session changes when the handle is let go. */
  const dragged = useSignal<Bounds | null>(null);
  const saved = useComputed(() => JSON.stringify(selection.value?.ranges[name] ?? NO_BOUNDS));

  useEffect(() => {
    const element = host.current!;
    const plot = new SeriesPlot(element, histogram.current!, label);
    const marks = {};
    let visible = false;
    const drawMarks = () => plot.drawMarks(palette.peek());
    const draw = () => {
      const column = columns.column(name);
      if (!visible || !column) return;
      plot.draw(column, JSON.parse(saved.peek()) as Bounds, palette.peek());
      if (scale.peek().join() !== plot.scale.join()) scale.value = plot.scale;
    };
    const seen = new IntersectionObserver((entries) => {
      visible = entries.some((entry) => entry.isIntersecting);
      if (visible) schedule(plot, draw);
    });
    const sized = new ResizeObserver(() => schedule(plot, draw));
    seen.observe(element);
    sized.observe(element);
    const stops = [
      effect(() => {
        void [columns.version.value, zoom.value, axis.value, palette.value, saved.value];
        schedule(plot, draw);
      }),
      effect(() => {
        void [hovered.value, brushed.value];
        if (visible) schedule(marks, drawMarks);
      }),
    ];
    return () => {
      for (const stop of stops) stop();
      seen.disconnect();
      sized.disconnect();
      cancel(plot);
      cancel(marks);
      plot.destroy();
    };
  }, [name, label, saved, scale]);

  const bounds = dragged.value ?? (JSON.parse(saved.value) as Bounds);
  const limited = bounds[0] !== null || bounds[1] !== null;
  const commit = (next: Bounds) => {
    dragged.value = null;
    void setRanges({ [name]: next[0] === null && next[1] === null ? null : next });
  };
  return (
    <section class="panel metric" aria-label={label} data-metric={name}>
      <header class="panel-head">
        <h2>
          {label}
          {unit && <span class="unit">{unit}</span>}
        </h2>
        {quantity && (
          <>
            <span class="metric-counts" role="status">
              {dragged.value
                ? `${count(within(name, bounds))} within`
                : limited && `${count(quantity.passes)} pass · ${count(quantity.only)} lost to this alone`}
            </span>
            <RangeInputs
              label={label}
              unit={unit}
              bounds={bounds}
              disabled={readonly.value}
              onChange={commit}
            />
          </>
        )}
      </header>
      <div class="metric-body">
        <div class="metric-series" ref={host} />
        <div class="metric-histogram"><canvas ref={histogram} aria-hidden="true" /></div>
        {quantity && (
          <RangeHandles
            label={label}
            unit={unit}
            scale={scale.value}
            bounds={bounds}
            disabled={readonly.value}
            onDrag={(next) => (dragged.value = next)}
            onCommit={commit}
          />
        )}
      </div>
    </section>
  );
}
