/** The scores of all candidates, with the cut-off that is drawn along it, and what recall is estimated to be. */
import { useMemo } from "preact/hooks";
import type { PickList, RecallCurve } from "../data/matches";

const BINS = 72;
const WIDTH = 288;
const HEIGHT = 96;
const TOP = 8;

interface Props {
  picks: PickList;
  low: number;
  high: number;
  cutOff: number;
  automatic: number;
  recall: RecallCurve | null;
  onCutOff: (value: number) => void;
}

/** Logarithmic, from one: a few particles are seen beside much background. */
const tall = (count: number, most: number): number =>
  count === 0 ? 0 : ((HEIGHT - TOP) * Math.log1p(count)) / Math.log1p(most);

export function ScoreHistogram({ picks, low, high, cutOff, automatic, recall, onCutOff }: Props) {
  const counts = useMemo(() => {
    const found = new Array<number>(BINS).fill(0);
    for (const score of picks.score) {
      const bin = Math.floor(((score - low) / (high - low)) * BINS);
      found[Math.max(0, Math.min(BINS - 1, bin))]!++;
    }
    return found;
  }, [picks, low, high]);
  const most = Math.max(1, ...counts);
  const x = (score: number) => Math.max(0, Math.min(WIDTH, ((score - low) / (high - low)) * WIDTH));
  const line = (values: readonly number[]) =>
    recall!.cut_offs
      .map((score, i) => [score, values[i]!] as const)
      .filter(([score]) => score >= low && score <= high)
      .map(([score, value]) => `${x(score).toFixed(1)},${(HEIGHT - value * (HEIGHT - TOP)).toFixed(1)}`)
      .join(" ");
  const drag = (event: PointerEvent) => {
    const plot = event.currentTarget as Element;
    if (event.type === "pointerdown") plot.setPointerCapture(event.pointerId);
    else if (!plot.hasPointerCapture(event.pointerId)) return;
    const box = plot.getBoundingClientRect();
    onCutOff(low + Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * (high - low));
  };
  return (
    <svg
      class="score-histogram"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={`Scores of ${picks.score.length} candidates, the cut-off at ${cutOff.toPrecision(3)}`}
      onPointerDown={drag}
      onPointerMove={drag}
    >
      {counts.map((count, i) => {
        const height = tall(count, most);
        const middle = low + ((i + 0.5) / BINS) * (high - low);
        return (
          <rect
            key={i}
            class={middle >= cutOff ? "above" : "below"}
            x={(i * WIDTH) / BINS + 0.3}
            y={HEIGHT - height}
            width={WIDTH / BINS - 0.6}
            height={height}
          />
        );
      })}
      {recall && <polyline class="recall-line" points={line(recall.recall)} />}
      {recall && <polyline class="false-line" points={line(recall.false_discovery)} />}
      <line class="alarm-line" x1={x(automatic)} x2={x(automatic)} y1={0} y2={HEIGHT} />
      <line class="cut-line" x1={x(cutOff)} x2={x(cutOff)} y1={0} y2={HEIGHT} />
    </svg>
  );
}
