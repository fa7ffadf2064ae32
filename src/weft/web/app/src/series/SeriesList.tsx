/** All tilt series with what came of them. */
import { useState } from "preact/hooks";
import { seriesList, seriesLoaded, sessionHand, slice, seriesPicture, type SeriesHead } from "../data/series";
import { Notices } from "../overview/Notices";
import { StatusStrip } from "../overview/StatusStrip";
import { address } from "../router";
import { count, DASH, number, plural } from "../ui/format";
import { StateBadge } from "../ui/states";
import { SessionHandNote } from "./SessionHandNote";
import { angstrom, handWords, methodName, micrometres, rangeWords, VerdictWord, why } from "./words";

const SORTS: readonly [string, string][] = [
  ["name", "Name"],
  ["time", "Newest first"],
  ["residual", "Largest residual first"],
  ["defocus", "Defocus"],
];

const natural = new Intl.Collator("en", { numeric: true });
let lastSort = "name";

function sorted(list: readonly SeriesHead[], by: string): SeriesHead[] {
  const last = (value: number | null | undefined, sign: number) => (value === null || value === undefined ? Number.POSITIVE_INFINITY : sign * value);
  const key: Record<string, (one: SeriesHead) => number> = {
    time: (one) => -one.time,
    residual: (one) => last(one.alignment?.residual, -1),
    defocus: (one) => last(one.ctf?.defocus, 1),
  };
  const of = key[by];
  return [...list].sort((a, b) => {
    const difference = of ? of(a) - of(b) : 0;
    return (Number.isNaN(difference) ? 0 : difference) || natural.compare(a.name, b.name);
  });
}

/** The middle of the tomogram; before there is one, the untilted image. */
function Picture({ one }: { one: SeriesHead }) {
  const map = one.tomogram?.maps.includes("deconvolved") ? "deconvolved" : "raw";
  const source = one.tomogram
    ? slice(one.id, { axis: "z", map, size: 256, thickness: 5, stretched: true }, one.revision)
    : one.pictures.includes("tilt_picture")
      ? seriesPicture(one.id, "tilt_picture", one.revision)
      : "";
  return (
    <span class={`series-picture${source ? "" : " blank"}`}>
      {source && <img key={source} src={source} alt="" loading="lazy" decoding="async" onError={(event) => (event.currentTarget.hidden = true)} />}
    </span>
  );
}

function Cell({ label, value, detail }: { label: string; value: preact.ComponentChildren; detail?: preact.ComponentChildren }) {
  return (
    <span class="series-cell">
      <span class="series-label">{label}</span>
      <span class="series-value">{value}</span>
      {detail && <span class="series-detail">{detail}</span>}
    </span>
  );
}

function Row({ one }: { one: SeriesHead }) {
  const { alignment, ctf, hand, tomogram } = one;
  const reason = why(one);
  const [z, y, x] = tomogram?.shape ?? [];
  return (
    <li>
      <a class={`series-row is-${one.state}`} href={address.series(one.id)} data-series={one.id}>
        <Picture one={one} />
        <span class="series-name">
          <strong>{one.name}</strong>
          <StateBadge state={one.state} />
          {reason && <span class={`series-why state-${one.state}`}>{reason}</span>}
        </span>
        <Cell
          label="Tilts"
          value={`${one.used} of ${one.tilts}`}
          detail={one.to_come > 0 ? `${one.to_come} to come` : rangeWords(one)}
        />
        <Cell
          label="Alignment"
          value={alignment ? methodName(alignment.method) : DASH}
          detail={alignment && (
            <>
              {angstrom(alignment.residual)} <VerdictWord verdict={alignment.verdict} />
            </>
          )}
        />
        <Cell
          label="Defocus"
          value={micrometres(ctf?.defocus)}
          detail={ctf && (
            <>
              to {angstrom(ctf.resolution)} <VerdictWord verdict={ctf.verdict} />
            </>
          )}
        />
        <Cell label="Hand" value={handWords(hand)} detail={hand && <VerdictWord verdict={hand.verdict} />} />
        <Cell
          label="Tomogram"
          value={tomogram?.pixel_size ? `${number(tomogram.pixel_size)} Å` : DASH}
          detail={z !== undefined ? `${x} × ${y} × ${z}` : undefined}
        />
      </a>
    </li>
  );
}

export function SeriesList() {
  const [search, setSearch] = useState("");
  const [sort, setSort] = useState(lastSort);
  const all = seriesList.value;
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = sorted(all, sort).filter((one) =>
    words.every((word) => `${one.name} ${one.state} ${one.reason}`.toLowerCase().includes(word)),
  );
  const done = all.filter((one) => one.state === "done").length;
  return (
    <main class="overview series-view" id="main" tabIndex={-1} aria-busy={!seriesLoaded.value}>
      <h1 class="visually-hidden">Tilt series</h1>
      <StatusStrip />
      <Notices />
      <SessionHandNote hand={sessionHand.value} />
      {all.length > 0 && (
        <form class="series-bar" role="search" onSubmit={(event) => event.preventDefault()}>
          <input
            type="search"
            placeholder="Search tilt series"
            aria-label="Search tilt series"
            value={search}
            onInput={(event) => setSearch(event.currentTarget.value)}
          />
          <label>
            <span class="label">Sort by</span>{" "}
            <select value={sort} onChange={(event) => setSort((lastSort = event.currentTarget.value))}>
              {SORTS.map(([name, label]) => <option key={name} value={name}>{label}</option>)}
            </select>
          </label>
          <span class="gallery-count" role="status">
            {shown.length === all.length ? `${plural(all.length, "tilt series", "tilt series")}, ${count(done)} done` : `${count(shown.length)} of ${count(all.length)}`}
          </span>
        </form>
      )}
      {seriesLoaded.value && all.length === 0 && (
        <p class="empty">
          No tilt series yet. As soon as the first mdoc has come, its series appears here.
        </p>
      )}
      <ul class="series-list">
        {shown.map((one) => <Row key={one.id} one={one} />)}
      </ul>
      {all.length > 0 && shown.length === 0 && <p class="empty">No tilt series is like that.</p>}
    </main>
  );
}
