/** Points of a plot in CSS pixels: painted, found under the pointer, and marked from other plots. */

export class Cloud {
  /** Item index of each point. */
  items: Int32Array = new Int32Array(0);
  x: Float32Array = new Float32Array(0);
  y: Float32Array = new Float32Array(0);
  n = 0;
  width = 0;
  height = 0;
  private slots: Int32Array = new Int32Array(0);
  private cells: Uint8Array = new Uint8Array(0);

  begin(capacity: number, items: number, width: number, height: number): void {
    if (this.items.length < capacity) {
      this.items = new Int32Array(capacity);
      this.x = new Float32Array(capacity);
      this.y = new Float32Array(capacity);
    }
    if (this.slots.length < items) this.slots = new Int32Array(items + 256);
    this.slots.fill(-1);
    this.n = 0;
    this.width = width;
    this.height = height;
  }

  add(item: number, x: number, y: number): void {
    this.items[this.n] = item;
    this.x[this.n] = x;
    this.y[this.n] = y;
    this.slots[item] = this.n;
    this.n++;
  }

  /** Slot of an item's point, or −1. */
  slot(item: number): number {
    return item < 0 || item >= this.slots.length ? -1 : (this.slots[item] ?? -1);
  }

  /** Paint the points for which `take` is true; in dense plots, a cell of 2×2 pixels is painted once. */
  paint(context: CanvasRenderingContext2D, colour: string, size: number, take: (item: number) => boolean): void {
    const columns = Math.ceil(this.width / 2) + 1;
    const rows = Math.ceil(this.height / 2) + 1;
    const dense = this.n > 3000;
    if (dense) {
      if (this.cells.length < columns * rows) this.cells = new Uint8Array(columns * rows);
      this.cells.fill(0);
    }
    context.fillStyle = colour;
    const half = size / 2;
    const { x, y, items, n, cells } = this;
    for (let i = 0; i < n; i++) {
      if (!take(items[i]!)) continue;
      if (dense) {
        const cell = (x[i]! >> 1) + (y[i]! >> 1) * columns;
        if (cells[cell]) continue;
        cells[cell] = 1;
      }
      context.fillRect(x[i]! - half, y[i]! - half, size, size);
    }
  }

  /** The item nearest to a place, within `reach` pixels; −1 where there is none. */
  nearest(px: number, py: number, reach: number): number {
    let best = reach * reach;
    let found = -1;
    for (let i = 0; i < this.n; i++) {
      const dx = this.x[i]! - px;
      const dy = this.y[i]! - py;
      const distance = dx * dx + dy * dy;
      if (distance < best) {
        best = distance;
        found = this.items[i]!;
      }
    }
    return found;
  }

  /** Items within a rectangle. */
  within(left: number, top: number, right: number, bottom: number): number[] {
    const found: number[] = [];
    for (let i = 0; i < this.n; i++) {
      if (this.x[i]! >= left && this.x[i]! <= right && this.y[i]! >= top && this.y[i]! <= bottom) {
        found.push(this.items[i]!);
      }
    }
    return found;
  }

  /** Marks of brushed items and of the one under the pointer. */
  paintMarks(
    context: CanvasRenderingContext2D,
    mask: Uint8Array,
    any: boolean,
    hovered: number,
    colours: { mark: string; text: string; panel: string },
  ): void {
    if (any) {
      // the others fade: what stands out does so for every eye
      context.globalAlpha = 0.6;
      context.fillStyle = colours.panel;
      context.fillRect(0, 0, this.width, this.height);
      context.globalAlpha = 1;
      this.paint(context, colours.mark, this.n > 4000 ? 3 : 4, (item) => mask[item] === 1);
    }
    const slot = this.slot(hovered);
    if (slot < 0) return;
    context.beginPath();
    context.arc(this.x[slot]!, this.y[slot]!, 5, 0, 2 * Math.PI);
    context.fillStyle = colours.mark;
    context.fill();
    context.lineWidth = 1.5;
    context.strokeStyle = colours.text;
    context.stroke();
  }
}
