/** What can be done with the micrographs that a brush has taken. */
import { columns } from "../data/columns";
import { brushed, brushedIds, clearBrush, zoom } from "../data/highlight";
import { decide, readonly } from "../data/store";
import { address } from "../router";
import { plural } from "../ui/format";

function zoomIn(): void {
  const taken = new Set(brushed.value);
  const order = columns.order();
  let [first, last] = [order.length, -1];
  order.forEach((item, place) => {
    if (!taken.has(item)) return;
    first = Math.min(first, place);
    last = Math.max(last, place);
  });
  if (last > first) zoom.value = { from: first, to: last };
}

export function BrushBar() {
  const n = brushed.value.length;
  if (n === 0) return null;
  return (
    <div class="brush-bar" role="toolbar" aria-label="Highlighted micrographs">
      <strong role="status">{plural(n, "micrograph")} highlighted</strong>
      <a class="button" href={address.micrographs({ only: "highlighted" })}>Show</a>
      <button type="button" class="button" onClick={zoomIn}>Zoom in</button>
      {!readonly.value && (
        <>
          <button type="button" class="button" onClick={() => void decide(brushedIds.value, "include")}>Include</button>
          <button type="button" class="button" onClick={() => void decide(brushedIds.value, "exclude")}>Exclude</button>
          <button type="button" class="button" onClick={() => void decide(brushedIds.value, null)}>Undecide</button>
        </>
      )}
      <button type="button" class="button" onClick={clearBrush}>Clear</button>
    </div>
  );
}
