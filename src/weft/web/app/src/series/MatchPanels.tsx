/** What a search was made with, and what its scores say about the hand. */
import { handPicture, type Search } from "../data/matches";
import { count, duration, moment, number } from "../ui/format";
import { VerdictWord, degrees, handSign, withMinus } from "./words";

const WEIGHTINGS: Record<string, string> = { ctf: "CTF, dose and tilts", wedge: "missing wedge only" };

/** 8.4 · 10¹¹, as one says it. */
function large(value: number): preact.ComponentChildren {
  if (value < 1e6) return count(Math.round(value));
  const power = Math.floor(Math.log10(value));
  return <>{(value / 10 ** power).toFixed(2)} · 10<sup>{power}</sup></>;
}

export function SearchPanel({ search }: { search: Search }) {
  const [z, y, x] = search.shape;
  const rows: [string, preact.ComponentChildren][] = [
    ["Search space", <>{large(search.search_space)} scores</>],
    ["σ of all scores", number(search.std)],
  ];
  if (search.rotations !== null) rows.push(["Rotations", count(search.rotations)]);
  if (search.angular_step.length > 0) {
    rows.push(["Angular step", search.angular_step.map((step) => degrees(step).replace("+", "")).join(", ")]);
  }
  rows.push(["Voxels", `${x} × ${y} × ${z} of ${number(search.voxel_size)} Å`]);
  if (search.weighting) rows.push(["Weights", WEIGHTINGS[search.weighting] ?? search.weighting]);
  rows.push(["Hand", search.hand === 0 ? "no defocus gradient" : handSign(search.hand)]);
  if (search.seconds !== null) rows.push(["Took", duration(search.seconds)]);
  rows.push(["Made", moment(search.time)]);
  for (const one of search.templates) {
    rows.push([one.stem, `${number(one.diameter)} Å, ${one.symmetry}`]);
    if (one.file) rows.push(["Written", <span class="wrap">{count(one.written ?? 0)} in {one.file}</span>]);
  }
  return (
    <section class="panel" aria-label="The search">
      <div class="panel-head"><h2>The search</h2></div>
      <table class="file-table search-facts">
        <tbody>
          {rows.map(([label, value], i) => <tr key={i}><th scope="row">{label}</th><td>{value}</td></tr>)}
        </tbody>
      </table>
    </section>
  );
}

export function HandPanel({ id, search }: { id: string; search: Search }) {
  const { verdict } = search;
  if (!verdict) return null;
  return (
    <section class="panel match-hand" aria-label="Hand by the scores">
      <div class="panel-head">
        <h2>Hand by the scores</h2>
        <strong>{verdict.hand === 0 ? "no difference" : handSign(verdict.hand)}</strong>
        {verdict.hand !== 0 && verdict.p !== null && <VerdictWord verdict={verdict.p < 0.01 ? "certain" : "likely"} />}
      </div>
      <p class="match-sentence">
        {withMinus(verdict.sentence)}
      </p>
      {verdict.picture && (
        <img src={handPicture(id, search.job, `${search.revision}-${verdict.p}`)} alt={`Scores with either hand: ${verdict.sentence}`} loading="lazy" />
      )}
    </section>
  );
}
