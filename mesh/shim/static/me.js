// Who reads these pages, if he wants to be seen: a name that stays in this browser.
import { whenPainted } from "./painted.js";

const KEY = "mesh-me";
const url = new URL("../internal/matrix/presence/online", import.meta.url).href;
const form = document.getElementById("me");
let stop = null;
let shown = 0;

function kept() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

async function show(userId) {
  const mine = ++shown;
  stop?.();
  stop = null;
  if (form) form.querySelector("output").textContent = "";
  if (!userId) return;
  const { startPresenceHeartbeat } = await import("./presence.js");
  if (mine !== shown) return; // Somebody else meanwhile.
  stop = startPresenceHeartbeat({
    url,
    userId,
    onError: (error) => {
      if (form) form.querySelector("output").textContent = error.message;
    },
  });
}

function begin() {
  if (form) {
    form.hidden = false;
    form.elements.user.value = kept();
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const userId = form.elements.user.value.trim();
      try {
        localStorage.setItem(KEY, userId);
      } catch {
        // It lasts as long as the page.
      }
      show(userId);
    });
  }
  show(kept());
}

whenPainted(begin);
