/** One metric over time (uPlot), its histogram beside it, and the marks of highlighted micrographs. */
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { columns, type Column } from "../data/columns";
import { axis, brushed, brushedMask, hovered, zoom } from "../data/highlight";
import { clockTicks, number } from "../ui/format";
import type { Palette } from "../ui/theme";
import { font, prepare } from "./canvas";
import { Cloud } from "./cloud";
import { attach } from "./pointer";

export const TOP = 8;
export const BOTTOM = 22;
export const LEFT = 48;
const HISTOGRAM_BINS = 36;

/** Where most of the values lie; a few wild ones must not flatten the rest. */
export function robustScale(values: Float64Array, extra: (number | null | undefined)[]): [number, number] {
  const n = values.length;
  if (n === 0) return [0, 1];
  const at = (part: number) => values[Math.round(part * (n - 1))]!;
  const cut = n >= 200 ? 0.002 : 0;
  // where quartiles say that there is a tail, it is cut short
  const reach = n >= 20 && at(0.75) > at(0.25) ? 5 * (at(0.75) - at(0.25)) : Number.POSITIVE_INFINITY;
  let low = Math.max(at(cut), at(0.25) - reach);
  let high = Math.min(at(1 - cut), at(0.75) + reach);
  const spread = high - low || Math.abs(high) * 0.1 || 1;
  for (const bound of extra) {
    if (typeof bound !== "number") continue;
    if (bound > high && bound < high + 2 * spread) high = bound;
    if (bound < low && bound > low - 2 * spread) low = bound;
  }
  const margin = (high - low || spread) * 0.08;
  const floor = values[0]! >= 0 ? 0 : Number.NEGATIVE_INFINITY;
  return [Math.max(floor, low - margin), high + margin];
}

let xVersion = -1;
let xKind = "";
let xValues: Float64Array<ArrayBuffer> = new Float64Array(0);

/** The x axis is the same for all series. */
function sharedX(): Float64Array<ArrayBuffer> {
  const version = columns.version.peek();
  const kind = axis.peek();
  if (version !== xVersion || kind !== xKind) {
    const order = columns.order();
    xValues = new Float64Array(order.length);
    for (let i = 0; i < order.length; i++) xValues[i] = kind === "time" ? columns.time[order[i]!]! : i + 1;
    xVersion = version;
    xKind = kind;
  }
  return xValues;
}

export class SeriesPlot {
  readonly cloud = new Cloud();
  scale: [number, number] = [0, 1];
  private plot: uPlot | null = null;
  private kind = "";
  private detach: (() => void) | null = null;
  private marks = document.createElement("canvas");
  private x: Float64Array<ArrayBuffer> = new Float64Array(0);
  private y: Float64Array<ArrayBuffer> = new Float64Array(0);
  private colours: Palette | null = null;

  constructor(
    private readonly host: HTMLElement,
    private readonly histogram: HTMLCanvasElement,
    private readonly label: string,
  ) {
    this.marks.className = "marks";
  }

  /** Draw everything again: after new data, another range, theme or size. */
  draw(column: Column, bounds: readonly (number | null)[], colours: Palette): void {
    const order = columns.order();
    this.x = sharedX();
    this.y = new Float64Array(order.length);
    const finite = new Float64Array(order.length);
    let n = 0;
    for (let i = 0; i < order.length; i++) {
      const value = column.values[order[i]!]!;
      this.y[i] = value;
      if (!Number.isNaN(value)) finite[n++] = value;
    }
    this.scale = robustScale(finite.subarray(0, n).sort(), [bounds[0], bounds[1]]);
    const width = this.host.clientWidth;
    const height = this.host.clientHeight;
    if (width < 80 || height < 50) return;
    if (!this.plot || this.kind !== axis.peek() || this.colours !== colours) this.make(width, height, colours);
    const plot = this.plot!;
    plot.batch(() => {
      if (plot.width !== width || plot.height !== height) plot.setSize({ width, height });
      plot.setData([this.x, this.y], false);
      plot.setScale("x", this.stretch());
      plot.setScale("y", { min: this.scale[0], max: this.scale[1] });
    });
    this.drawHistogram(colours);
    this.drawMarks(colours);
  }

  private stretch(): { min: number; max: number } {
    const zoomed = zoom.peek();
    const n = this.x.length;
    const at = (index: number) => this.x[Math.max(0, Math.min(n - 1, index))] ?? 0;
    const from = zoomed === null ? 0 : "last" in zoomed ? n - zoomed.last : zoomed.from;
    const [min, max] = [at(from), at(zoomed && "to" in zoomed ? zoomed.to : n - 1)];
    const margin = Math.max((max - min) * 0.01, axis.peek() === "time" ? 1 : 0.5);
    return { min: min - margin, max: max + margin };
  }

  private make(width: number, height: number, colours: Palette): void {
    this.detach?.();
    this.plot?.destroy();
    this.kind = axis.peek();
    this.colours = colours;
    const line = { stroke: colours.grid, width: 1 };
    const shared = { stroke: colours.muted, grid: line, ticks: { show: false }, font: font() };
    this.plot = new uPlot(
      {
        width,
        height,
        padding: [TOP, 16, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: this.kind === "time", range: (_, min, max) => [min, max] },
          y: { range: (_, min, max) => [min, max] },
        },
        axes: [
          {
            ...shared,
            size: BOTTOM,
            gap: 2,
            space: this.kind === "time" ? 90 : 70,
            ...(this.kind === "time" ? { values: (_: uPlot, ticks: number[]) => clockTicks(ticks) } : {}),
          },
          { ...shared, size: LEFT, gap: 4, space: 26, values: (_, ticks) => ticks.map((tick) => number(tick, 4)) },
        ],
        series: [{}, { paths: () => null, points: { show: false } }],
        hooks: { draw: [(plot) => this.drawPoints(plot)] },
      },
      [this.x, this.y],
      this.host,
    );
    const { over } = this.plot;
    over.append(this.marks);
    over.tabIndex = 0;
    over.setAttribute("role", "group");
    over.setAttribute(
      "aria-label",
      `${this.label} of each micrograph. Left and right arrows go through them, Enter opens one.`,
    );
    this.detach = attach(over, () => this.cloud);
  }

  private drawPoints(plot: uPlot): void {
    const ratio = window.devicePixelRatio || 1;
    const { left, top } = plot.bbox;
    const [w, h] = [plot.bbox.width / ratio, plot.bbox.height / ratio];
    const order = columns.order();
    const { min = 0, max = 1 } = plot.scales["x"] ?? {};
    const xFactor = w / ((max ?? 1) - (min ?? 0) || 1);
    const [low, high] = this.scale;
    const yFactor = h / (high - low || 1);
    this.cloud.begin(order.length, columns.length, w, h);
    const clipped = new Set<number>();
    for (let i = 0; i < this.y.length; i++) {
      const value = this.y[i]!;
      const px = (this.x[i]! - (min ?? 0)) * xFactor;
      if (Number.isNaN(value) || px < 0 || px > w) continue;
      const py = (high - value) * yFactor;
      // what lies outside is kept at the edge, where it can be seen and opened
      this.cloud.add(order[i]!, px, Math.max(1.5, Math.min(h - 1.5, py)));
      if (py < 0 || py > h) clipped.add(order[i]!);
    }
    const context = plot.ctx;
    context.save();
    context.translate(left, top);
    context.scale(ratio, ratio);
    const size = this.cloud.n > 4000 ? 2 : this.cloud.n > 600 ? 3 : 4;
    const { selected } = columns;
    this.cloud.paint(context, this.colours!.bad, size, (item) => !selected[item] && !clipped.has(item));
    this.cloud.paint(context, this.colours!.good, size, (item) => selected[item]! && !clipped.has(item));
    for (const item of clipped) {
      const slot = this.cloud.slot(item);
      context.fillStyle = selected[item] ? this.colours!.good : this.colours!.bad;
      const [px, up] = [this.cloud.x[slot]!, this.cloud.y[slot]! < h / 2];
      context.beginPath();
      context.moveTo(px, up ? 0 : h);
      context.lineTo(px - 3, up ? 5 : h - 5);
      context.lineTo(px + 3, up ? 5 : h - 5);
      context.fill();
    }
    context.restore();
  }

  drawMarks(colours: Palette): void {
    const surface = prepare(this.marks, this.cloud.width, this.cloud.height);
    if (!surface) return;
    const any = brushed.peek().length > 0;
    this.cloud.paintMarks(surface.context, brushedMask.peek(), any, hovered.peek(), colours);
    this.drawHistogram(colours);
  }

  /** Bars on their side, sharing the y axis; what is brushed stands out. */
  private drawHistogram(colours: Palette): void {
    const width = this.histogram.parentElement!.clientWidth;
    const height = this.host.clientHeight;
    const surface = prepare(this.histogram, width, height);
    if (!surface) return;
    const { context } = surface;
    const inner = height - TOP - BOTTOM;
    const [low, high] = this.scale;
    const good = new Uint32Array(HISTOGRAM_BINS);
    const bad = new Uint32Array(HISTOGRAM_BINS);
    const marked = new Uint32Array(HISTOGRAM_BINS);
    const mask = brushedMask.peek();
    const order = columns.order();
    const bin = (value: number) =>
      Math.max(0, Math.min(HISTOGRAM_BINS - 1, Math.floor(((value - low) / (high - low || 1)) * HISTOGRAM_BINS)));
    for (let i = 0; i < this.y.length; i++) {
      const value = this.y[i]!;
      if (Number.isNaN(value)) continue;
      const item = order[i]!;
      const into = bin(value);
      (columns.selected[item] ? good : bad)[into]!++;
      if (mask[item]) marked[into]!++;
    }
    let tallest = 1;
    for (let i = 0; i < HISTOGRAM_BINS; i++) tallest = Math.max(tallest, good[i]! + bad[i]!);
    const step = inner / HISTOGRAM_BINS;
    for (let i = 0; i < HISTOGRAM_BINS; i++) {
      const y = TOP + inner - (i + 1) * step;
      const [a, b, c] = [good[i]!, bad[i]!, marked[i]!].map((n) => (n / tallest) * (width - 6)) as [number, number, number];
      context.fillStyle = colours.good;
      context.fillRect(0, y, a, step - 0.5);
      context.fillStyle = colours.bad;
      context.fillRect(a, y, b, step - 0.5);
      context.fillStyle = colours.mark;
      context.fillRect(0, y, c, step - 0.5);
    }
    const slot = this.cloud.slot(hovered.peek());
    if (slot >= 0) {
      context.fillStyle = colours.text;
      context.fillRect(0, TOP + this.cloud.y[slot]! - 0.5, width, 1);
    }
  }

  destroy(): void {
    this.detach?.();
    this.plot?.destroy();
    this.plot = null;
  }
}
