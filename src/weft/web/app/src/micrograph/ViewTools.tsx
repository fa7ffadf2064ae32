/** Sliders and switches below the micrograph. */
import type { Signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { prepare } from "../plots/canvas";
import { palette } from "../ui/theme";
import { contrast, deconvolve, denoised, falloff, showDefocus, showMask, showPicks, strength } from "./controls";

interface SliderProps {
  label: string;
  value: number;
  min: number;
  max: number;
  step: number;
  disabled?: boolean;
  onInput: (value: number) => void;
}

export function Slider({ label, value, min, max, step, disabled, onInput }: SliderProps) {
  return (
    <label class="slider">
      <span class="label">{label}</span>
      <input
        type="range"
        min={min}
        max={max}
        step={step}
        value={value}
        disabled={disabled}
        onInput={(event) => onInput(event.currentTarget.valueAsNumber)}
      />
      <output>{step < 1 ? value.toFixed(2) : value}</output>
    </label>
  );
}

function Switch({ label, of, disabled, title }: { label: string; of: Signal<boolean>; disabled?: boolean; title?: string }) {
  return (
    <label class="check" title={title}>
      <input type="checkbox" checked={of.value} disabled={disabled} onChange={() => (of.value = !of.value)} />
      {label}
    </label>
  );
}

/** Grey values of the picture, with what becomes black and white. */
function Levels({ histogram }: { histogram: Uint32Array | null }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const colours = palette.value;
  const [black, white] = contrast.value;
  useEffect(() => {
    const surface = canvas.current && prepare(canvas.current, 128, 30);
    if (!surface || !histogram) return;
    const { context } = surface;
    // the ends hold all that was cut off
    const tallest = Math.max(1, ...histogram.subarray(1, 255));
    context.fillStyle = colours.muted;
    for (let i = 0; i < 128; i++) {
      const height = Math.min(30, (Math.max(histogram[2 * i]!, histogram[2 * i + 1]!) / tallest) * 28);
      context.fillRect(i, 30 - height, 1, height);
    }
    context.fillStyle = colours.accent;
    context.fillRect(black / 2, 0, 1.5, 30);
    context.fillRect(Math.min(126.5, white / 2), 0, 1.5, 30);
  }, [histogram, colours, black, white]);
  return <canvas class="levels" ref={canvas} aria-hidden="true" />;
}

interface Props {
  histogram: Uint32Array | null;
  fitted: boolean;
  hasMask: boolean;
  hasDenoised: boolean;
}

export function ViewTools({ histogram, fitted }: Pick<Props, "histogram" | "fitted">) {
  const [black, white] = contrast.value;
  return (
    <div class="view-tools">
      <div class="view-group" role="group" aria-label="Contrast">
        <span class="group-name">Contrast</span>
        <Levels histogram={histogram} />
        <Slider label="Black" min={0} max={254} step={1} value={black}
          onInput={(value) => (contrast.value = [value, Math.max(value + 1, white)])} />
        <Slider label="White" min={1} max={255} step={1} value={white}
          onInput={(value) => (contrast.value = [Math.min(black, value - 1), value])} />
        <button type="button" class="button small" disabled={black === 0 && white === 255}
          onClick={() => (contrast.value = [0, 255])}>
          Reset
        </button>
      </div>
      <div class="view-group" role="group" aria-label="Deconvolution">
        <span class="group-name">
          <Switch label="Deconvolution" of={deconvolve} disabled={!fitted} title="d" />
        </span>
        <Slider label="Strength" min={0} max={2} step={0.05} value={strength.value} disabled={!fitted}
          onInput={(value) => {
            strength.value = value;
            deconvolve.value = true;
          }} />
        <Slider label="Fall-off" min={0} max={2} step={0.05} value={falloff.value} disabled={!fitted}
          onInput={(value) => {
            falloff.value = value;
            deconvolve.value = true;
          }} />
      </div>
    </div>
  );
}

/** What is drawn over the picture, and which picture. */
export function ViewSwitches({ fitted, hasMask, hasDenoised }: Omit<Props, "histogram">) {
  return (
    <div class="view-group" role="group" aria-label="Shown">
      <Switch label="Picks" of={showPicks} title="p" />
      <Switch label="Local defocus" of={showDefocus} disabled={!fitted} />
      {hasMask && <Switch label="Artefacts" of={showMask} title="Violet: what is masked" />}
      {hasDenoised && <Switch label="Denoised" of={denoised} />}
    </div>
  );
}
