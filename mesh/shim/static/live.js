// Keeps an open page up to date. The server sends HTML by the ids of elements: first everything,
// then what has changed. Nothing is remembered here, so a connection that comes again is enough.

import { whenPainted } from "./painted.js";

const stale = document.getElementById("stale");

function made(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

function put(id, html) {
  const old = document.getElementById(id);
  if (!old || old.outerHTML === html) return;
  const held = old.contains(document.activeElement) ? document.activeElement : null;
  const next = made(html);
  old.replaceWith(next);
  if (held) {
    // A keyboard stays where it was: at the same link of the same element.
    const again = held.id ? document.getElementById(held.id) : next.querySelector("a, button");
    again?.focus({ preventScroll: true });
  }
}

function putList(id, { rows, order }) {
  const list = document.getElementById(id);
  if (!list) return;
  if (!order) {
    for (const [row, html] of Object.entries(rows)) put(row, html);
    return;
  }
  const known = new Map([...list.children].map((one) => [one.id, one]));
  let place = list.firstElementChild;
  for (const row of order) {
    let one = known.get(row);
    if (rows[row]) {
      if (one) {
        if (one === place) place = place.nextElementSibling;
        one.remove();
      }
      one = made(rows[row]);
    }
    known.delete(row);
    if (!one) continue;
    if (one === place) place = place.nextElementSibling;
    else list.insertBefore(one, place);
  }
  for (const gone of known.values()) gone.remove();
}

export function apply(change) {
  for (const [id, html] of Object.entries(change.elements)) put(id, html);
  for (const [id, list] of Object.entries(change.lists)) putList(id, list);
  showTimes(document);
  document.dispatchEvent(new CustomEvent("mesh:changed"));
}

// Times are the reader's own: how long ago, and the whole time when it is pointed at.
let ago = null; // Takes longer to make than a page to paint.
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function showTimes(root) {
  ago ??= new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });
  const now = Date.now();
  for (const time of root.querySelectorAll("time[datetime], time[data-at]")) {
    const at = moment(time);
    if (!Number.isFinite(at)) continue;
    const seconds = Math.round((at - now) / 1000);
    const [unit, size] = UNITS.find(([, one]) => Math.abs(seconds) >= one) ?? UNITS[3];
    const text = ago.format(Math.trunc(seconds / size), unit);
    if (time.textContent !== text) time.textContent = text;
  }
}

function moment(time) {
  return time.dataset.at ? Number(time.dataset.at) * 1000 : Date.parse(time.dateTime);
}

document.addEventListener("pointerover", ({ target }) => {
  const time = target.closest?.("time[datetime], time[data-at]");
  if (time && Number.isFinite(moment(time))) time.title ||= new Date(moment(time)).toLocaleString();
});

let source = null;
let isPaused = false;

function follow() {
  source?.close();
  if (isPaused) return;
  source = new EventSource(location.href);
  source.onmessage = (event) => {
    stale.hidden = true;
    apply(JSON.parse(event.data));
  };
  source.onerror = () => {
    stale.hidden = false;
    // A browser gives up when it is answered with an error; we do not.
    if (source.readyState === EventSource.CLOSED) setTimeout(comeBack, 3000);
  };
}

// Who looks at something closely does not want it to move. What was missed comes when it goes on.
function offerPause() {
  const button = document.getElementById("pause");
  if (!button) return;
  button.hidden = false;
  button.addEventListener("click", () => {
    isPaused = !isPaused;
    button.textContent = isPaused ? "Go on" : "Pause";
    button.setAttribute("aria-pressed", String(isPaused));
    document.documentElement.classList.toggle("paused", isPaused);
    if (isPaused) source.close();
    else follow();
  });
}

async function comeBack() {
  const { status } = await fetch(location.href, { method: "HEAD" }).catch(() => ({ status: 0 }));
  if (status === 401) location.reload(); // Logged out: the server shows the log-in in this place.
  else follow();
}

function offerCopies() {
  for (const figure of document.querySelectorAll("figure:has(pre)")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${figure.querySelector("figcaption")?.textContent ?? ""}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(figure.querySelector("code").textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(figure.querySelector("code"));
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    figure.append(button);
  }
}

addEventListener("pagehide", () => source?.close());
addEventListener("pageshow", (event) => { if (event.persisted) follow(); });

function begin() {
  showTimes(document);
  setInterval(() => showTimes(document), 1000);
  offerCopies();
  offerPause();
  follow();
}

whenPainted(begin);
