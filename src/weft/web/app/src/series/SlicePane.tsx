/** One section of a tomogram on a canvas, with what is drawn over it; a click goes to that place in the other two. */
import { useEffect, useRef, useState } from "preact/hooks";
import { bitmap } from "../data/api";
import { slice, type Axis, type MapName, type TomogramInfo } from "../data/series";
import { complain } from "../data/store";
import { scaleBarPainter } from "../micrograph/overlays";
import { Viewer, type Painter } from "../micrograph/viewer";

export type Place = Record<Axis, number>;

/** What runs across and down in a section. */
export const SIDES: Record<Axis, readonly [Axis, Axis]> = { z: ["x", "y"], y: ["x", "z"], x: ["z", "y"] };
export const PLANES: Record<Axis, string> = { z: "xy", y: "xz", x: "yz" };

export const voxels = (info: TomogramInfo): Place => ({ z: info.shape[0], y: info.shape[1], x: info.shape[2] });

/** Another map's section over it, in colours: its picture, and which field it covers (left, top, width, height; Å). */
export interface Layer {
  address: string;
  field: readonly [number, number, number, number];
}

interface Props {
  id: string;
  revision: string;
  info: TomogramInfo;
  map: MapName;
  axis: Axis;
  place: Place;
  thickness: number;
  /** Pixels of the longest side that are asked for. */
  size: number;
  contrast: readonly [number, number];
  bar: boolean;
  width: number;
  height: number;
  layer?: Layer | null;
  over?: Painter | null;
  onPlace: (place: Partial<Place>) => void;
}

const layerPainter =
  (picture: HTMLCanvasElement, [left, top, width, height]: Layer["field"]): Painter =>
  (context, frame) => {
    const place = [...frame.toScreen(left, top), width * frame.scale, height * frame.scale] as const;
    // what is below steps back
    context.fillStyle = "rgb(10 14 18 / 50%)";
    context.fillRect(...place);
    context.drawImage(picture, ...place);
  };

function crosshair(across: number, down: number): Painter {
  return (context, frame) => {
    const [x, y] = frame.toScreen(across, down);
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, y - 9);
    context.moveTo(x, y + 9);
    context.lineTo(x, frame.height);
    context.moveTo(0, y);
    context.lineTo(x - 9, y);
    context.moveTo(x + 9, y);
    context.lineTo(frame.width, y);
    context.lineWidth = 1;
    context.strokeStyle = "rgb(255 210 63 / 55%)";
    context.stroke();
  };
}

/** Grey values in colours that grow out of nothing. */
function coloured(image: ImageBitmap): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (context) {
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const { data } = pixels;
    for (let i = 0; i < data.length; i += 4) {
      const value = data[i]!;
      data.set(RAMP.subarray(4 * value, 4 * value + 4), i);
    }
    context.putImageData(pixels, 0, 0);
  }
  image.close();
  return canvas;
}

const RAMP = new Uint8ClampedArray(
  // from red to yellow, which are neither the sections' grey nor a template's colour
  Array.from({ length: 256 }, (_, v) => [255, 60 + 0.75 * v, 20 + 0.4 * v, v === 0 ? 0 : 140 + 115 * (v / 255) ** 0.4]).flat(),
);

/** The layer's picture; the one before stays until it has come. */
function useLayer(layer: Layer | null | undefined): { picture: HTMLCanvasElement; field: Layer["field"] } | null {
  const [shown, setShown] = useState<{ picture: HTMLCanvasElement; field: Layer["field"] } | null>(null);
  useEffect(() => {
    if (!layer) {
      setShown(null);
      return;
    }
    const controller = new AbortController();
    bitmap(layer.address, controller.signal).then(
      (image) => setShown({ picture: coloured(image), field: layer.field }),
      (error: unknown) => !controller.signal.aborted && complain(error),
    );
    return () => controller.abort();
  }, [layer?.address]);
  return shown;
}

export function SlicePane(props: Props) {
  const { id, revision, info, map, axis, place, thickness, size, contrast, bar, width, height } = props;
  const host = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const viewer = useRef<Viewer | null>(null);
  const [busy, setBusy] = useState(false);
  const layer = useLayer(props.layer);
  const counts = voxels(info);
  const [across, down] = SIDES[axis];
  const pixel = info.pixel_size ?? 1;
  // the server averages whole numbers of voxels, and leaves away what remains at the edge
  const factor = Math.ceil(Math.max(...info.shape) / size);
  const side = (n: number) => (n < factor ? n : Math.floor(n / factor) * factor) * pixel;
  const [wide, high] = [side(counts[across]), side(counts[down])];

  useEffect(() => {
    const made = new Viewer(host.current!, canvas.current!);
    viewer.current = made;
    return () => made.destroy();
  }, []);
  useEffect(() => viewer.current?.setField(wide, high), [wide, high]);
  useEffect(() => viewer.current?.setContrast(...(contrast as [number, number])), [contrast[0], contrast[1]]);

  const address = slice(id, { axis, index: place[axis], map, thickness, size }, revision);
  const wanted = useRef(address);
  wanted.current = address;
  const loading = useRef(false);
  // one at a time: a slider that is dragged shows every section that there is time for, and the last one
  const load = () => {
    if (loading.current) return;
    const now = wanted.current;
    loading.current = true;
    setBusy(true);
    bitmap(now).then(
      (image) => {
        loading.current = false;
        if (!viewer.current) return image.close();
        viewer.current.setImage(image);
        if (wanted.current !== now) load();
        else setBusy(false);
      },
      (error: unknown) => {
        loading.current = false;
        setBusy(false);
        complain(error);
      },
    );
  };
  useEffect(load, [address]);
  useEffect(() => () => void (viewer.current = null), []);

  useEffect(() => {
    if (!viewer.current) return;
    viewer.current.painters = [
      ...(layer ? [layerPainter(layer.picture, layer.field)] : []),
      ...(props.over ? [props.over] : []),
      crosshair((place[across] + 0.5) * pixel, (place[down] + 0.5) * pixel),
      ...(bar ? [scaleBarPainter] : []),
    ];
    viewer.current.onClick = (x, y) => {
      const at = (value: number, n: number) => Math.max(0, Math.min(n - 1, Math.floor(value / pixel)));
      props.onPlace({ [across]: at(x, counts[across]), [down]: at(y, counts[down]) });
    };
    viewer.current.redraw();
  }, [place[across], place[down], bar, pixel, counts[across], counts[down], layer, props.over]);

  return (
    <div class="slice-pane" ref={host} style={{ width: `${width}px`, height: `${height}px` }} data-pane={axis} aria-busy={busy}>
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-label={`Section ${PLANES[axis]} at ${axis} ${place[axis] + 1} of ${counts[axis]}. Arrows move, plus and minus magnify, 0 shows all; a click goes there.`}
      />
      <span class="slice-label">{PLANES[axis]}</span>
    </div>
  );
}
