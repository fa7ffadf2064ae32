/** Astigmatism as a vector: length and twice the angle, so that a constant one is one cloud. */
import { columns } from "../data/columns";
import { brushed, brushedMask, hovered } from "../data/highlight";
import { number } from "../ui/format";
import type { Palette } from "../ui/theme";
import { font, niceStep, prepare } from "./canvas";
import { Cloud } from "./cloud";
import { attach } from "./pointer";
import { robustScale } from "./series";

export interface Vectors {
  x: number[];
  y: number[];
  unit: string;
}

/** The vectors from whatever the session has: components, or length and angle. */
export function astigmatismVectors(): Vectors | null {
  const [cx, cy] = [columns.column("astigmatism_x"), columns.column("astigmatism_y")];
  if (cx && cy) return { x: cx.values, y: cy.values, unit: cx.unit };
  const [length, angle] = [columns.column("astigmatism"), columns.column("astigmatism_angle")];
  if (!length || !angle) return null;
  const twice = angle.values.map((degrees) => (degrees * Math.PI) / 90);
  return {
    x: length.values.map((value, i) => value * Math.cos(twice[i]!)),
    y: length.values.map((value, i) => value * Math.sin(twice[i]!)),
    unit: length.unit,
  };
}

const EDGE = 10;

export class ScatterPlot {
  readonly cloud = new Cloud();
  private readonly base = document.createElement("canvas");
  private readonly marks = document.createElement("canvas");
  private readonly detach: () => void;

  constructor(private readonly host: HTMLElement) {
    this.marks.className = "marks";
    host.append(this.base, this.marks);
    this.detach = attach(host, () => this.cloud);
  }

  draw(vectors: Vectors, colours: Palette): void {
    const side = Math.min(this.host.clientWidth, this.host.clientHeight);
    const surface = prepare(this.base, side, side);
    if (!surface) return;
    this.host.style.setProperty("--side", `${side}px`);
    const { context } = surface;
    const lengths: number[] = [];
    for (let i = 0; i < vectors.x.length; i++) {
      const length = Math.hypot(vectors.x[i]!, vectors.y[i]!);
      if (!Number.isNaN(length)) lengths.push(length);
    }
    const largest = robustScale(Float64Array.from(lengths).sort(), [])[1] || 1;
    const centre = side / 2;
    const factor = (centre - EDGE) / largest;
    this.drawRings(context, centre, largest, factor, vectors.unit, colours);
    this.cloud.begin(columns.length, columns.length, side, side);
    for (const item of columns.order()) {
      const [x, y] = [vectors.x[item]!, vectors.y[item]!];
      if (Number.isNaN(x) || Number.isNaN(y)) continue;
      const length = Math.hypot(x, y);
      const shrink = length > largest ? largest / length : 1;
      this.cloud.add(item, centre + x * shrink * factor, centre - y * shrink * factor);
    }
    const size = this.cloud.n > 4000 ? 2 : 3.5;
    const { selected } = columns;
    this.cloud.paint(context, colours.bad, size, (item) => !selected[item]);
    this.cloud.paint(context, colours.good, size, (item) => selected[item]!);
    this.drawMarks(colours);
  }

  private drawRings(
    context: CanvasRenderingContext2D,
    centre: number,
    largest: number,
    factor: number,
    unit: string,
    colours: Palette,
  ): void {
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(centre, EDGE);
    context.lineTo(centre, 2 * centre - EDGE);
    context.moveTo(EDGE, centre);
    context.lineTo(2 * centre - EDGE, centre);
    context.stroke();
    context.fillStyle = colours.muted;
    context.font = font(10);
    const step = niceStep(largest, 3);
    for (let radius = step; radius <= largest; radius += step) {
      context.beginPath();
      context.arc(centre, centre, radius * factor, 0, 2 * Math.PI);
      context.stroke();
      context.fillText(`${number(radius, 2)} ${unit}`, centre + 3, centre + radius * factor - 3);
    }
    const at = (centre - EDGE) * 0.99;
    context.textAlign = "right";
    context.fillText("0°", centre + at, centre - 3);
    context.textAlign = "left";
    context.fillText("90°", centre - at, centre - 3);
    context.fillText("45°", centre + 3, EDGE + 6);
  }

  drawMarks(colours: Palette): void {
    const surface = prepare(this.marks, this.cloud.width, this.cloud.height);
    if (!surface) return;
    const any = brushed.peek().length > 0;
    this.cloud.paintMarks(surface.context, brushedMask.peek(), any, hovered.peek(), colours);
  }

  destroy(): void {
    this.detach();
    this.base.remove();
    this.marks.remove();
  }
}
