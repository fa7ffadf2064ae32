/** One tilt series: how each step stands, its tilts, its alignment, its CTF and hand, its tomogram. */
import { useEffect, useState } from "preact/hooks";
import { ApiError } from "../data/api";
import { reloadSeries, seriesApi, seriesList, seriesVersion, type SeriesDetails, type TiltList } from "../data/series";
import { complain, connection, readonly, retry, say, settingsVersion } from "../data/store";
import type { StepInfo } from "../data/types";
import { StepsPanel } from "../micrograph/panels";
import { address, go, replaceQuery, route } from "../router";
import { duration, number } from "../ui/format";
import { useKeys } from "../ui/hooks";
import { Shape, StateBadge } from "../ui/states";
import { AlignmentView } from "./AlignmentView";
import { AnglePlots } from "./AnglePlots";
import { CtfView } from "./CtfView";
import { MatchesView } from "./MatchesView";
import { hoveredTilt } from "./state";
import { OrderSwitch, TiltStrip } from "./TiltStrip";
import { MapSwitch, TomogramView } from "./TomogramView";
import { about, angstrom, degrees, handWords, methodName, micrometres, rangeWords, stepName, VerdictWord, why, withMinus } from "./words";

const TABS: readonly [string, string][] = [
  ["tilts", "Tilts"],
  ["alignment", "Alignment"],
  ["ctf", "CTF and hand"],
  ["tomogram", "Tomogram"],
  ["matches", "Matches"],
  ["steps", "Steps"],
];

interface Loaded {
  details: SeriesDetails | null;
  tilts: TiltList | null;
  error: string;
}

function useSeries(id: string) {
  const [loaded, setLoaded] = useState<Loaded>({ details: null, tilts: null, error: "" });
  const [turn, setTurn] = useState(0);
  const live = connection.value === "live";
  useEffect(() => {
    const controller = new AbortController();
    Promise.all([seriesApi.details(id, controller.signal), seriesApi.tilts(id, controller.signal)]).then(
      ([details, tilts]) => setLoaded({ details, tilts, error: "" }),
      (error: unknown) => {
        if (controller.signal.aborted) return;
        const gone = error instanceof ApiError && error.status === 404;
        if (gone) setLoaded({ details: null, tilts: null, error: `There is no tilt series ${id} in this session.` });
        else setLoaded((before) => ({ ...before, error: (error as Error).message }));
      },
    );
    return () => controller.abort();
  }, [id, live, turn, seriesVersion.value, settingsVersion.value]);
  return { ...loaded, setLoaded, again: () => setTurn(turn + 1) };
}

/** The chain of steps: what is done, what is not, and why. */
function StepChain({ steps }: { steps: readonly StepInfo[] }) {
  const shape = (state: string) => (state in { done: 1, failed: 1, stale: 1, new: 1 } ? (state as "done") : "new");
  return (
    <ol class="step-chain" aria-label="Steps">
      {steps.map((step) => (
        <li key={step.name} class={`state-${step.state}`} title={withMinus(step.reason)} data-step={step.name} data-state={step.state}>
          <Shape of={shape(step.state)} />
          <span class="chain-name">{stepName(step.name)}</span>
          <span class="chain-state">
            {step.state === "new" ? "not done yet" : step.state}
            {step.state === "done" && step.seconds !== null && <span class="muted"> {duration(step.seconds)}</span>}
          </span>
          {step.state === "stale" && step.reason && <span class="chain-why">{withMinus(step.reason)}</span>}
        </li>
      ))}
    </ol>
  );
}

function Facts({ one }: { one: SeriesDetails }) {
  const { alignment, ctf, hand, tomogram } = one;
  const [z, y, x] = tomogram?.shape ?? [];
  const tile = (label: string, value: preact.ComponentChildren, detail?: preact.ComponentChildren) => (
    <div class="tile">
      <dt>{label}</dt>
      <dd>
        <span class="tile-value">{value}</span>
        {detail && <span class="tile-detail">{detail}</span>}
      </dd>
    </div>
  );
  return (
    <dl class="series-facts">
      {tile("Tilts", `${one.used}/${one.tilts}`, rangeWords(one))}
      {one.dose !== null && tile("Dose", `${number(one.dose)} e/Å²`)}
      {alignment && tile("Alignment", angstrom(alignment.residual), <>{methodName(alignment.method)} <VerdictWord verdict={alignment.verdict} /></>)}
      {alignment && tile("Tilt axis", degrees(alignment.axis).replace("+", ""))}
      {ctf && tile("Defocus", micrometres(ctf.defocus), <>to {angstrom(ctf.resolution)} <VerdictWord verdict={ctf.verdict} /></>)}
      {hand && tile("Hand", handWords(hand), <VerdictWord verdict={hand.verdict} />)}
      {tomogram && tile("Tomogram", tomogram.pixel_size ? `${number(tomogram.pixel_size)} Å` : "", z !== undefined ? `${x} × ${y} × ${z}` : "")}
    </dl>
  );
}

function Trouble({ one, again }: { one: SeriesDetails; again: () => void }) {
  const failure = one.error ?? (one.state === "failed" ? one.reason : "");
  const changed = one.changes;
  return (
    <>
      {failure && (
        <div class="notice notice-error item-error" role="alert">
          <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M8 1.5A6.5 6.5 0 1 0 8.01 1.5ZM8 4.5V9M8 11V11.5" /></svg>
          <p>{one.step && one.state === "failed" ? `${stepName(one.step)}: ` : ""}{about(one.name, failure)}</p>
          {!readonly.value && (
            <button type="button" class="button primary" onClick={() => void retry([one.id]).then(again)}>Retry</button>
          )}
        </div>
      )}
      {!failure && changed.length > 0 && (
        <div class="notice notice-warning" role="status">
          <p>
            {withMinus(changed.slice(0, 6).join(", "))}{changed.length > 6 ? ` and ${changed.length - 6} more` : ""}.
            {" "}What depends on it is made again; until then, everything here is as it was.
          </p>
        </div>
      )}
      {!failure && changed.length === 0 && why(one) && (
        // on a wide screen the chain of steps says why
        <div class={`notice${one.state === "stale" && !one.waiting ? " why-stale" : ""}`} role="status"><p>{why(one)}</p></div>
      )}
      {one.notes.length > 0 && <p class="series-notes muted">{one.notes.map(withMinus).join("; ")}</p>}
    </>
  );
}

function neighbours(id: string): { before: string | undefined; after: string | undefined } {
  const ids = seriesList.value.map((one) => one.id);
  const at = ids.indexOf(id);
  return { before: ids[at - 1], after: at < 0 ? undefined : ids[at + 1] };
}

export function SeriesPage({ id }: { id: string }) {
  const { details: one, tilts, error, setLoaded, again } = useSeries(id);
  const query = route.value.query;
  const wanted = query.get("show") ?? "tilts";
  const show = TABS.some(([name]) => name === wanted) ? wanted : "tilts";
  const { before, after } = neighbours(id);
  const turn = (to: string | undefined) => to !== undefined && go(address.series(to, show === "tilts" ? {} : { show }));
  useKeys({ "[": () => turn(before), "]": () => turn(after) });
  useEffect(() => () => void (hoveredTilt.value = -1), []);
  const shown = one !== null && tilts !== null;
  useEffect(() => {
    // a narrow screen has no room for all of them
    document.querySelector("[name=series-tab]:checked")?.parentElement?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [show, shown]);

  if (!one || !tilts) {
    return (
      <main class="micrograph series-view" id="main" aria-busy={!error}>
        {error && (
          <div class="notice notice-error" role="alert">
            <p>{error}</p>
            <button type="button" class="button" onClick={again}>Ask again</button>
          </div>
        )}
      </main>
    );
  }

  async function decide(chosen: number[], keep: boolean | null): Promise<void> {
    try {
      const found = await seriesApi.decide(id, chosen, keep);
      setLoaded((last) => ({
        ...last,
        tilts: { revision: found.revision, tilts: found.tilts },
        details: last.details && { ...last.details, steps: found.steps },
      }));
      const names = chosen.map((index) => degrees(found.tilts[index]?.angle)).join(", ");
      const stale = found.steps.filter((step) => step.state === "stale").map((step) => stepName(step.name));
      const what = keep === null ? "left to Weft again" : keep ? "kept" : "left out";
      say(`${names} ${what}${stale.length > 0 ? `; to be made again: ${stale.join(", ")}` : ""}`);
      again();
      reloadSeries();
    } catch (problem) {
      complain(problem);
    }
  }

  return (
    <main class="micrograph series-view" id="main">
      <header class="item-bar">
        <div class="turn">
          <button type="button" class="icon-button bordered" aria-label="Previous tilt series" title="Previous ( [ )" disabled={!before} onClick={() => turn(before)}>
            <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M10 3 5 8 10 13" /></svg>
          </button>
          <button type="button" class="icon-button bordered" aria-label="Next tilt series" title="Next ( ] )" disabled={!after} onClick={() => turn(after)}>
            <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M6 3 11 8 6 13" /></svg>
          </button>
        </div>
        <h1>{one.name}</h1>
        <StateBadge state={one.state} />
        <StepChain steps={one.steps} />
      </header>
      {error && <div class="notice notice-warning" role="alert"><p>{error}</p></div>}
      <Trouble one={one} again={again} />
      {show === "tilts" && <Facts one={one} />}
      <div class="series-tabs">
        <fieldset class="segmented">
          <legend class="visually-hidden">What is shown</legend>
          {TABS.map(([name, label]) => (
            <label key={name}>
              <input
                type="radio"
                name="series-tab"
                checked={show === name}
                onChange={() => replaceQuery(address.series(id, name === "tilts" ? {} : { show: name }))}
              />
              <span>{label}</span>
            </label>
          ))}
        </fieldset>
        {show === "tilts" && <OrderSwitch />}
        {(show === "tomogram" || show === "matches") && <MapSwitch one={one} />}
      </div>
      {show === "tilts" && (
        <>
          <AnglePlots
            tilts={tilts.tilts}
            onPick={(index) => {
              hoveredTilt.value = index;
              document.querySelector(`[data-tilt="${index}"]`)?.scrollIntoView({ block: "center", behavior: "smooth" });
            }}
          />
          <TiltStrip id={id} tilts={tilts.tilts} revision={tilts.revision} onDecide={(chosen, keep) => void decide(chosen, keep)} />
        </>
      )}
      {show === "alignment" && <AlignmentView one={one} tilts={tilts.tilts} first={Number(query.get("tilt") ?? Number.NaN)} />}
      {show === "ctf" && <CtfView one={one} />}
      {show === "tomogram" && <TomogramView one={one} />}
      {show === "matches" && <MatchesView one={one} onSaved={again} />}
      {show === "steps" && <StepsPanel item={one} />}
    </main>
  );
}
