/** Choices that stay while one goes from series to series. */
import { signal } from "@preact/signals";
import type { Axis, MapName } from "../data/series";

/** Index of the tilt under the pointer, in whatever plot or list; −1 for none. */
export const hoveredTilt = signal(-1);

/** What tilts are listed and plotted along. */
export const tiltOrder = signal<"angle" | "acquisition">("angle");

/** How many times longer residuals are drawn than they are; 0 until somebody has chosen. */
export const residualScale = signal(0);
export const showMarkers = signal(true);

export const map = signal<MapName | null>(null);
export const thickness = signal(1);
/** The section that a narrow screen shows. */
export const pane = signal<Axis>("z");

/** Templates of the search that is shown; empty for the first that a series has. */
export const searched = signal("");
/** The training whose classes are shown in tomograms; empty for the first that a series has. */
export const training = signal("");
/** Classes of it that are not. */
export const hiddenClasses = signal<readonly number[]>([]);

export const showScores = signal(false);
export const showMatches = signal(true);
