/** How the specimen moved: the whole field, and places of it, exaggerated. */
import { effect } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Point, Tracks } from "../data/types";
import { font, niceStep, prepare } from "../plots/canvas";
import { css } from "./overlays";
import { number } from "../ui/format";
import { palette, type Palette } from "../ui/theme";

type Draw = (canvas: HTMLCanvasElement, width: number, height: number, colours: Palette) => void;

function Picture({ label, draw }: { label: string; draw: Draw }) {
  const host = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const element = host.current!;
    const again = () => {
      const colours = palette.value;
      if (canvas.current) draw(canvas.current, element.clientWidth, element.clientHeight, colours);
    };
    const sized = new ResizeObserver(again);
    sized.observe(element);
    const stop = effect(again);
    return () => {
      stop();
      sized.disconnect();
    };
  }, [draw]);
  return (
    <div class="track-picture" ref={host}>
      <canvas ref={canvas} role="img" aria-label={label} />
    </div>
  );
}

/** From the first frame (dark) to the last (bright), with a ring at the first. */
function path(context: CanvasRenderingContext2D, points: Point[], width: number, first: string): void {
  context.lineWidth = width;
  context.lineCap = "round";
  for (let i = 1; i < points.length; i++) {
    context.strokeStyle = css(0.25 + (0.6 * i) / points.length);
    context.beginPath();
    context.moveTo(...points[i - 1]!);
    context.lineTo(...points[i]!);
    context.stroke();
  }
  if (!points[0]) return;
  context.beginPath();
  context.arc(points[0][0], points[0][1], width + 0.8, 0, 2 * Math.PI);
  context.fillStyle = first;
  context.fill();
}

function bar(context: CanvasRenderingContext2D, x: number, y: number, length: number, scale: number, colours: Palette): void {
  context.fillStyle = colours.text;
  context.textAlign = "left";
  context.fillRect(x, y, length * scale, 2);
  context.font = font(11);
  context.textBaseline = "bottom";
  context.fillText(`${number(length)} Å`, x, y - 2);
}

function drawGlobal(track: Point[]): Draw {
  return (canvas, width, height, colours) => {
    const surface = prepare(canvas, width, height);
    if (!surface || track.length === 0) return;
    const { context } = surface;
    const [xs, ys] = [track.map((p) => p[0]), track.map((p) => p[1])];
    const [left, right] = [Math.min(...xs), Math.max(...xs)];
    const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
    const scale = Math.min((width - 40) / Math.max(right - left, 0.5), (height - 50) / Math.max(bottom - top, 0.5));
    const place = ([x, y]: Point): Point => [
      (x - (left + right) / 2) * scale + width / 2,
      (y - (top + bottom) / 2) * scale + height / 2 - 8,
    ];
    path(context, track.map(place), 2, colours.text);
    for (const point of track.map(place)) {
      context.beginPath();
      context.arc(...point, 1.6, 0, 2 * Math.PI);
      context.fillStyle = colours.muted;
      context.fill();
    }
    bar(context, 10, height - 8, niceStep((width / scale) * 0.3, 1), scale, colours);
  };
}

function drawLocal(tracks: Tracks, exaggeration: number, localOnly: boolean): Draw {
  return (canvas, width, height, colours) => {
    const surface = prepare(canvas, width, height);
    if (!surface) return;
    const { context } = surface;
    const [w, h] = tracks.extent;
    const scale = Math.min((width - 16) / w, (height - 44) / h);
    const [left, top] = [(width - w * scale) / 2, 8];
    context.strokeStyle = colours.grid;
    context.lineWidth = 1;
    context.strokeRect(left, top, w * scale, h * scale);
    for (const { at, track } of tracks.local) {
      const base: Point = [left + at[0] * scale, top + at[1] * scale];
      // drawn about its own middle, so that long tracks stay with their place
      const middle = track[Math.floor(track.length / 2)] ?? [0, 0];
      const points = track.map(([x, y], frame): Point => {
        const whole = localOnly ? (tracks.global[frame] ?? [0, 0]) : [0, 0];
        const origin = localOnly ? (tracks.global[Math.floor(track.length / 2)] ?? [0, 0]) : [0, 0];
        const dx = x - whole[0]! - (middle[0] - origin[0]!);
        const dy = y - whole[1]! - (middle[1] - origin[1]!);
        return [base[0] + dx * scale * exaggeration, base[1] + dy * scale * exaggeration];
      });
      path(context, points, 1.6, colours.text);
    }
    const length = niceStep(((width * 0.25) / (scale * exaggeration)) || 1, 1);
    bar(context, left, height - 8, length, scale * exaggeration, colours);
    context.textAlign = "right";
    context.fillStyle = colours.muted;
    context.fillText(`tracks ×${number(exaggeration)}`, left + w * scale, height - 6);
  };
}

/** A round factor at which the longest track is about as long as the way between two places. */
function suggested(tracks: Tracks, localOnly: boolean): number {
  let longest = 0.1;
  for (const { track } of tracks.local) {
    const rest = track.map(([x, y], i): Point => {
      const whole = localOnly ? (tracks.global[i] ?? [0, 0]) : [0, 0];
      return [x - whole[0]!, y - whole[1]!];
    });
    const [xs, ys] = [rest.map((p) => p[0]), rest.map((p) => p[1])];
    longest = Math.max(longest, Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys));
  }
  const apart = Math.max(...tracks.extent) / Math.max(2, Math.sqrt(tracks.local.length));
  return niceStep((apart * 0.8) / longest, 1);
}

export function TracksPanel({ tracks }: { tracks: Tracks }) {
  // the whole field's track stands beside them: what is left is what cannot be seen otherwise
  const [localOnly, setLocalOnly] = useState(true);
  const [factor, setFactor] = useState(1);
  const exaggeration = suggested(tracks, localOnly) * factor;
  const [globalDraw, setGlobalDraw] = useState<Draw>(() => drawGlobal(tracks.global));
  const [localDraw, setLocalDraw] = useState<Draw>(() => drawLocal(tracks, exaggeration, localOnly));
  useEffect(() => {
    setGlobalDraw(() => drawGlobal(tracks.global));
    setLocalDraw(() => drawLocal(tracks, exaggeration, localOnly));
  }, [tracks, exaggeration, localOnly]);
  const frames = tracks.global.length;
  return (
    <section class="panel" aria-label="Motion">
      <header class="panel-head">
        <h2>Motion <span class="unit">{frames} frames</span></h2>
        {tracks.local.length > 0 && (
          <div class="panel-tools">
            <label class="check">
              <input type="checkbox" checked={localOnly} onChange={() => setLocalOnly(!localOnly)} /> local only
            </label>
            <button type="button" class="icon-button bordered" aria-label="Draw local tracks shorter" onClick={() => setFactor(factor / 2)}>−</button>
            <button type="button" class="icon-button bordered" aria-label="Draw local tracks longer" onClick={() => setFactor(factor * 2)}>+</button>
          </div>
        )}
      </header>
      <div class="tracks">
        <Picture label={`Track of the whole field over ${frames} frames`} draw={globalDraw} />
        {tracks.local.length > 0 && (
          <Picture label={`Tracks of ${tracks.local.length} places, ${number(exaggeration)} times exaggerated`} draw={localDraw} />
        )}
      </div>
    </section>
  );
}
