/** The accepted range as two numbers: for exact values, and for whoever does not drag. */
import type { Bounds } from "../data/types";
import { number } from "../ui/format";

interface Props {
  label: string;
  unit: string;
  bounds: Bounds;
  disabled: boolean;
  onChange: (bounds: Bounds) => void;
}

const read = (text: string): number | null => {
  const value = Number.parseFloat(text.replace(",", "."));
  return Number.isFinite(value) ? value : null;
};

const shown = (value: number | null): string => (value === null ? "" : number(value, 5).replaceAll(",", ""));

export function RangeInputs({ label, unit, bounds, disabled, onChange }: Props) {
  const [low, high] = bounds;
  const field = (which: "lowest" | "highest", value: number | null, put: (value: number | null) => Bounds) => (
    <input
      type="text"
      inputMode="decimal"
      class="range-input"
      aria-label={`${label}: ${which} accepted value${unit ? ` in ${unit}` : ""}`}
      placeholder={which === "lowest" ? "min" : "max"}
      value={shown(value)}
      disabled={disabled}
      onChange={(event) => {
        const next = put(read(event.currentTarget.value));
        // the wrong way round is surely meant the right way round
        const swapped = next[0] !== null && next[1] !== null && next[0] > next[1];
        onChange(swapped ? [next[1], next[0]] : next);
      }}
    />
  );
  return (
    <div class="range-inputs">
      {field("lowest", low, (value) => [value, high])}
      <span aria-hidden="true">–</span>
      {field("highest", high, (value) => [low, value])}
      <button
        type="button"
        class="icon-button"
        aria-label={`${label}: accept everything`}
        title="Accept everything"
        disabled={disabled || (low === null && high === null)}
        onClick={() => onChange([null, null])}
      >
        <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4.5 4.5 11.5 11.5M11.5 4.5 4.5 11.5" /></svg>
      </button>
    </div>
  );
}
