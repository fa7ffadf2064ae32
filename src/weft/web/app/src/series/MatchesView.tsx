/** Known structures in a tomogram: candidates of a search as circles on its sections, at any cut-off. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { falseAlarm, kept, matchesApi, scoreSlice, type MatchList, type PickList, type RecallCurve, type Rules, type Search } from "../data/matches";
import { seriesApi, type Axis, type SeriesDetails } from "../data/series";
import { complain, say, settingsVersion } from "../data/store";
import { plural } from "../ui/format";
import { useFetched, useKeys } from "../ui/hooks";
import { CutOffPanel } from "./CutOffPanel";
import { HandPanel, SearchPanel } from "./MatchPanels";
import { circles } from "./pickCircles";
import type { Place } from "./SlicePane";
import { map as chosenMap, searched, showMatches, showScores, thickness } from "./state";
import { mapOf, Sections, type Drawn } from "./TomogramView";

const MOST = 20_000;
const templatesOf = (search: Search): string => search.templates.map((one) => one.stem).join("+");
const SIDE: Record<Axis, number> = { x: 0, y: 1, z: 2 };

/** Of several searches with the same templates, which one it is. */
function searchName(search: Search, all: readonly Search[]): string {
  const stems = search.templates.map((one) => one.stem).join(" + ");
  return all.filter((other) => templatesOf(other) === templatesOf(search)).length > 1 ? `${stems} (${search.job})` : stems;
}

interface BodyProps {
  one: SeriesDetails;
  search: Search;
  list: MatchList;
  onSaved: (list: MatchList) => void;
}

function PickTurner({ picks, shown, at, onTurn }: { picks: PickList; shown: number; at: number; onTurn: (to: number) => void }) {
  const valid = at >= 0 && at < shown;
  return (
    <div class="pick-turner" role="group" aria-label="One pick after the other">
      <button type="button" class="icon-button bordered" aria-label="Better pick" title="Better ( k )" disabled={!valid || at === 0} onClick={() => onTurn(at - 1)}>
        <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M10 3 5 8 10 13" /></svg>
      </button>
      <output>{valid ? <>{at + 1} / {shown} <span class="muted">score {picks.score[at]!.toFixed(3)}</span></> : <span class="muted">go through them</span>}</output>
      <button type="button" class="icon-button bordered" aria-label="Weaker pick" title="Weaker ( j )" disabled={shown === 0 || at >= shown - 1} onClick={() => onTurn(valid ? at + 1 : 0)}>
        <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M6 3 11 8 6 13" /></svg>
      </button>
      <button type="button" class="button small" disabled={shown === 0} onClick={() => onTurn(shown - 1)}>Weakest</button>
    </div>
  );
}

function Body({ one, search, list, onSaved }: BodyProps) {
  const saved: Rules = {
    cut_off: list.rules.cut_off,
    false_positives: list.rules.false_positives,
    number: list.rules.number,
    tophat: list.rules.tophat,
  };
  const [draft, setDraft] = useState<Rules>(saved);
  // what is saved elsewhere, or by us, is what counts
  useEffect(() => setDraft(saved), [JSON.stringify(saved)]);
  const [saving, setSaving] = useState(false);
  const [recall, setRecall] = useState<{ curve: RecallCurve | null; busy: boolean }>({ curve: null, busy: false });
  const [at, setAt] = useState(-1);
  const [target, setTarget] = useState<Place | null>(null);
  useEffect(() => {
    setRecall({ curve: null, busy: false });
    setAt(-1);
  }, [search.job, search.revision]);

  const map = mapOf(one);
  const maps = one.tomogram?.maps ?? [];
  const info = useFetched(maps.length > 0 ? (signal) => seriesApi.tomogram(one.id, map, signal) : null, [one.id, one.revision, map]);
  const limit = Math.min(MOST, Math.max(5000, draft.number));
  // the filter has a cut-off of its own, which follows from the false positives
  const found = useFetched(
    (signal) => matchesApi.picks(one.id, search.job, draft.tophat, draft.false_positives, limit, signal),
    [`${one.id}/${search.job}`, search.revision, draft.tophat, draft.tophat && draft.false_positives, limit, JSON.stringify(list.rules)],
  );
  const picks = found.data;
  const automatic = useMemo(() => falseAlarm(search, draft.false_positives), [search, draft.false_positives]);
  const cutOff = draft.cut_off || automatic;
  const shown = picks ? kept(picks, cutOff, draft.number) : 0;
  const turn = (to: number) => {
    if (!picks || !info.data || shown === 0) return;
    const next = Math.max(0, Math.min(shown - 1, to));
    const pixel = info.data.pixel_size ?? 1;
    setAt(next);
    setTarget({ x: Math.round(picks.x[next]! / pixel), y: Math.round(picks.y[next]! / pixel), z: Math.round(picks.z[next]! / pixel) });
  };
  useKeys({
    j: () => turn(at + 1),
    k: () => turn(at - 1),
    p: () => (showMatches.value = !showMatches.value),
    s: () => (showScores.value = !showScores.value),
    d: () => maps.includes("deconvolved") && (chosenMap.value = map === "deconvolved" ? "raw" : "deconvolved"),
  });

  const diameter = list.rules.particle_diameter;
  const radii = search.templates.map((template) => (diameter > 0 ? diameter : template.diameter) / 2);
  const [scores, circled, thick] = [showScores.value, showMatches.value, thickness.value];
  const drawn = useMemo<Drawn>(() => {
    const pixel = info.data?.pixel_size ?? 1;
    const [nz, ny, nx] = search.shape;
    const voxels = { x: nx, y: ny, z: nz };
    const first = (axis: Axis) => search.origin[SIDE[axis]]! + 0.5 * pixel - 0.5 * search.voxel_size;
    return {
      over: (axis, place) =>
        picks && circled
          ? circles(picks, shown, radii, at, { axis, at: (place[axis] + 0.5) * pixel, thick: (thick - 1) * pixel, edge: 0.5 * pixel })
          : null,
      layer: (axis, place, size) => {
        const index = Math.round((place[axis] * pixel - search.origin[SIDE[axis]]!) / search.voxel_size);
        if (!scores || index < 0 || index >= voxels[axis]) return null;
        const [across, down] = axis === "z" ? (["x", "y"] as const) : axis === "y" ? (["x", "z"] as const) : (["z", "y"] as const);
        // as the server reduces it
        const factor = Math.ceil(Math.max(...search.shape) / size);
        const side = (n: number) => (n < factor ? n : Math.floor(n / factor) * factor) * search.voxel_size;
        return {
          address: scoreSlice(one.id, search.job, axis, index, size, search.revision),
          field: [first(across), first(down), side(voxels[across]), side(voxels[down])],
        };
      },
    };
  }, [picks, shown, at, info.data, search, scores, circled, thick, radii.join()]);

  async function save(): Promise<void> {
    setSaving(true);
    try {
      const done = await matchesApi.save(one.id, search.job, draft);
      settingsVersion.value++;
      say(`${plural(done.count, "candidate")} from ${done.cut_off.toPrecision(3)} up written to ${done.files[0] ?? "matching"}`);
      onSaved(done.matches);
    } catch (error) {
      complain(error);
    } finally {
      setSaving(false);
    }
  }

  async function estimate(): Promise<void> {
    setRecall({ curve: null, busy: true });
    try {
      setRecall({ curve: await matchesApi.estimate(one.id, search.job), busy: false });
    } catch (error) {
      setRecall({ curve: null, busy: false });
      complain(error);
    }
  }

  const tools = (
    <>
      {found.error && <div class="notice notice-error" role="alert"><p>{found.error}</p></div>}
      {!picks && found.loading && <p class="empty small" role="status">Looking for candidates …</p>}
      {picks && (
        <CutOffPanel
          search={search}
          picks={picks}
          rules={draft}
          cutOff={cutOff}
          automatic={automatic}
          shown={shown}
          changed={JSON.stringify(draft) !== JSON.stringify(saved)}
          saving={saving}
          recall={recall.curve}
          estimating={recall.busy}
          onRules={(part) => setDraft((last) => ({ ...last, ...part }))}
          onEstimate={() => void estimate()}
          onSave={() => void save()}
        />
      )}
      {found.error && draft.tophat && (
        <button type="button" class="button" onClick={() => setDraft({ ...draft, tophat: false })}>All peaks again</button>
      )}
      <section class="panel match-shown" aria-label="What is shown">
        <label class="check" title="p">
          <input type="checkbox" checked={showMatches.value} onChange={() => (showMatches.value = !showMatches.value)} /> Picks
        </label>
        <label class="check" title="s">
          <input type="checkbox" checked={showScores.value} onChange={() => (showScores.value = !showScores.value)} /> Scores
        </label>
        {picks && info.data && <PickTurner picks={picks} shown={shown} at={at} onTurn={turn} />}
      </section>
    </>
  );
  return (
    <>
      {info.error && <div class="notice notice-error" role="alert"><p>{info.error}</p></div>}
      {info.data
        ? <Sections one={one} info={info.data} drawn={drawn} target={target}>{tools}</Sections>
        : <div class="match-alone">{maps.length === 0 && <p class="empty small">The tomogram is gone, so that nothing can be shown in it.</p>}{tools}</div>}
      <div class="match-below">
        <SearchPanel search={search} />
        <HandPanel id={one.id} search={search} />
      </div>
    </>
  );
}

export function MatchesView({ one, onSaved }: { one: SeriesDetails; onSaved: () => void }) {
  const { id, revision } = one;
  const found = useFetched((signal) => matchesApi.list(id, signal), [id, revision, settingsVersion.value]);
  const [newer, setNewer] = useState<{ of: MatchList | null; list: MatchList } | null>(null);
  const list = newer && newer.of === found.data ? newer.list : found.data;
  if (found.error) return <div class="notice notice-error" role="alert"><p>{found.error}</p></div>;
  if (!list) return null;
  const search = list.searches.find((each) => templatesOf(each) === searched.value || each.job === searched.value) ?? list.searches[0];
  return (
    <>
      {list.problems.length > 0 && <div class="notice notice-warning" role="alert"><p>{list.problems.join("; ")}</p></div>}
      {list.searches.length > 1 && (
        <label class="search-choice">
          <span class="label">Search</span>
          <select value={search?.job} onChange={(event) => (searched.value = event.currentTarget.value)}>
            {list.searches.map((each) => <option key={each.job} value={each.job}>{searchName(each, list.searches)}</option>)}
          </select>
        </label>
      )}
      {search ? (
        <Body
          key={`${id}/${search.job}`}
          one={one}
          search={search}
          list={list}
          onSaved={(next) => {
            setNewer({ of: found.data, list: next });
            onSaved();
          }}
        />
      ) : (
        list.problems.length === 0 && (
          <p class="empty">
            Nothing was searched in this tomogram yet: <code>weft match SESSION --template FILE --particle-diameter A</code> looks for a known structure.
          </p>
        )
      )}
    </>
  );
}
