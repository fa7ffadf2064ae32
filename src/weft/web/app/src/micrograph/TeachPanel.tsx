/** Teach the picking network what people have picked; what it finds from then on is found by the new one. */
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../data/api";
import { complain, readonly } from "../data/store";
import type { Training } from "../data/types";
import { duration, plural } from "../ui/format";
import { AccuracyPlot, LINES } from "./AccuracyPlot";
import { teaching } from "./controls";
import { MANUAL } from "./usePicks";

const ASK_EVERY = 1500; // ms

/** The state of the training: asked for again while one runs. */
function useTraining(): [Training | null, (found: Training) => void] {
  const [training, setTraining] = useState<Training | null>(null);
  const running = training === null || training.state === "running";
  useEffect(() => {
    const controller = new AbortController();
    let timer = 0;
    let complained = false;
    const ask = () =>
      api.training(controller.signal).then(setTraining, (error: unknown) => {
        // that a server which was there is away is told elsewhere
        if (!controller.signal.aborted && training === null && !complained) complain(error);
        complained = true;
      }).finally(() => {
        if (!controller.signal.aborted && running) timer = window.setTimeout(ask, ASK_EVERY);
      });
    void ask();
    return () => {
      controller.abort();
      window.clearTimeout(timer);
    };
  }, [running]);
  return [training, setTraining];
}

/** A name that no model has yet. */
function freeName(models: readonly string[]): string {
  for (let i = 1; ; i++) {
    const name = i === 1 ? "retrained" : `retrained_${i}`;
    if (!models.includes(name)) return name;
  }
}

function Order({ training, onStart }: { training: Training; onStart: (found: Training) => void }) {
  const { pickers, models } = training;
  const [picks, setPicks] = useState(MANUAL);
  const [start, setStart] = useState(models.includes(training.model) ? training.model : models[0]!);
  const [name, setName] = useState(freeName(models));
  const [diameter, setDiameter] = useState("");
  const [sent, setSent] = useState(false);
  const size = Number.parseFloat(diameter);
  const fine = diameter.trim() === "" || size > 0;
  const begin = () => {
    setSent(true);
    api.train({ picks, name: name.trim(), start, ...(size > 0 ? { diameter: size } : {}) })
      .then(onStart, complain)
      .finally(() => setSent(false));
  };
  const names = [...new Set([MANUAL, ...Object.keys(pickers)])];
  return (
    <form
      class="teach-form"
      onSubmit={(event) => {
        event.preventDefault();
        begin();
      }}
    >
      <label>
        <span class="label">Learn the picks</span>
        <select value={picks} onChange={(event) => setPicks(event.currentTarget.value)}>
          {names.map((one) => (
            <option key={one} value={one}>
              {`${one === MANUAL ? "made by hand" : `of ${one}`} (${plural(pickers[one] ?? 0, "micrograph")})`}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span class="label">Begin with</span>
        <select value={start} onChange={(event) => setStart(event.currentTarget.value)}>
          {models.map((one) => <option key={one} value={one}>{one}</option>)}
        </select>
      </label>
      <label>
        <span class="label">Name of the new model</span>
        <input type="text" value={name} maxLength={64} onInput={(event) => setName(event.currentTarget.value)} />
      </label>
      <label>
        <span class="label">Diameter (Å)</span>
        <input type="text" inputMode="decimal" value={diameter} placeholder="as picked" aria-invalid={!fine} onInput={(event) => setDiameter(event.currentTarget.value)} />
      </label>
      {!pickers[picks] && <p class="field-error small">No micrograph has such picks yet: change the picks of a few and save them.</p>}
      <button type="submit" class="button primary" disabled={sent || !fine || !pickers[picks] || !name.trim()}>
        {sent ? "Starting …" : "Start"}
      </button>
    </form>
  );
}

function Progress({ training }: { training: Training }) {
  const { history, steps } = training;
  return (
    <>
      {training.state === "running" && (
        <progress class="teach-progress" aria-label="Steps done" max={steps ?? 1} value={steps ? history.at(-1)?.step ?? 0 : undefined} />
      )}
      {history.length > 0 && steps && (
        <>
          <AccuracyPlot history={history} steps={steps} />
          <p class="legend accuracy-legend">
            {LINES.map(({ key, name, old }) => (
              <span key={key}>
                <span class={`key-accuracy key-${key}${old ? " key-dashed" : ""}`} aria-hidden="true" /> {name}
              </span>
            ))}
          </p>
        </>
      )}
    </>
  );
}

export function TeachPanel() {
  const panel = useRef<HTMLElement>(null);
  const [training, setTraining] = useTraining();
  const [again, setAgain] = useState(false);
  useEffect(() => panel.current?.scrollIntoView({ block: "nearest" }), []);
  const running = training?.state === "running";
  const asks = training && !running && (again || training.state === "none");
  const failed = training?.state === "failed";
  return (
    <section class="panel teach-panel" aria-label="Teach the picker" ref={panel}>
      <div class="panel-head">
        <h2>Teach the picker</h2>
        {training && <span class="muted small">picking with {training.model || "nothing"}</span>}
        <button type="button" class="icon-button" aria-label="Close" onClick={() => (teaching.value = false)}>
          <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4 4 12 12M12 4 4 12" /></svg>
        </button>
      </div>
      <div class="teach-body" aria-busy={training === null}>
        {asks && (
          <>
            <p class="muted small">
              Half of what the network sees is yours, half is what it knew, so that it does not forget. When it is done, it picks all micrographs anew;
              picks made by hand stay.
            </p>
            {!readonly.value && <Order training={training} onStart={(found) => { setAgain(false); setTraining(found); }} />}
          </>
        )}
        {training && !asks && (
          <>
            <p role="status" class={failed ? "field-error" : ""} data-training={training.state}>
              {training.order && <strong>{training.order.name}: </strong>}
              {training.text}
              {training.seconds !== null && <span class="muted"> ({duration(training.seconds)})</span>}
            </p>
            <Progress training={training} />
            {training.left_out.length > 0 && (
              <p class="muted small wrap">Left out: {training.left_out.slice(0, 3).join("; ")}{training.left_out.length > 3 ? " …" : ""}</p>
            )}
            {!readonly.value && (
              <div class="teach-buttons">
                {running
                  ? <button type="button" class="button" onClick={() => api.stopTraining().then(setTraining, complain)}>Stop</button>
                  : <button type="button" class="button" onClick={() => setAgain(true)}>Teach again</button>}
              </div>
            )}
          </>
        )}
      </div>
    </section>
  );
}
