/** The images of a series with its markers: where they were seen, and how far that is from where they should be. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { bitmap } from "../data/api";
import { seriesApi, tiltView, type AlignmentDetails, type SeriesDetails, type Tilt } from "../data/series";
import { complain } from "../data/store";
import { scaleBarPainter } from "../micrograph/overlays";
import { Viewer, type Painter } from "../micrograph/viewer";
import { number, quantity } from "../ui/format";
import { useFetched, useKeys } from "../ui/hooks";
import { DotPanel } from "./DotPanel";
import { residualScale, showMarkers } from "./state";
import { angstrom, degrees, methodName, VerdictWord, withMinus } from "./words";

const SIZE = 1024;
const FRAME = 180; // ms, while it plays
const REACH = 14; // CSS pixels about a marker

const SEEN = "#56d4c8";
const REJECTED = "#ff9d5c";
const CHOSEN = "#ff9be6";

const SCALES = [1, 5, 10, 20, 50, 100, 200];
const SEEN_LENGTH = 0.02; // of the image's width, for a mean residual

function seenBest(alignment: AlignmentDetails | null): number {
  if (!alignment?.residual) return 10;
  const wanted = (SEEN_LENGTH * alignment.image_size[0]) / alignment.residual;
  return SCALES.findLast((scale) => scale <= wanted) ?? 1;
}

/** Rows of the observations of one tilt. */
function rowsOf(alignment: AlignmentDetails | null, tilt: number): number[] {
  const found: number[] = [];
  alignment?.observations.tilt.forEach((one, row) => one === tilt && found.push(row));
  return found;
}

function markersPainter(alignment: AlignmentDetails, rows: readonly number[], chosen: number, scale: number): Painter {
  const { marker, x, y, dx, dy, weight } = alignment.observations;
  return (context, frame) => {
    if (chosen >= 0) {
      // where it goes through the series
      context.beginPath();
      marker.forEach((one, row) => {
        if (one !== chosen) return;
        const [px, py] = frame.toScreen(x[row]!, y[row]!);
        context.rect(px - 1, py - 1, 2, 2);
      });
      context.fillStyle = CHOSEN;
      context.globalAlpha = 0.6;
      context.fill();
      context.globalAlpha = 1;
    }
    for (const pass of [0, 1]) {
      for (const row of rows) {
        const [px, py] = frame.toScreen(x[row]!, y[row]!);
        const [ex, ey] = [px + dx[row]! * scale * frame.scale, py + dy[row]! * scale * frame.scale];
        const rejected = weight[row] === 0;
        context.strokeStyle = pass === 0 ? "rgb(0 0 0 / 60%)" : marker[row] === chosen ? CHOSEN : rejected ? REJECTED : SEEN;
        context.lineWidth = pass === 0 ? 3.5 : 1.6;
        context.setLineDash(rejected ? [3, 3] : []);
        context.beginPath();
        context.moveTo(px + 6, py);
        context.arc(px, py, 6, 0, 2 * Math.PI);
        context.moveTo(px, py);
        context.lineTo(ex, ey);
        context.stroke();
      }
    }
    context.setLineDash([]);
  };
}

function Facts({ found }: { found: AlignmentDetails }) {
  const rejected = found.observations.weight.filter((weight) => weight === 0).length;
  const rows: [string, string][] = [
    ["Method", methodName(found.method)],
    ["Markers", `${found.markers ?? 0}, seen ${found.observations.marker.length} times${rejected > 0 ? `, ${rejected} left out` : ""}`],
    ["Mean residual", `${angstrom(found.residual, 2)}${found.residual_px === null ? "" : ` (${number(found.residual_px, 2)} px)`}`],
    ["Expected error", found.expected_error === null ? "unknown" : angstrom(found.expected_error, 2)],
    ["Tilt axis", degrees(found.axis).replace("+", "")],
    ["Inclination", `${degrees(found.level_x)} about x, ${degrees(found.level_y)} about y, from ${found.levelling}`],
    ["Thickness found", found.thickness === null ? "unknown" : `${number(found.thickness / 10)} nm`],
    ["Volume", found.volume_size.map((side) => number(side / 10)).join(" × ") + " nm"],
  ];
  return (
    <section class="panel" aria-label="Alignment">
      <header class="panel-head"><h2>Alignment</h2><VerdictWord verdict={found.verdict} /></header>
      <table class="file-table">
        <tbody>{rows.map(([name, value]) => <tr key={name}><th scope="row">{name}</th><td>{value}</td></tr>)}</tbody>
      </table>
      {found.notes.length > 0 && <ul class="item-notes">{found.notes.map((note) => <li key={note}>{withMinus(note)}</li>)}</ul>}
    </section>
  );
}

/** The image of the chosen tilt; while it is fetched, the one before stays. */
function useImage(viewer: { current: Viewer | null }, address: string, after: () => void): boolean {
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    const controller = new AbortController();
    setBusy(true);
    bitmap(address, controller.signal).then(
      (image) => {
        if (controller.signal.aborted) return image.close();
        viewer.current?.setImage(image);
        setBusy(false);
        after();
      },
      (error: unknown) => {
        if (controller.signal.aborted) return;
        setBusy(false);
        complain(error);
      },
    );
    return () => controller.abort();
  }, [address]);
  return busy;
}

export function AlignmentView({ one, tilts, first }: { one: SeriesDetails; tilts: readonly Tilt[]; first: number }) {
  const { id, revision } = one;
  const shown = useMemo(() => tilts.filter((tilt) => tilt.pictured).sort((a, b) => a.angle - b.angle), [tilts]);
  const start = () => {
    const asked = shown.findIndex((tilt) => tilt.index === first);
    if (asked >= 0) return asked;
    // the untilted image is seen best
    return shown.reduce((best, tilt, i) => (Math.abs(tilt.angle) < Math.abs(shown[best]?.angle ?? 999) ? i : best), 0);
  };
  const [at, setAt] = useState(start);
  const [chosen, setChosen] = useState(-1);
  const [playing, setPlaying] = useState(false);
  const host = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const viewer = useRef<Viewer | null>(null);
  const found = useFetched(one.alignment ? (signal) => seriesApi.alignment(id, signal) : null, [id, revision]);
  const alignment = found.data;
  const tilt = shown[Math.min(at, shown.length - 1)];
  const rows = useMemo(() => (tilt ? rowsOf(alignment, tilt.index) : []), [alignment, tilt?.index]);

  const go = (to: number) => setAt(Math.max(0, Math.min(shown.length - 1, to)));
  const step = (by: number) => {
    setPlaying(false);
    go(at + by);
  };
  useKeys({
    ",": () => step(-1),
    ".": () => step(1),
    " ": () => setPlaying(!playing),
    m: () => (showMarkers.value = !showMarkers.value),
  });

  useEffect(() => {
    const made = new Viewer(host.current!, canvas.current!);
    viewer.current = made;
    return () => made.destroy();
  }, []);
  useEffect(() => {
    if (alignment) viewer.current?.setField(...alignment.image_size);
  }, [alignment]);

  const timer = useRef(0);
  const next = () => {
    window.clearTimeout(timer.current);
    if (playing) timer.current = window.setTimeout(() => setAt((last) => (last + 1) % shown.length), FRAME);
  };
  // each image that has come calls the next one
  const afterwards = useRef(next);
  afterwards.current = next;
  const busy = useImage(viewer, tilt ? tiltView(id, tilt.index, SIZE, revision) : "", () => afterwards.current());
  useEffect(() => {
    next();
    return () => window.clearTimeout(timer.current);
  }, [playing]);

  const scale = residualScale.value || seenBest(alignment);
  useEffect(() => {
    if (!viewer.current) return;
    viewer.current.painters = [
      ...(alignment && showMarkers.value ? [markersPainter(alignment, rows, chosen, scale)] : []),
      ...(alignment ? [scaleBarPainter] : []),
    ];
    viewer.current.onClick = (x, y, frame) => {
      let best = REACH / frame.scale;
      let marker = -1;
      for (const row of rows) {
        const seen = alignment!.observations;
        const distance = Math.hypot(seen.x[row]! - x, seen.y[row]! - y);
        if (distance < best) [best, marker] = [distance, seen.marker[row]!];
      }
      setChosen(marker === chosen ? -1 : marker);
    };
    viewer.current.redraw();
  }, [alignment, rows, chosen, scale, showMarkers.value]);

  const byTilt = shown.filter((each) => each.used);
  const byMarker = useMemo(
    () => (alignment?.positions ?? []).map((position, marker) => ({ ...position, marker })).filter((position) => position.observations > 0),
    [alignment],
  );
  const marker = alignment?.positions[chosen];
  if (!tilt) return <p class="empty">There are no images of this series yet.</p>;
  return (
    <div class="item-layout">
      <section class="panel viewer-panel" aria-label="Tilt image">
        <div class="viewer alignment-viewer" ref={host} aria-busy={busy}>
          <canvas ref={canvas} tabIndex={0} role="application" aria-label={`${one.name} at ${degrees(tilt.angle)}. Arrows move, plus and minus magnify, 0 shows all, comma and full stop turn to other tilts.`} />
          <span class="viewer-busy">{degrees(tilt.angle)}{!tilt.used ? " · left out" : ""}</span>
          <div class="viewer-buttons">
            <button type="button" class="icon-button" aria-label="Magnify" onClick={() => viewer.current?.zoomBy(1.5)}>+</button>
            <button type="button" class="icon-button" aria-label="Reduce" onClick={() => viewer.current?.zoomBy(1 / 1.5)}>−</button>
            <button type="button" class="icon-button" aria-label="Show all" title="Show all (0)" onClick={() => viewer.current?.fit()}>
              <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 6V3H6M10 3H13V6M13 10V13H10M6 13H3V10" /></svg>
            </button>
          </div>
        </div>
        <div class="turn-bar">
          <button type="button" class="icon-button bordered" aria-label={playing ? "Stop" : "Play"} title={playing ? "Stop (space)" : "Play (space)"} onClick={() => setPlaying(!playing)}>
            <svg viewBox="0 0 16 16" aria-hidden="true">{playing ? <path d="M5 3V13M11 3V13" /> : <path d="M4.5 3 13 8 4.5 13Z" />}</svg>
          </button>
          <input
            type="range"
            aria-label="Tilt"
            aria-valuetext={degrees(tilt.angle)}
            min={0}
            max={shown.length - 1}
            step={1}
            value={at}
            onInput={(event) => {
              setPlaying(false);
              go(event.currentTarget.valueAsNumber);
            }}
          />
          <output>{degrees(tilt.angle)}</output>
        </div>
        {alignment && (
          <div class="turn-bar">
            <label class="check" title="m">
              <input type="checkbox" checked={showMarkers.value} onChange={() => (showMarkers.value = !showMarkers.value)} />
              Markers
            </label>
            <label>
              <span class="label">Residuals drawn</span>{" "}
              <select value={String(scale)} onChange={(event) => (residualScale.value = Number(event.currentTarget.value))}>
                {SCALES.map((times) => <option key={times} value={String(times)}>{`${times} times`}</option>)}
              </select>
            </label>
            <span class="muted small turn-words">
              {marker ? `Marker ${chosen + 1}: seen ${marker.observations} times, residual ${angstrom(marker.residual, 2)}` : "Click a marker to follow it"}
            </span>
          </div>
        )}
      </section>
      <div class="series-side">
        {!alignment && <p class="panel empty small">{found.loading ? "Loading" : found.error || "It is not aligned yet."}</p>}
        {alignment && <Facts found={alignment} />}
        {alignment && (
          <DotPanel
            title="Residual of each tilt"
            unit="Å"
            dots={{ x: byTilt.map((each) => each.angle), y: byTilt.map((each) => each.residual), bars: true }}
            marked={byTilt.indexOf(tilt)}
            words={tilt.residual === null ? "" : `${degrees(tilt.angle)}: ${quantity(tilt.residual, "Å")}, ${tilt.observations ?? 0} markers`}
            xWords={(angle) => degrees(angle, 0)}
            onHover={() => undefined}
            onPick={(index) => {
              setPlaying(false);
              go(shown.indexOf(byTilt[index]!));
            }}
          />
        )}
        {alignment && byMarker.length > 0 && (
          <DotPanel
            title="Residual of each marker"
            unit="Å"
            dots={{ x: byMarker.map((_, i) => i + 1), y: byMarker.map((position) => position.residual), bars: true }}
            marked={byMarker.findIndex((position) => position.marker === chosen)}
            words={marker ? `marker ${chosen + 1}: ${angstrom(marker.residual, 2)}` : ""}
            xWords={(value) => (Number.isInteger(value) ? String(value) : "")}
            onHover={() => undefined}
            onPick={(index) => setChosen(byMarker[index]!.marker)}
          />
        )}
      </div>
    </div>
  );
}
