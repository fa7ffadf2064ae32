/** The frame around all views. */
import { useEffect } from "preact/hooks";
import { expired } from "./data/api";
import { connection, dismiss, readonly, status, toasts } from "./data/store";
import { hovered } from "./data/highlight";
import { cardAt } from "./plots/pointer";
import { home, route } from "./router";
import { chooseTheme, dark, palette } from "./ui/theme";
import { VIEWS } from "./views";

/** The session's folder; with the one above it where that says more. */
function sessionName(): string {
  const parts = status.value?.session.split("/").filter(Boolean) ?? [];
  return parts.slice(parts.at(-1) === "session" ? -2 : -1).join("/");
}

function ConnectionState() {
  const state = connection.value;
  const words = { live: "live", connecting: "connecting", reconnecting: "reconnecting" }[state];
  return (
    <span class={`connection ${state}`} role="status" data-connection={state}>
      <span class="dot" aria-hidden="true" />
      {words}
    </span>
  );
}

function ThemeButton() {
  const next = dark.value ? "light" : "dark";
  return (
    <button type="button" class="icon-button" aria-label={`Use ${next} colours`} title={`Use ${next} colours`} onClick={() => chooseTheme(next)}>
      <svg viewBox="0 0 16 16" aria-hidden="true">
        {dark.value ? (
          <path d="M8 5A3 3 0 1 1 7.99 5ZM8 1V2.5M8 13.5V15M1 8H2.5M13.5 8H15M3 3 4 4M12 12 13 13M3 13 4 12M12 4 13 3" />
        ) : (
          <path d="M13 9.5A5.5 5.5 0 1 1 6.5 3 4.5 4.5 0 0 0 13 9.5Z" />
        )}
      </svg>
    </button>
  );
}

function Header() {
  const view = VIEWS.find((one) => one.name === route.value.view);
  const current = view?.under ?? view?.name;
  const alerts = status.value?.alerts.length ?? 0;
  return (
    <header class="top">
      <a class="skip" href="#main" onClick={(event) => {
        event.preventDefault();
        document.getElementById("main")?.querySelector<HTMLElement>("a,button,input,[tabindex]")?.focus();
      }}>Skip to the content</a>
      <span class="brand">
        <svg viewBox="0 0 32 32" aria-hidden="true"><path class="warp" d="M11 6v10M11 24v2M21 6v.5M21 14v12" /><path class="woof" d="M6 11h4M16 11h10M6 21h10M22 21h4" /></svg>
        Weft
      </span>
      <span class="session-name" title={status.value?.session}>{sessionName()}</span>
      <nav aria-label="Views">
        {VIEWS.filter((one) => one.label?.()).map((one) => (
          <a key={one.name} href={one.address} aria-current={one.name === current ? "page" : undefined}>
            {one.label?.()}
            {one.name === home.value && alerts > 0 && (
              <span class="count" title={`${alerts} alerts`}>{alerts}<span class="visually-hidden"> alerts</span></span>
            )}
          </a>
        ))}
      </nav>
      <span class="top-end">
        {readonly.value && <span class="badge">read only</span>}
        <ConnectionState />
        <ThemeButton />
      </span>
    </header>
  );
}

function Toasts() {
  return (
    <div class="toasts" aria-live="polite">
      {toasts.value.map((toast) => (
        <div key={toast.id} class={`toast toast-${toast.level}`} role={toast.level === "error" ? "alert" : undefined}>
          {toast.text}
          <button type="button" class="icon-button" aria-label="Dismiss" onClick={() => dismiss(toast.id)}>
            <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4.5 4.5 11.5 11.5M11.5 4.5 4.5 11.5" /></svg>
          </button>
        </div>
      ))}
    </div>
  );
}

export function App() {
  const found = VIEWS.find((one) => one.name === route.value.view);
  const Current = found?.component;
  void palette.value; // keeps the colours in accord with the theme
  const session = sessionName();
  useEffect(() => {
    document.title = [route.value.id || found?.label?.(), session, "Weft"].filter(Boolean).join(" · ");
    hovered.value = -1;
    cardAt.value = null;
  }, [route.value, session]);
  if (expired.value) {
    return (
      <main class="expired">
        <h1>This page is not signed in</h1>
        <p>Open the start address that <code>weft live</code> has printed; it holds the token.</p>
      </main>
    );
  }
  return (
    <>
      <Header />
      {connection.value === "reconnecting" && (
        <div class="banner" role="alert">
          Reconnecting. What is shown is as it was when the connection was lost.
        </div>
      )}
      {Current ? (
        <Current />
      ) : (
        // until it is known what the session holds, there is nothing to be seen first
        <main class="empty" id="main" aria-busy={!home.value}>{home.value && "There is no such view."}</main>
      )}
      <Toasts />
    </>
  );
}
