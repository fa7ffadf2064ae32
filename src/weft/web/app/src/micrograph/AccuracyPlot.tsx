/** How often the old and the new network are right, on old and on new data, while the new one learns. */
import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Accuracies } from "../data/types";
import { font } from "../plots/canvas";
import { palette } from "../ui/theme";

/** Colour says on which data, dashes are the network as it was. */
export const LINES = [
  { key: "new_on_new", name: "your picks, now", colour: "accent", old: false },
  { key: "old_on_new", name: "your picks, before", colour: "accent", old: true },
  { key: "new_on_old", name: "old data, now", colour: "mark", old: false },
  { key: "old_on_old", name: "old data, before", colour: "mark", old: true },
] as const;

function columns(history: readonly Accuracies[]): uPlot.AlignedData {
  const percent = (value: number | null) => (value === null ? null : 100 * value);
  return [history.map((one) => one.step), ...LINES.map(({ key }) => history.map((one) => percent(one[key])))];
}

export function AccuracyPlot({ history, steps }: { history: readonly Accuracies[]; steps: number }) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const newest = useRef(history);
  newest.current = history;
  useEffect(() => {
    const element = host.current!;
    const make = () => {
      const colours = palette.value;
      plot.current?.destroy();
      const axis = {
        stroke: colours.muted,
        grid: { stroke: colours.grid, width: 1 },
        ticks: { show: false },
        font: font(),
      };
      plot.current = new uPlot(
        {
          width: element.clientWidth,
          height: element.clientHeight,
          padding: [8, 10, 0, 0],
          legend: { show: false },
          cursor: { show: false },
          scales: {
            x: { time: false, range: [0, steps] },
            y: { range: (_, low, high) => [Math.max(0, Math.min(low ?? 50, 90) - 3), Math.min(100, (high ?? 97) + 3)] },
          },
          axes: [
            { ...axis, size: 20, gap: 2, label: "step", labelSize: 14, labelFont: font() },
            { ...axis, size: 40, gap: 3, values: (_, ticks) => ticks.map((tick) => `${tick}%`) },
          ],
          series: [
            {},
            ...LINES.map(({ colour, old }) => ({
              stroke: colours[colour],
              width: old ? 1.5 : 2,
              ...(old ? { dash: [5, 4] } : {}),
              points: { show: false },
            })),
          ],
        },
        columns(newest.current),
        element,
      );
    };
    const stop = effect(make);
    const sized = new ResizeObserver(() =>
      plot.current?.setSize({ width: element.clientWidth, height: element.clientHeight }),
    );
    sized.observe(element);
    return () => {
      stop();
      sized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [steps]);
  useEffect(() => plot.current?.setData(columns(history)), [history]);
  const last = history.at(-1);
  const words = LINES.map(({ key, name }) => `${name} ${last?.[key] == null ? "unknown" : `${(100 * last[key]).toFixed(1)} %`}`);
  return <div class="accuracy-plot" ref={host} role="img" aria-label={`Pixels that are right: ${words.join(", ")}`} />;
}
