/** The CTF of a series as a whole, and which way the defocus goes with the tilt. */
import { useState } from "preact/hooks";
import { seriesApi, seriesPicture, sessionHand, type CtfDetails, type HandDetails, type SeriesDetails } from "../data/series";
import { CurvePanel } from "../micrograph/CurvePanel";
import { number } from "../ui/format";
import { useFetched } from "../ui/hooks";
import { DotPanel } from "./DotPanel";
import { UseHand } from "./SessionHandNote";
import { angstrom, degrees, handSign, micrometres, signed, VerdictWord, withMinus } from "./words";

function CtfFacts({ found }: { found: CtfDetails }) {
  const [low, high] = found.fit_range;
  const rows: [string, string][] = [
    ["Median defocus", micrometres(found.defocus, 3)],
    ["Rings fit to", angstrom(found.resolution)],
    ["Fitted over", `${angstrom(low)} to ${angstrom(high)}`],
    ["Score", number(found.score, 2)],
    ["Tilts with rings of their own", String(found.fitted)],
    [
      "Inclination beyond the alignment's",
      `${degrees(found.level_x)} ± ${number(found.level_error[0], 2)}° about x, ${degrees(found.level_y)} ± ${number(found.level_error[1], 2)}° about y`,
    ],
  ];
  return (
    <section class="panel" aria-label="CTF of the series">
      <header class="panel-head"><h2>CTF of the series</h2><VerdictWord verdict={found.verdict} /></header>
      <table class="file-table">
        <tbody>{rows.map(([name, value]) => <tr key={name}><th scope="row">{name}</th><td>{value}</td></tr>)}</tbody>
      </table>
      {found.notes.length > 0 && <ul class="item-notes">{found.notes.map((note) => <li key={note}>{withMinus(note)}</li>)}</ul>}
    </section>
  );
}

/** Both hands beside each other, by how much better one describes the images. */
function Scores({ hand }: { hand: HandDetails }) {
  const [plus, minus] = hand.scores;
  const most = Math.max(plus, minus, 1e-9);
  const row = (name: string, score: number) => (
    <tr key={name} class={score === most ? "best" : ""}>
      <th scope="row">{name}</th>
      <td class="score-bar"><span style={{ width: `${(100 * score) / most}%` }} /></td>
      <td class="num">{score === 0 ? "0" : `+${number(score)}`}</td>
    </tr>
  );
  return (
    <table class="hand-scores">
      <caption>How much better the fit is (log-likelihood)</caption>
      <tbody>{[row("hand +1", plus), row("hand −1", minus)]}</tbody>
    </table>
  );
}

function HandPanel({ hand }: { hand: HandDetails }) {
  const [marked, setMarked] = useState(-1);
  const session = sessionHand.value;
  const tilts = [...hand.tilts].sort((a, b) => a.angle - b.angle);
  const angles = tilts.map((tilt) => tilt.angle);
  const tilt = tilts[marked];
  const origin = { found: "found from this series", set: "set in the settings", assumed: "assumed, as the series cannot tell" }[hand.origin ?? "found"];
  const plot = { x: angles, muted: tilts.map((one) => !one.used) };
  const shared = { marked, xWords: (angle: number) => degrees(angle, 0), onHover: setMarked, onPick: setMarked };
  // the specimen's own inclination adds the same to all tilts
  const used = tilts.filter((one) => one.used);
  const offset = used.reduce((sum, one) => sum + one.measured - hand.slope * one.predicted, 0) / Math.max(1, used.length);
  return (
    <>
      <section class="panel hand-panel" aria-label="Hand">
        <header class="panel-head">
          <h2>Hand <span class="unit">which way the defocus goes with the tilt</span></h2>
          <VerdictWord verdict={hand.verdict} />
        </header>
        <div class="hand-body">
          <p class="hand-verdict">
            <strong>{handSign(hand.hand)}</strong> <span class="muted">{origin}</span>
          </p>
          <p>{withMinus(hand.reason)}.</p>
          <Scores hand={hand} />
          <p class="small muted">
            Significance {Math.abs(hand.significance ?? 0).toFixed(1)} standard errors for {handSign(hand.significance)}; slope of measured
            against predicted gradients {signed(hand.slope)} ± {hand.slope_error.toFixed(2)}.
            With hand +1 a positive tilt brings +x of the specimen to greater underfocus.
          </p>
          {session && session.series > 0 && (
            <div class="hand-session">
              <p>
                <strong>All series together: {handSign(session.hand)}</strong> <VerdictWord verdict={session.verdict} />{" "}
                <span class="muted">{withMinus(session.reason)}.</span>
              </p>
              {session.hand ? <UseHand hand={session.hand} setting={session.setting} /> : null}
              {!session.hand && hand.found !== 0 && <UseHand hand={hand.found} setting={session.setting} />}
            </div>
          )}
        </div>
      </section>
      <DotPanel
        title="Gradient of defocus across the tilt axis"
        unit="Å/Å"
        dots={{
          ...plot,
          y: tilts.map((one) => one.measured),
          error: tilts.map((one) => one.error),
          lines: [
            { y: tilts.map((one) => one.predicted + offset), colour: "accent" },
            { y: tilts.map((one) => -one.predicted + offset), colour: "bad", dashed: true },
          ],
        }}
        words={tilt ? `${degrees(tilt.angle)}: ${signed(tilt.measured)} ± ${tilt.error.toFixed(2)}` : ""}
        {...shared}
      >
        <p class="legend curve-legend">
          <span><span class="key key-good" /> measured in each tilt</span>
          <span><span class="key key-line key-fit" /> as hand +1 predicts</span>
          <span><span class="key key-line key-bad" /> as hand −1 predicts</span>
        </p>
      </DotPanel>
      <DotPanel
        title="What each tilt says"
        unit="log-likelihood, up for +1"
        dots={{ ...plot, y: tilts.map((one) => one.difference), bars: true }}
        words={tilt ? `${degrees(tilt.angle)}: ${signed(tilt.difference, 1)}` : ""}
        {...shared}
      />
    </>
  );
}

export function CtfView({ one }: { one: SeriesDetails }) {
  const { id, revision } = one;
  const ctf = useFetched(one.ctf ? (signal) => seriesApi.ctf(id, signal) : null, [id, revision]);
  const hand = useFetched(one.hand ? (signal) => seriesApi.hand(id, signal) : null, [id, revision]);
  if (!one.ctf) return <p class="empty">The CTF has not been fitted yet.</p>;
  const problem = ctf.error || hand.error;
  return (
    <>
      {problem && <div class="notice notice-warning" role="alert"><p>{problem}</p></div>}
      <div class="ctf-layout">
        <div class="ctf-column">
          {ctf.data && <CtfFacts found={ctf.data} />}
          {ctf.data?.curve && <CurvePanel curve={ctf.data.curve} resolution={ctf.data.resolution ?? Number.NaN} />}
          {one.pictures.includes("series_powerspectrum") && (
            <section class="panel" aria-label="Power spectrum">
              <header class="panel-head"><h2>Power spectrum <span class="unit">all tilts at one defocus; left data, right fit</span></h2></header>
              <img
                class="spectrum"
                src={seriesPicture(id, "series_powerspectrum", revision)}
                alt="Left half: the power spectra of all tilts brought to one defocus. Right half: the fitted CTF."
                width={512}
                height={512}
              />
            </section>
          )}
        </div>
        <div class="ctf-column">{hand.data && <HandPanel hand={hand.data} />}</div>
      </div>
    </>
  );
}
