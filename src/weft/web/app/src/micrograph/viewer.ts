/** A micrograph on a canvas: moved and magnified by pointer, touch and keys; contrast is changed here. */
import { prepare } from "../plots/canvas";

export interface Frame {
  /** From Å to CSS pixels of the canvas. */
  toScreen(x: number, y: number): [number, number];
  toField(px: number, py: number): [number, number];
  /** CSS pixels in one Å. */
  scale: number;
  width: number;
  height: number;
}

export type Painter = (context: CanvasRenderingContext2D, frame: Frame) => void;

const NEAREST = 8; // CSS pixels in one pixel of the picture, at most
const FURTHEST = 0.6; // of the size that fits
const KEY_STEP = 60;

export class Viewer {
  /** Overlays, drawn after the image, in this order. */
  painters: Painter[] = [];
  /** A click that was no drag, in Å. */
  onClick: ((x: number, y: number, frame: Frame) => void) | null = null;
  onMove: ((x: number, y: number) => void) | null = null;
  onZoom: ((pixelsAcross: number) => void) | null = null;

  private extent: [number, number] = [1, 1];
  private grey: Uint8ClampedArray | null = null;
  private shown: HTMLCanvasElement | null = null;
  private size: [number, number] = [0, 0];
  private contrast: [number, number] = [0, 255];
  /** Å at the middle of the canvas, and CSS pixels in one Å; 0 fits the whole field. */
  private centre: [number, number] = [0.5, 0.5];
  private magnification = 0;
  private requested = 0;
  private pointers = new Map<number, { x: number; y: number }>();
  private start: { x: number; y: number; moved: boolean } | null = null;
  private pinch = 0;
  private readonly controller = new AbortController();
  private readonly observer: ResizeObserver;

  constructor(
    private readonly host: HTMLElement,
    private readonly canvas: HTMLCanvasElement,
  ) {
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(host);
    const { signal } = this.controller;
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false, signal });
    canvas.addEventListener("pointerdown", (event) => this.down(event), { signal });
    canvas.addEventListener("pointermove", (event) => this.move(event), { signal });
    canvas.addEventListener("pointerup", (event) => this.up(event), { signal });
    canvas.addEventListener("pointercancel", (event) => this.up(event), { signal });
    canvas.addEventListener("keydown", (event) => this.key(event), { signal });
    canvas.addEventListener("dblclick", (event) => !this.onClick && this.zoomBy(2, ...this.at(event)), { signal });
  }

  destroy(): void {
    this.controller.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.requested);
  }

  /** Another field: its size in Å; the view begins with the whole. */
  setField(width: number, height: number): void {
    if (this.extent[0] === width && this.extent[1] === height) return;
    this.extent = [width, height];
    this.fit();
  }

  setImage(image: ImageBitmap | null): void {
    if (!image) {
      this.grey = null;
      this.shown = null;
      this.redraw();
      return;
    }
    const { width, height } = image;
    const canvas = this.shown ?? document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (!context) return;
    context.drawImage(image, 0, 0);
    image.close();
    const { data } = context.getImageData(0, 0, width, height);
    const grey = new Uint8ClampedArray(width * height);
    for (let i = 0; i < grey.length; i++) grey[i] = data[4 * i]!;
    this.grey = grey;
    this.size = [width, height];
    this.shown = canvas;
    this.develop();
  }

  /** Grey values of the picture that become black and white. */
  setContrast(black: number, white: number): void {
    if (this.contrast[0] === black && this.contrast[1] === white) return;
    this.contrast = [black, white];
    this.develop();
  }

  /** How many pixels have each grey value. */
  histogram(): Uint32Array {
    const counts = new Uint32Array(256);
    for (const value of this.grey ?? []) counts[value]!++;
    return counts;
  }

  fit(): void {
    this.magnification = 0;
    this.centre = [this.extent[0] / 2, this.extent[1] / 2];
    this.redraw();
  }

  zoomBy(factor: number, px?: number, py?: number): void {
    const before = this.frame();
    const [ax, ay] = [px ?? before.width / 2, py ?? before.height / 2];
    const fixed = before.toField(ax, ay);
    const fit = this.fitScale(before.width, before.height);
    const full = (NEAREST * Math.max(...this.size, 1024)) / Math.max(...this.extent);
    this.magnification = Math.max(fit * FURTHEST, Math.min(full, before.scale * factor));
    this.centre = [
      fixed[0] - (ax - before.width / 2) / this.magnification,
      fixed[1] - (ay - before.height / 2) / this.magnification,
    ];
    this.keepInside();
    this.redraw();
    this.onZoom?.(Math.max(...this.extent) * this.magnification * (window.devicePixelRatio || 1));
  }

  panBy(dx: number, dy: number): void {
    const { scale } = this.frame();
    this.magnification ||= scale;
    this.centre = [this.centre[0] - dx / scale, this.centre[1] - dy / scale];
    this.keepInside();
    this.redraw();
  }

  redraw(): void {
    this.requested ||= requestAnimationFrame(() => {
      this.requested = 0;
      this.draw();
    });
  }

  /** Å at the middle of the canvas: where keys act. */
  middle(): [number, number] {
    return [...this.centre];
  }

  private fitScale(width: number, height: number): number {
    return Math.min(width / this.extent[0], height / this.extent[1]);
  }

  private keepInside(): void {
    this.centre = [
      Math.max(0, Math.min(this.extent[0], this.centre[0])),
      Math.max(0, Math.min(this.extent[1], this.centre[1])),
    ];
  }

  frame(): Frame {
    const width = this.host.clientWidth;
    const height = this.host.clientHeight;
    const scale = this.magnification || this.fitScale(width, height);
    const [cx, cy] = this.magnification ? this.centre : [this.extent[0] / 2, this.extent[1] / 2];
    return {
      scale,
      width,
      height,
      toScreen: (x, y) => [(x - cx) * scale + width / 2, (y - cy) * scale + height / 2],
      toField: (px, py) => [(px - width / 2) / scale + cx, (py - height / 2) / scale + cy],
    };
  }

  /** Apply the contrast to the whole picture, once for each change. */
  private develop(): void {
    const context = this.shown?.getContext("2d", { willReadFrequently: true });
    if (!context || !this.grey) return;
    const [black, white] = this.contrast;
    const span = Math.max(1, white - black);
    const table = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      const level = Math.round(Math.max(0, Math.min(1, (i - black) / span)) * 255);
      table[i] = 0xff000000 | (level << 16) | (level << 8) | level;
    }
    const image = context.createImageData(this.size[0], this.size[1]);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = table[this.grey[i]!]!;
    context.putImageData(image, 0, 0);
    this.redraw();
  }

  private draw(): void {
    const frame = this.frame();
    const surface = prepare(this.canvas, frame.width, frame.height);
    if (!surface) return;
    const { context } = surface;
    if (this.shown && this.grey) {
      const [left, top] = frame.toScreen(0, 0);
      const [w, h] = [this.extent[0] * frame.scale, this.extent[1] * frame.scale];
      context.imageSmoothingEnabled = w < 4 * this.size[0];
      context.imageSmoothingQuality = "high";
      context.drawImage(this.shown, left, top, w, h);
    }
    for (const paint of this.painters) paint(context, frame);
  }

  private at(event: { clientX: number; clientY: number }): [number, number] {
    const rect = this.canvas.getBoundingClientRect();
    return [event.clientX - rect.left, event.clientY - rect.top];
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 20 : 1;
    this.zoomBy(Math.exp(-event.deltaY * lines * 0.0016), ...this.at(event));
  }

  private down(event: PointerEvent): void {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    const [x, y] = this.at(event);
    this.pointers.set(event.pointerId, { x, y });
    this.start = this.pointers.size === 1 ? { x, y, moved: false } : null;
    this.pinch = 0;
  }

  private move(event: PointerEvent): void {
    const [x, y] = this.at(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.onMove?.(...this.frame().toField(x, y));
      return;
    }
    this.pointers.set(event.pointerId, { x, y });
    if (this.pointers.size === 2) {
      const [a, b] = [...this.pointers.values()] as [{ x: number; y: number }, { x: number; y: number }];
      const distance = Math.hypot(a.x - b.x, a.y - b.y);
      if (this.pinch > 0) this.zoomBy(distance / this.pinch, (a.x + b.x) / 2, (a.y + b.y) / 2);
      this.pinch = distance;
      this.panBy((x - before.x) / 2, (y - before.y) / 2);
    } else if (this.start) {
      if (!this.start.moved && Math.hypot(x - this.start.x, y - this.start.y) < 4) return;
      this.start.moved = true;
      this.panBy(x - before.x, y - before.y);
    }
  }

  private up(event: PointerEvent): void {
    const start = this.start;
    this.pointers.delete(event.pointerId);
    this.pinch = 0;
    this.start = null;
    if (start && !start.moved && event.type === "pointerup") {
      const frame = this.frame();
      this.onClick?.(...frame.toField(start.x, start.y), frame);
    }
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [KEY_STEP, 0],
      ArrowRight: [-KEY_STEP, 0],
      ArrowUp: [0, KEY_STEP],
      ArrowDown: [0, -KEY_STEP],
    };
    const step = moves[event.key];
    if (step) this.panBy(...step);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.4);
    else if (event.key === "-") this.zoomBy(1 / 1.4);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
