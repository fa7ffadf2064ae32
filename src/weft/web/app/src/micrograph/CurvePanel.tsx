/** The rotational average of the power spectrum, the fitted CTF², and how well one follows the other. */
import { effect } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Curve } from "../data/types";
import { font } from "../plots/canvas";
import { number } from "../ui/format";
import { palette } from "../ui/theme";

const NAMES = ["measured", "fit", "quality"] as const;

export function CurvePanel({ curve, resolution }: { curve: Curve; resolution: number }) {
  const host = useRef<HTMLDivElement>(null);
  const [under, setUnder] = useState("");
  useEffect(() => {
    const element = host.current!;
    let plot: uPlot | null = null;
    const data: uPlot.AlignedData = [curve.frequency, curve.data, curve.fit, curve.quality];
    const make = () => {
      const colours = palette.value;
      plot?.destroy();
      const axis = {
        stroke: colours.muted,
        grid: { stroke: colours.grid, width: 1 },
        ticks: { show: false },
        font: font(),
      };
      plot = new uPlot(
        {
          width: element.clientWidth,
          height: element.clientHeight,
          padding: [8, 8, 0, 0],
          legend: { show: false },
          cursor: { drag: { x: true, y: false }, points: { show: false } },
          scales: { x: { time: false }, y: { range: [-0.5, 1.5] } },
          axes: [
            {
              ...axis,
              size: 20,
              gap: 2,
              label: "resolution (Å)",
              labelSize: 14,
              labelFont: font(),
              values: (_, ticks) => ticks.map((tick) => (tick > 0 ? number(1 / tick, 2) : "∞")),
            },
            { ...axis, size: 34, gap: 3 },
          ],
          series: [
            {},
            { stroke: colours.muted, width: 1, points: { show: false } },
            { stroke: colours.accent, width: 1, points: { show: false } },
            { stroke: colours.mark, width: 2, points: { show: false } },
          ],
          hooks: {
            setCursor: [
              (at) => {
                const index = at.cursor.idx;
                if (index === null || index === undefined) return setUnder("");
                setUnder(`${number(1 / curve.frequency[index]!)} Å · quality ${number(curve.quality[index] ?? null, 2)}`);
              },
            ],
            draw: [
              (at) => {
                if (!(resolution > 0)) return;
                const x = Math.round(at.valToPos(1 / resolution, "x", true)) + 0.5;
                if (x > at.bbox.left + at.bbox.width) return;
                at.ctx.save();
                at.ctx.strokeStyle = colours.text;
                at.ctx.setLineDash([4, 3]);
                at.ctx.beginPath();
                at.ctx.moveTo(x, at.bbox.top);
                at.ctx.lineTo(x, at.bbox.top + at.bbox.height);
                at.ctx.stroke();
                at.ctx.restore();
              },
            ],
          },
        },
        data,
        element,
      );
    };
    const stop = effect(make);
    const sized = new ResizeObserver(() =>
      plot?.setSize({ width: element.clientWidth, height: element.clientHeight }),
    );
    sized.observe(element);
    return () => {
      stop();
      sized.disconnect();
      plot?.destroy();
    };
  }, [curve, resolution]);
  return (
    <section class="panel" aria-label="CTF curve">
      <header class="panel-head">
        <h2>CTF <span class="unit">fits to {number(resolution)} Å</span></h2>
        <span class="muted small">{under}</span>
      </header>
      <div
        class="curve"
        ref={host}
        title="Drag to magnify, double-click to see all"
        role="img"
        aria-label={`Rotational average of the power spectrum with the fitted CTF, which follows it to ${number(resolution)} Å`}
      />
      <p class="legend curve-legend">
        {NAMES.map((name) => (
          <span key={name}><span class={`key key-line key-${name}`} /> {name}</span>
        ))}
      </p>
    </section>
  );
}
