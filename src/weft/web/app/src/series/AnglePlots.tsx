/** Everything that was measured on each tilt, against its angle. */
import type { Tilt } from "../data/series";
import { number, quantity } from "../ui/format";
import { DotPanel } from "./DotPanel";
import { hoveredTilt, tiltOrder } from "./state";
import { degrees } from "./words";

interface Measure {
  title: string;
  unit: string;
  of: (tilt: Tilt) => number | null;
  error?: (tilt: Tilt) => number | null;
  include?: number[];
}

const scaled = (value: number | null, factor: number): number | null => (value === null ? null : value * factor);

export const MEASURES: readonly Measure[] = [
  { title: "Motion", unit: "Å", of: (tilt) => tilt.motion },
  { title: "Defocus", unit: "µm", of: (tilt) => scaled(tilt.defocus, 1e-4), error: (tilt) => scaled(tilt.defocus_error, 1e-4) },
  { title: "CTF resolution", unit: "Å", of: (tilt) => tilt.resolution },
  { title: "Alignment residual", unit: "Å", of: (tilt) => tilt.residual },
  { title: "Counts, of what is expected", unit: "%", of: (tilt) => scaled(tilt.relative_counts, 100), include: [100] },
];

export function AnglePlots({ tilts, onPick }: { tilts: readonly Tilt[]; onPick: (index: number) => void }) {
  const along = tiltOrder.value;
  const ordered = [...tilts].sort((a, b) => (along === "angle" ? a.angle - b.angle : 0) || a.index - b.index);
  const x = ordered.map((tilt) => (along === "angle" ? tilt.angle : tilt.index + 1));
  const marked = ordered.findIndex((tilt) => tilt.index === hoveredTilt.value);
  const shown = MEASURES.filter((measure) => ordered.some((tilt) => measure.of(tilt) !== null));
  if (shown.length === 0) return null;
  return (
    <div class="angle-plots">
      {shown.map((measure) => {
        const tilt = ordered[marked];
        const value = tilt ? measure.of(tilt) : null;
        return (
          <DotPanel
            key={measure.title}
            title={measure.title}
            unit={measure.unit}
            dots={{
              x,
              y: ordered.map(measure.of),
              muted: ordered.map((one) => !one.used),
              ...(measure.error ? { error: ordered.map(measure.error) } : {}),
              ...(measure.include ? { include: measure.include } : {}),
            }}
            marked={marked}
            words={tilt ? `${degrees(tilt.angle)}: ${quantity(value, measure.unit)}` : ""}
            xWords={(at) => (along === "angle" ? degrees(at, 0) : number(at, 4))}
            onHover={(index) => (hoveredTilt.value = ordered[index]?.index ?? -1)}
            onPick={(index) => ordered[index] && onPick(ordered[index].index)}
          />
        );
      })}
    </div>
  );
}
