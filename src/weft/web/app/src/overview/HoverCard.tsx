/** The micrograph under the pointer: its picture and its numbers, beside the pointer. */
import { useEffect, useState } from "preact/hooks";
import { picture } from "../data/api";
import { columns } from "../data/columns";
import { hovered } from "../data/highlight";
import { selection } from "../data/store";
import { cardAt } from "../plots/pointer";
import { moment, quantity } from "../ui/format";
import { StateBadge } from "../ui/states";

const WIDTH = 316;
const HEIGHT = 212;
const SHOWN = ["defocus", "resolution", "motion", "astigmatism", "ice", "particles"];

export function HoverCard() {
  const index = hovered.value;
  const at = cardAt.value;
  const [pictured, setPictured] = useState(-1);
  useEffect(() => {
    // a pointer that sweeps over a plot must not ask for a hundred pictures
    const timer = window.setTimeout(() => setPictured(index), 80);
    return () => window.clearTimeout(timer);
  }, [index]);
  const id = columns.ids[index];
  if (id === undefined || !at) return null;
  const left = at.x + 18 + WIDTH > window.innerWidth ? Math.max(4, at.x - WIDTH - 18) : at.x + 18;
  const top = Math.max(4, Math.min(at.y - 40, window.innerHeight - HEIGHT));
  const labels = new Map(selection.value?.quantities.map((one) => [one.name, one.label]));
  return (
    <div class="hover-card" style={{ left: `${left}px`, top: `${top}px`, width: `${WIDTH}px` }}>
      <div class="hover-picture">
        {pictured === index && columns.measured(index) && (
          <img src={picture(id, "thumbnail", columns.revision[index]!)} alt="" width={120} height={120} />
        )}
      </div>
      <div class="hover-text">
        <strong>{id}</strong>
        <span class="muted">{moment(columns.time[index])}</span>
        <StateBadge state={columns.state[index]!} />
        <table>
          <tbody>
            {SHOWN.map((name) => {
              const column = columns.column(name);
              const value = column?.values[index];
              if (!column || value === undefined || Number.isNaN(value)) return null;
              return (
                <tr key={name}>
                  <td>{labels.get(name) ?? column.label}</td>
                  <td class="num">{quantity(value, column.unit)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </div>
  );
}
