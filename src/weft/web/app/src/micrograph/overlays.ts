/** What is drawn over a micrograph: scale bar, picks, local defocus, mask. */
import type { DefocusMap, Pick } from "../data/types";
import { font } from "../plots/canvas";
import { number } from "../ui/format";
import type { Frame, Painter } from "./viewer";

/** Viridis at five places: even steps to every eye. */
const MAP: readonly [number, number, number][] = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

export function colourAt(fraction: number): [number, number, number] {
  const place = Math.max(0, Math.min(1, fraction)) * (MAP.length - 1);
  const at = Math.min(MAP.length - 2, Math.floor(place));
  const part = place - at;
  return [0, 1, 2].map((i) => Math.round(MAP[at]![i]! * (1 - part) + MAP[at + 1]![i]! * part)) as [number, number, number];
}

export const css = (fraction: number): string => `rgb(${colourAt(fraction).join(" ")})`;

export interface Ramp {
  low: number;
  high: number;
}

export function rampOf(map: DefocusMap): Ramp {
  const all = map.rows.flat();
  return { low: Math.min(...all), high: Math.max(...all) };
}

/** The map as a small picture that the canvas enlarges smoothly. */
export function defocusPainter(map: DefocusMap): Painter {
  const ny = map.rows.length;
  const nx = map.rows[0]?.length ?? 0;
  const { low, high } = rampOf(map);
  const small = document.createElement("canvas");
  small.width = nx;
  small.height = ny;
  const context = small.getContext("2d");
  if (context && nx > 0) {
    const image = context.createImageData(nx, ny);
    map.rows.flat().forEach((value, i) => {
      image.data.set([...colourAt((value - low) / (high - low || 1)), 255], 4 * i);
    });
    context.putImageData(image, 0, 0);
  }
  return (target, frame) => {
    const [left, top] = frame.toScreen(0, 0);
    target.save();
    target.globalAlpha = 0.5;
    target.imageSmoothingEnabled = true;
    target.drawImage(small, left, top, map.extent[0] * frame.scale, map.extent[1] * frame.scale);
    target.restore();
  };
}

/** What is masked: the server has made it violet and transparent. */
export function maskPainter(mask: ImageBitmap, extent: readonly [number, number]): Painter {
  return (target, frame) => {
    const [left, top] = frame.toScreen(0, 0);
    target.drawImage(mask, left, top, extent[0] * frame.scale, extent[1] * frame.scale);
  };
}

/** Circles of the particle's diameter; crosses where that would be too small to see. */
export function picksPainter(picks: readonly Pick[], diameter: number | null, editing: boolean): Painter {
  return (context, frame) => {
    const radius = Math.max(4, ((diameter ?? 0) / 2) * frame.scale);
    const margin = radius + 2;
    const circles = new Path2D();
    for (const pick of picks) {
      const [x, y] = frame.toScreen(pick.x, pick.y);
      if (x < -margin || y < -margin || x > frame.width + margin || y > frame.height + margin) continue;
      circles.moveTo(x + radius, y);
      circles.arc(x, y, radius, 0, 2 * Math.PI);
      if (radius > 12) {
        circles.moveTo(x - 2, y);
        circles.lineTo(x + 2, y);
        circles.moveTo(x, y - 2);
        circles.lineTo(x, y + 2);
      }
    }
    context.lineWidth = 3;
    context.strokeStyle = "rgb(0 0 0 / 55%)";
    context.stroke(circles);
    context.lineWidth = 1.5;
    context.strokeStyle = editing ? "#ffd23f" : "#56d4c8";
    context.stroke(circles);
    if (editing) drawCrosshair(context, frame);
  };
}

/** Where the keyboard adds and removes. */
function drawCrosshair(context: CanvasRenderingContext2D, frame: Frame): void {
  const [x, y] = [frame.width / 2, frame.height / 2];
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]] as const) {
    context.moveTo(x + 4 * dx, y + 4 * dy);
    context.lineTo(x + 11 * dx, y + 11 * dy);
  }
  context.lineWidth = 3;
  context.strokeStyle = "rgb(0 0 0 / 55%)";
  context.stroke();
  context.lineWidth = 1.2;
  context.strokeStyle = "#ffffff";
  context.stroke();
}

export const scaleBarPainter: Painter = (context, frame) => {
  const wanted = Math.min(140, frame.width * 0.3) / frame.scale;
  const power = 10 ** Math.floor(Math.log10(wanted));
  const head = [5, 2, 1].find((step) => step * power <= wanted) ?? 1;
  const length = head * power;
  const px = length * frame.scale;
  const [x, y] = [14, frame.height - 14];
  const text = length >= 100 ? `${number(length / 10)} nm` : `${number(length)} Å`;
  context.font = font(12);
  context.textBaseline = "bottom";
  context.lineCap = "butt";
  for (const [colour, width] of [["rgb(0 0 0 / 65%)", 5], ["#ffffff", 3]] as const) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + px, y);
    context.stroke();
  }
  context.lineWidth = 3;
  context.strokeStyle = "rgb(0 0 0 / 65%)";
  context.strokeText(text, x, y - 5);
  context.fillStyle = "#ffffff";
  context.fillText(text, x, y - 5);
};
