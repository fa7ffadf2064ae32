/** Tilt series: the list of all, or one. */
import { route } from "../router";
import { SeriesList } from "./SeriesList";
import { SeriesPage } from "./SeriesPage";

export function TiltSeries() {
  const { id } = route.value;
  return id ? <SeriesPage key={id} id={id} /> : <SeriesList />;
}
