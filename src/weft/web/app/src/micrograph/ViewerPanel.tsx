/** The micrograph in real space, with everything that changes how it is seen. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, ApiError, bitmap, viewAddress } from "../data/api";
import { complain, readonly } from "../data/store";
import type { ItemDetails, Picks, Point } from "../data/types";
import { number } from "../ui/format";
import { useFetched, useKeys, useSettled } from "../ui/hooks";
import {
  contrast, deconvolve, denoised, falloff, leastScores, picker, showDefocus, showMask, showPicks, strength,
} from "./controls";
import { defocusPainter, maskPainter, picksPainter, rampOf, scaleBarPainter } from "./overlays";
import { PickBar } from "./PickBar";
import { usePicks } from "./usePicks";
import { Viewer, type Painter } from "./viewer";
import { ViewSwitches, ViewTools } from "./ViewTools";

const SIZES = [1024, 2048, 4096];
const SLIDER_PAUSE = 120;

function extentOf(item: ItemDetails): Point | null {
  if (item.extent) return item.extent;
  const [ny, nx] = item.shape?.slice(-2) ?? [];
  return item.pixel_size && nx && ny ? [nx * item.pixel_size, ny * item.pixel_size] : null;
}

/** Of the picker that was chosen; of whose there are, where that one is known no more. */
async function picksOf(id: string, signal: AbortSignal): Promise<Picks> {
  try {
    return await api.picks(id, picker.value, signal);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404 || !picker.value) throw error;
    return api.picks(id, "", signal);
  }
}

export function ViewerPanel({ item }: { item: ItemDetails }) {
  const host = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const viewer = useRef<Viewer | null>(null);
  const [size, setSize] = useState(SIZES[0]!);
  const [histogram, setHistogram] = useState<Uint32Array | null>(null);
  const [busy, setBusy] = useState(false);
  const [editing, setEditing] = useState(false);
  const [where, setWhere] = useState<Point | null>(null);

  const has = (output: string) => item.outputs.includes(output);
  const pictured = has("average");
  const fitted = has("powerspectrum");
  const extent = extentOf(item);
  const { id, revision } = item;
  const picks = useFetched(pictured ? (signal) => picksOf(id, signal) : null, [id, pictured, revision, picker.value]);
  const map = useFetched(fitted && showDefocus.value ? (signal) => api.defocus(id, signal) : null, [
    id, revision, fitted, showDefocus.value,
  ]);
  const mask = useFetched(has("mask") && showMask.value ? () => api.mask(id, revision) : null, [
    id, revision, showMask.value,
  ]);
  const leastScoresNow = leastScores.value;
  const editor = usePicks(id, picks.data, (name) => leastScoresNow[name] ?? -Infinity);

  useEffect(() => {
    const made = new Viewer(host.current!, canvas.current!);
    viewer.current = made;
    made.onZoom = (pixels) =>
      setSize((before) => Math.max(before, SIZES.find((one) => one * 1.3 >= pixels) ?? SIZES.at(-1)!));
    return () => made.destroy();
  }, []);

  useEffect(() => {
    if (extent) viewer.current?.setField(...extent);
  }, [extent?.[0], extent?.[1]]);

  // sliders ask again when they rest; another micrograph or size asks at once
  const sharpened = deconvolve.value && fitted;
  const wanted = {
    size,
    ...(sharpened ? { strength: strength.value, falloff: falloff.value } : {}),
    denoised: denoised.value && has("denoised"),
  };
  const settled = useSettled(wanted, SLIDER_PAUSE);
  const address = viewAddress(id, settled, revision);
  useEffect(() => {
    if (!pictured) {
      viewer.current?.setImage(null);
      return;
    }
    const controller = new AbortController();
    setBusy(true);
    bitmap(address, controller.signal).then(
      (image) => {
        if (controller.signal.aborted) return image.close();
        viewer.current?.setImage(image);
        setHistogram(viewer.current?.histogram() ?? null);
        setBusy(false);
      },
      (error: unknown) => {
        if (controller.signal.aborted) return;
        setBusy(false);
        complain(error);
      },
    );
    return () => controller.abort();
  }, [address, pictured]);

  useEffect(() => viewer.current?.setContrast(...contrast.value), [contrast.value]);

  const painters = useMemo(() => {
    const found: Painter[] = [];
    if (map.data && showDefocus.value) found.push(defocusPainter(map.data));
    if (mask.data && extent && showMask.value) found.push(maskPainter(mask.data, extent));
    if (showPicks.value || editing) found.push(picksPainter(editor.picks, editor.diameter, editing));
    if (pictured) found.push(scaleBarPainter);
    return found;
  }, [pictured, map.data, mask.data, editor.picks, editor.diameter, editing, showDefocus.value, showMask.value, showPicks.value]);

  useEffect(() => {
    if (!viewer.current) return;
    viewer.current.painters = painters;
    viewer.current.redraw();
  }, [painters]);

  const edit = (x: number, y: number) => {
    if (!extent || x < 0 || y < 0 || x > extent[0] || y > extent[1]) return;
    const screen = viewer.current?.frame().scale ?? 1;
    editor.toggle(x, y, Math.max((editor.diameter ?? 0) / 2, 8 / screen));
  };
  useEffect(() => {
    if (!viewer.current) return;
    viewer.current.onClick = editing ? edit : null;
    viewer.current.onMove = (x, y) => setWhere([x, y]);
  });
  useKeys({
    ...(editing
      ? {
          a: () => viewer.current && edit(...viewer.current.middle()),
          "Ctrl+z": () => editor.undo(),
          Escape: () => setEditing(false),
        }
      : {}),
    d: () => (deconvolve.value = !deconvolve.value),
    p: () => (showPicks.value = !showPicks.value),
  });

  const ramp = map.data && showDefocus.value ? rampOf(map.data) : null;
  return (
    <section class="panel viewer-panel" aria-label="Micrograph">
      <div class={`viewer${editing ? " editing" : ""}${pictured ? "" : " blank"}`} ref={host} aria-busy={busy}>
        <canvas
          ref={canvas}
          tabIndex={0}
          role="application"
          aria-label={`${id}. Arrows move, plus and minus magnify, 0 shows all.${editing ? " The a key adds or removes a pick at the crosshair." : ""}`}
          onPointerLeave={() => setWhere(null)}
        />
        {!pictured && <p class="viewer-empty">{item.state === "failed" ? "There is no average." : "No average yet."}</p>}
        {busy && <span class="viewer-busy" role="status">loading</span>}
        {pictured && <div class="viewer-buttons">
          <button type="button" class="icon-button" aria-label="Magnify" onClick={() => viewer.current?.zoomBy(1.5)}>+</button>
          <button type="button" class="icon-button" aria-label="Reduce" onClick={() => viewer.current?.zoomBy(1 / 1.5)}>−</button>
          <button type="button" class="icon-button" aria-label="Show all" title="Show all (0)" onClick={() => viewer.current?.fit()}>
            <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 6V3H6M10 3H13V6M13 10V13H10M6 13H3V10" /></svg>
          </button>
        </div>}
        {ramp && (
          <div class="ramp" aria-label={`Local defocus from ${number(ramp.low, 4)} to ${number(ramp.high, 4)} µm`}>
            <span>{number(ramp.low, 4)}</span>
            <span class="ramp-bar" aria-hidden="true" />
            <span>{number(ramp.high, 4)} µm</span>
          </div>
        )}
        {where && extent && where[0] >= 0 && where[1] >= 0 && where[0] <= extent[0] && where[1] <= extent[1] && (
          <span class="viewer-where" aria-hidden="true">
            {`${number(where[0], 4)}, ${number(where[1], 4)} Å`}
          </span>
        )}
      </div>
      {pictured && <ViewTools histogram={histogram} fitted={fitted} />}
      {pictured && (
        <PickBar
          editor={editor}
          editing={editing}
          disabled={readonly.value || !extent}
          error={picks.error}
          switches={<ViewSwitches fitted={fitted} hasMask={has("mask")} hasDenoised={has("denoised")} />}
          onEdit={(on) => {
            setEditing(on);
            if (on) canvas.current?.focus();
          }}
        />
      )}
    </section>
  );
}
