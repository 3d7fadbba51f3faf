// Says how somebody is: online while the page is used, away after five minutes without a touch,
// offline when it is hidden or closed. `startPresenceHeartbeat` for any page; for React there is
// use-presence-heartbeat.js beside this file.

export const BEAT_MS = 30_000;
export const AWAY_MS = 5 * 60_000;
// Of the many events of a moment one is enough.
const TOUCH_MS = 5_000;
const TOUCHES = ["pointerdown", "pointermove", "keydown", "wheel", "touchstart", "scroll"];

/** How somebody is at a moment. Pure: timers only ask again. */
export class Activity {
  #touchedAt;
  #isHidden = false;

  constructor(now) {
    this.#touchedAt = now;
  }

  touch(now) {
    this.#touchedAt = Math.max(this.#touchedAt, now);
  }

  hide(isHidden) {
    this.#isHidden = isHidden;
  }

  idle(now) {
    return Math.max(0, now - this.#touchedAt);
  }

  status(now) {
    if (this.#isHidden) return "offline";
    return this.idle(now) >= AWAY_MS ? "unavailable" : "online";
  }
}

/** This tab, for as long as it is open: a reload is the same one. */
function tabId(window) {
  const made = () => window.crypto.randomUUID();
  try {
    const kept = window.sessionStorage.getItem("mesh-presence-client") ?? made();
    window.sessionStorage.setItem("mesh-presence-client", kept);
    return kept;
  } catch {
    return made(); // Storage is forbidden here.
  }
}

/**
 * Report how somebody is until the returned function is called, which reports offline.
 *
 * `url` is where a mesh's door takes reports: `/internal/matrix/presence/online`. `statusMessage` may
 * be a function. A report that fails is made up for by the next one; `onError` is told.
 */
export function startPresenceHeartbeat({
  url,
  userId,
  accessToken = "",
  statusMessage,
  onStatus = () => {},
  onError = () => {},
  window = globalThis.window,
}) {
  const { document } = window;
  const now = () => window.performance.now();
  const activity = new Activity(now());
  const client = tabId(window);
  // Also after a reload it grows, as long as this machine's clock does.
  let seq = Date.now() * 10;
  let said = "";

  async function report() {
    const status = activity.status(now());
    const message = typeof statusMessage === "function" ? statusMessage() : statusMessage;
    const body = {
      matrix_user_id: userId,
      access_token: accessToken,
      status,
      client_id: client,
      seq: ++seq,
      idle_ms: Math.round(activity.idle(now())),
    };
    if (message) body.status_msg = message;
    if (status !== said) onStatus((said = status));
    try {
      const answer = await window.fetch(url, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
        keepalive: true, // It is sent although the page goes.
      });
      if (!answer.ok) throw new Error((await answer.json()).error?.message ?? answer.statusText);
    } catch (error) {
      onError(error);
    }
  }

  // Hidden tabs are silent: they have said that they are offline.
  const tick = () => { if (said !== "offline" || activity.status(now()) !== said) report(); };

  let touchedAt = -Infinity;
  const onTouch = () => {
    if (now() - touchedAt < TOUCH_MS && said === "online") return;
    touchedAt = now();
    activity.touch(now());
    if (said === "unavailable") report();
  };
  const onVisibility = () => {
    activity.hide(document.visibilityState === "hidden");
    if (document.visibilityState === "visible") activity.touch(now());
    // A page that goes is hidden, too: it has said so.
    if (activity.status(now()) !== "offline" || said !== "offline") report();
  };
  const onLeave = () => {
    activity.hide(true);
    if (said !== "offline") report();
  };
  const onReturn = (event) => {
    if (!event.persisted) return;
    activity.hide(false);
    activity.touch(now());
    report();
  };

  const listening = new window.AbortController();
  const options = { passive: true, signal: listening.signal };
  for (const name of TOUCHES) window.addEventListener(name, onTouch, options);
  document.addEventListener("visibilitychange", onVisibility, options);
  window.addEventListener("pagehide", onLeave, options);
  window.addEventListener("pageshow", onReturn, options);
  const timer = window.setInterval(tick, BEAT_MS);
  // A timer of minutes is late in a page that sleeps; this one only looks at the time.
  const looking = window.setInterval(() => {
    if (said === "online" && activity.status(now()) !== said) report();
  }, 1_000);

  activity.hide(document.visibilityState === "hidden");
  report();
  return () => {
    listening.abort();
    window.clearInterval(timer);
    window.clearInterval(looking);
    onLeave();
  };
}
