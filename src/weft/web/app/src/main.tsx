import { render } from "preact";
import { App } from "./App";
import { start } from "./data/events";
import "./styles/base.css";
import "./styles/frame.css";
import "./styles/overview.css";
import "./styles/gallery.css";
import "./styles/micrograph.css";
import "./styles/settings.css";
import "./styles/series.css";
import "./styles/matches.css";

render(<App />, document.getElementById("app")!);
start();
