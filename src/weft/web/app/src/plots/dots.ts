/** A small plot of points (uPlot): values that belong together are marked in all such plots at once. */
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { number } from "../ui/format";
import type { Palette } from "../ui/theme";
import { font } from "./canvas";

export interface Line {
  y: (number | null)[];
  colour: keyof Palette;
  dashed?: boolean;
}

export interface Dots {
  /** In rising order. */
  x: number[];
  y: (number | null)[];
  /** Drawn open and grey: they take no part. */
  muted?: boolean[];
  /** Half the length of a bar through the point. */
  error?: (number | null)[];
  lines?: Line[];
  /** A column from zero instead of a point. */
  bars?: boolean;
  /** Has to be on the plot, whatever the values are. */
  include?: number[];
}

const LEFT = 44;
const BOTTOM = 20;
const REACH = 24;

function extent(dots: Dots): [number, number] {
  const all = [...(dots.include ?? [])];
  dots.y.forEach((value, i) => {
    if (value === null || Number.isNaN(value)) return;
    const half = dots.error?.[i] ?? 0;
    all.push(value - half, value + half);
  });
  for (const line of dots.lines ?? []) for (const value of line.y) if (value !== null) all.push(value);
  if (dots.bars) all.push(0);
  if (all.length === 0) return [0, 1];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const margin = (high - low || Math.abs(high) || 1) * 0.1;
  // what cannot be negative is not shown as if it could
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

export class DotPlot {
  private plot: uPlot | null = null;
  private dots: Dots | null = null;
  private marked = -1;
  private readonly controller = new AbortController();

  constructor(
    private readonly host: HTMLElement,
    private readonly xWords: (value: number) => string,
    onHover: (index: number) => void,
    onPick: (index: number) => void,
  ) {
    const { signal } = this.controller;
    host.addEventListener("pointermove", (event) => event.pointerType === "mouse" && onHover(this.nearest(event)), { signal });
    host.addEventListener("pointerleave", () => onHover(-1), { signal });
    host.addEventListener("click", (event) => {
      const index = this.nearest(event);
      if (index >= 0) onPick(index);
    }, { signal });
  }

  draw(dots: Dots, colours: Palette, marked: number): void {
    this.dots = dots;
    this.marked = marked;
    const [width, height] = [this.host.clientWidth, this.host.clientHeight];
    if (width < 60 || height < 40) return;
    this.plot?.destroy();
    const [low, high] = extent(dots);
    const first = dots.x[0] ?? 0;
    const last = dots.x.at(-1) ?? 1;
    const margin = Math.max((last - first) * 0.025, 0.5);
    const axis = { stroke: colours.muted, grid: { stroke: colours.grid, width: 1 }, ticks: { show: false }, font: font() };
    const lines = dots.lines ?? [];
    this.plot = new uPlot(
      {
        width,
        height,
        padding: [6, 8, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, range: () => [first - margin, last + margin] }, y: { range: () => [low, high] } },
        axes: [
          { ...axis, size: BOTTOM, gap: 2, space: 44, values: (_, ticks) => ticks.map(this.xWords) },
          { ...axis, size: LEFT, gap: 4, space: 24, values: (_, ticks) => ticks.map((tick) => number(tick, 4).replace("-", "−")) },
        ],
        series: [
          {},
          { paths: () => null, points: { show: false } },
          ...lines.map((line) => ({ stroke: colours[line.colour], width: 1.4, points: { show: false }, spanGaps: true, ...(line.dashed ? { dash: [5, 4] } : {}) })),
        ],
        hooks: { draw: [(plot) => this.paint(plot, colours)] },
      },
      [dots.x, dots.y, ...lines.map((line) => line.y)] as uPlot.AlignedData,
      this.host,
    );
  }

  private paint(plot: uPlot, colours: Palette): void {
    const { ctx } = plot;
    const dots = this.dots!;
    const ratio = window.devicePixelRatio || 1;
    const place = (i: number): [number, number] => [plot.valToPos(dots.x[i]!, "x", true), plot.valToPos(dots.y[i] ?? 0, "y", true)];
    ctx.save();
    if (this.marked >= 0 && this.marked < dots.x.length) {
      const [x] = place(this.marked);
      ctx.fillStyle = colours.mark;
      ctx.globalAlpha = 0.55;
      ctx.fillRect(x - 0.75 * ratio, plot.bbox.top, 1.5 * ratio, plot.bbox.height);
      ctx.globalAlpha = 1;
    }
    const zero = plot.valToPos(0, "y", true);
    const step = dots.x.length > 1 ? plot.bbox.width / dots.x.length : 10;
    for (let i = 0; i < dots.x.length; i++) {
      if (dots.y[i] === null || dots.y[i] === undefined || Number.isNaN(dots.y[i])) continue;
      const [x, y] = place(i);
      const muted = dots.muted?.[i] ?? false;
      const colour = i === this.marked ? colours.mark : muted ? colours.muted : colours.good;
      ctx.fillStyle = ctx.strokeStyle = colour;
      ctx.lineWidth = 1.3 * ratio;
      const half = dots.error?.[i];
      if (half) {
        ctx.globalAlpha = 0.5;
        ctx.beginPath();
        ctx.moveTo(x, plot.valToPos(dots.y[i]! - half, "y", true));
        ctx.lineTo(x, plot.valToPos(dots.y[i]! + half, "y", true));
        ctx.stroke();
        ctx.globalAlpha = 1;
      }
      if (dots.bars) {
        const width = Math.max(1.5 * ratio, Math.min(14 * ratio, step * 0.7));
        ctx.fillRect(x - width / 2, Math.min(y, zero), width, Math.abs(zero - y));
        continue;
      }
      ctx.beginPath();
      ctx.arc(x, y, (i === this.marked ? 4.5 : 2.6) * ratio, 0, 2 * Math.PI);
      if (muted) ctx.stroke();
      else ctx.fill();
    }
    ctx.restore();
  }

  private nearest(event: { clientX: number }): number {
    const { plot, dots } = this;
    if (!plot || !dots) return -1;
    const at = event.clientX - plot.over.getBoundingClientRect().left;
    let best = Math.max(REACH, (0.6 * plot.over.clientWidth) / Math.max(1, dots.x.length));
    let found = -1;
    dots.x.forEach((value, i) => {
      if (dots.y[i] === null || dots.y[i] === undefined) return;
      const distance = Math.abs(plot.valToPos(value, "x") - at);
      if (distance < best) [best, found] = [distance, i];
    });
    return found;
  }

  destroy(): void {
    this.controller.abort();
    this.plot?.destroy();
  }
}
