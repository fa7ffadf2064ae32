/** Which scores become candidates: the cut-off, how many at most, sharp peaks only; and saving that. */
import type { ComponentChildren } from "preact";
import { along, byChance, type PickList, type RecallCurve, type Rules, type Search } from "../data/matches";
import { readonly } from "../data/store";
import { count, number, plural } from "../ui/format";
import { ScoreHistogram } from "./ScoreHistogram";
import { templateColour } from "./pickCircles";
import { percent } from "./words";

export interface CutOffProps {
  search: Search;
  picks: PickList;
  rules: Rules;
  cutOff: number;
  automatic: number;
  shown: number;
  changed: boolean;
  saving: boolean;
  recall: RecallCurve | null;
  estimating: boolean;
  onRules: (part: Partial<Rules>) => void;
  onEstimate: () => void;
  onSave: () => void;
}

/** A number that is taken over when it is typed. */
function NumberField(props: { label: string; value: number; min: number; max: number; whole?: boolean; onChange: (value: number) => void }) {
  const { label, value, min, max, whole, onChange } = props;
  return (
    <label class="number-field">
      <span class="label">{label}</span>
      <input
        type="text"
        inputMode="decimal"
        class="numeric"
        value={String(value)}
        onChange={(event) => {
          const given = Number(event.currentTarget.value.replace(",", "."));
          const next = whole ? Math.round(given) : given;
          if (Number.isFinite(next) && next >= min && next <= max) onChange(next);
          else event.currentTarget.value = String(value);
        }}
      />
    </label>
  );
}

/** How few are expected, without an exponent where it says nothing. */
const expected = (value: number): string => (value < 1e-3 ? "< 0.001" : value >= 1e6 ? "> 1,000,000" : number(value, 2));

export function CutOffPanel(props: CutOffProps) {
  const { search, picks, rules, cutOff, automatic, shown, changed, recall, onRules } = props;
  const best = picks.score[0] ?? automatic;
  const span = Math.max(best, automatic) - picks.lowest || 0.01;
  const step = 10 ** Math.floor(Math.log10(span / 200));
  const digits = Math.max(0, -Math.log10(step));
  const low = Math.floor(picks.lowest / step) * step;
  const high = Math.min(1, Math.ceil((Math.max(best, automatic) * 1.01) / step) * step);
  // never 0, which means that it follows from the false positives
  const set = (value: number) => onRules({ cut_off: Math.max(step, Number(value.toFixed(Math.round(digits)))) });
  const sigmas = (score: number) => `${((score - search.mean) / search.std).toFixed(1)} σ`;
  const here = recall && cutOff >= recall.lowest ? along(recall.cut_offs, recall.recall, cutOff) : null;
  const wrong = recall && cutOff >= recall.lowest ? along(recall.cut_offs, recall.false_discovery, cutOff) : null;
  const row = (label: string, value: ComponentChildren) => (
    <tr><th scope="row">{label}</th><td>{value}</td></tr>
  );
  return (
    <section class="panel cut-off-panel" aria-label="Candidates">
      <div class="panel-head">
        <h2>Candidates</h2>
        <output class="pick-count" aria-live="polite" data-picks={shown}>{plural(shown, "pick")}</output>
        {changed && <span class="unsaved">not saved</span>}
      </div>
      <ScoreHistogram picks={picks} low={low} high={high} cutOff={cutOff} automatic={automatic} recall={recall} onCutOff={set} />
      <input
        class="cut-off"
        type="range"
        aria-label="Cut-off"
        min={low}
        max={high}
        step={step}
        value={cutOff}
        onInput={(event) => set(event.currentTarget.valueAsNumber)}
      />
      <table class="file-table">
        <tbody>
          {row("Cut-off", <><strong>{cutOff.toFixed(Math.round(digits))}</strong> <span class="muted">{sigmas(cutOff)}</span></>)}
          {row("By chance", <>{expected(byChance(search, cutOff))} <span class="muted">expected false positives</span></>)}
          {row(
            "False alarm",
            <>
              <span class="key-alarm" aria-hidden="true" /> {automatic.toFixed(Math.round(digits))} <span class="muted">{sigmas(automatic)}</span>{" "}
              <button type="button" class="button small" disabled={rules.cut_off === 0} onClick={() => onRules({ cut_off: 0 })}>
                {rules.cut_off === 0 ? "used" : "Use"}
              </button>
            </>,
          )}
          {search.templates.length > 1 && search.templates.map((template, i) =>
            row(
              template.stem,
              <><span class="key-dot" style={{ background: templateColour(i) }} /> {count(picks.template.slice(0, shown).filter((t) => t === i).length)}</>,
            ),
          )}
          {recall && row("Particles", recall.particles > 0 ? `about ${count(Math.round(recall.particles))}` : "background only")}
          {recall && recall.particles > 0 && row(
            "Recall",
            here === null || wrong === null
              ? <span class="muted">not known so far down</span>
              : <><span class="key-line key-recall" />{percent(here)}, <span class="key-line key-false" />false {(100 * wrong).toFixed(1)} %</>,
          )}
          {recall?.best != null && row(
            "Best F1",
            <>
              {recall.best.toFixed(Math.round(digits))}{" "}
              <button type="button" class="button small" onClick={() => set(recall.best!)}>Use</button>
            </>,
          )}
        </tbody>
      </table>
      <div class="rule-fields">
        <NumberField label="False positives" value={rules.false_positives} min={1e-9} max={Math.min(1e9, 0.1 * search.search_space)} onChange={(value) => onRules({ false_positives: value })} />
        <NumberField label="At most" value={rules.number} min={1} max={10_000_000} whole onChange={(value) => onRules({ number: value })} />
        <label class="check" title="Drops broad peaks, as membranes and gold make them">
          <input type="checkbox" checked={rules.tophat} onChange={() => onRules({ tophat: !rules.tophat })} />
          Sharp peaks only
        </label>
      </div>
      <div class="rule-buttons">
        <button type="button" class="button" disabled={props.estimating} onClick={props.onEstimate}>
          {props.estimating ? "Estimating …" : "Estimate recall"}
        </button>
        {!readonly.value && (
          <button type="button" class="button primary" disabled={props.saving} onClick={props.onSave}>
            {props.saving ? "Saving …" : "Save"}
          </button>
        )}
      </div>
      {!readonly.value && (
        <p class="muted small">
          Saving writes the STAR file and puts these values into <code>[candidates]</code> of the settings; those of other series are taken again by them.
        </p>
      )}
    </section>
  );
}
