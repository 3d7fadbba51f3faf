// The presence hook on a fake clock: node's own test runner, its timers and its events.
import assert from "node:assert/strict";
import { readFile, writeFile, mkdtemp, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mock, test, beforeEach, afterEach } from "node:test";
import { pathToFileURL, fileURLToPath } from "node:url";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const STATIC = join(HERE, "../../mesh/shim/static");

/** The modules as a bundler sees them: as a package's, beside node_modules. */
async function modules() {
  const folder = await mkdtemp(join(tmpdir(), "presence-"));
  await writeFile(join(folder, "package.json"), '{"type": "module"}');
  for (const name of ["presence.js", "use-presence-heartbeat.js"]) {
    await writeFile(join(folder, name), await readFile(join(STATIC, name)));
  }
  await symlink(join(HERE, "node_modules"), join(folder, "node_modules"));
  const load = (name) => import(pathToFileURL(join(folder, name)));
  return { ...(await load("presence.js")), ...(await load("use-presence-heartbeat.js")) };
}

const { Activity, AWAY_MS, BEAT_MS, startPresenceHeartbeat, usePresenceHeartbeat } = await modules();

/** What the hook needs of a browser, on node's events and timers. */
class Browser extends EventTarget {
  constructor() {
    super();
    this.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
    this.reports = [];
    this.answer = () => ({ ok: true });
    this.kept = new Map();
    this.sessionStorage = {
      getItem: (key) => this.kept.get(key) ?? null,
      setItem: (key, value) => this.kept.set(key, value),
    };
    this.performance = { now: () => Date.now() };
    this.crypto = globalThis.crypto;
    this.AbortController = AbortController;
    this.setInterval = (...args) => setInterval(...args);
    this.clearInterval = (id) => clearInterval(id);
    this.fetch = async (url, options) => {
      this.reports.push({ url, ...JSON.parse(options.body), keepalive: options.keepalive });
      return this.answer();
    };
  }

  get said() {
    return this.reports.map((one) => one.status);
  }

  show(state) {
    this.document.visibilityState = state;
    this.document.dispatchEvent(new Event("visibilitychange"));
  }

  emit(name, fields = {}) {
    this.dispatchEvent(Object.assign(new Event(name), fields));
  }
}

/** Let time pass: in small steps, as the clock of the mock stands still within one. */
function pass(ms) {
  for (let left = ms; left > 0; left -= 1_000) mock.timers.tick(Math.min(left, 1_000));
}

let window;
const start = (options = {}) =>
  startPresenceHeartbeat({ url: "/here", userId: "@ann:example.org", window, ...options });

beforeEach(() => {
  mock.timers.enable({ apis: ["setInterval", "Date"], now: 1_700_000_000_000 });
  window = new Browser();
});
afterEach(() => mock.timers.reset());

test("activity is a matter of times, not of timers", () => {
  const activity = new Activity(1_000);
  assert.equal(activity.status(1_000), "online");
  assert.equal(activity.status(1_000 + AWAY_MS - 1), "online");
  assert.equal(activity.status(1_000 + AWAY_MS), "unavailable");
  activity.touch(1_000 + AWAY_MS);
  assert.equal(activity.status(1_000 + AWAY_MS), "online");
  activity.touch(5); // A clock that went back takes nothing away.
  assert.equal(activity.idle(1_000 + AWAY_MS), 0);
  assert.equal(activity.idle(0), 0);
  activity.hide(true);
  assert.equal(activity.status(1_000 + AWAY_MS), "offline");
});

test("it says so at once, and every half minute", () => {
  start();
  pass(3 * BEAT_MS);
  assert.deepEqual(window.said, ["online", "online", "online", "online"]);
  const [first, second] = window.reports;
  assert.equal(first.url, "/here");
  assert.equal(first.matrix_user_id, "@ann:example.org");
  assert.ok(second.seq > first.seq);
  assert.equal(first.client_id, second.client_id);
  assert.equal(second.idle_ms, BEAT_MS);
});

test("it goes away after five minutes, within a second, and comes back by a touch", () => {
  const told = [];
  start({ onStatus: (status) => told.push(status) });
  pass(AWAY_MS - 1_000);
  assert.equal(window.said.at(-1), "online");
  pass(1_000);
  assert.equal(window.said.at(-1), "unavailable");
  pass(10 * BEAT_MS);
  assert.equal(window.said.at(-1), "unavailable");
  const count = window.said.length;
  window.emit("pointermove");
  assert.equal(window.said.length, count + 1);
  assert.equal(window.said.at(-1), "online");
  assert.equal(window.reports.at(-1).idle_ms, 0);
  assert.deepEqual(told, ["online", "unavailable", "online"]);
});

test("activity in between puts it off", () => {
  start();
  for (let minute = 0; minute < 12; minute += 1) {
    pass(60_000);
    window.emit("keydown");
  }
  assert.deepEqual([...new Set(window.said)], ["online"]);
});

test("many events of a moment are one", () => {
  start();
  pass(AWAY_MS);
  for (let number = 0; number < 100; number += 1) window.emit("wheel");
  assert.equal(window.said.filter((one) => one === "online").length, AWAY_MS / BEAT_MS - 1 + 2);
});

test("a hidden page is offline, and silent; shown again it is online", () => {
  start();
  window.show("hidden");
  assert.deepEqual(window.said, ["online", "offline"]);
  pass(10 * BEAT_MS);
  assert.deepEqual(window.said, ["online", "offline"]);
  window.show("visible");
  assert.deepEqual(window.said, ["online", "offline", "online"]);
  assert.ok(window.reports.every((one) => one.keepalive));
});

test("a page that is closed says goodbye, once; from the cache of pages it comes back", () => {
  start();
  window.emit("pagehide");
  window.show("hidden");
  assert.deepEqual(window.said, ["online", "offline"]);
  window.document.visibilityState = "visible";
  window.emit("pageshow", { persisted: false });
  assert.equal(window.said.at(-1), "offline");
  window.emit("pageshow", { persisted: true });
  assert.equal(window.said.at(-1), "online");
});

test("stopped, it is offline and hears nothing more", () => {
  const stop = start();
  stop();
  const count = window.said.length;
  assert.equal(window.said.at(-1), "offline");
  window.emit("keydown");
  window.show("visible");
  pass(10 * BEAT_MS);
  assert.equal(window.said.length, count);
});

test("a failure is told, and the next report makes up for it", async () => {
  const errors = [];
  window.answer = () => { throw new TypeError("no network"); };
  start({ onError: (error) => errors.push(error.message) });
  await Promise.resolve();
  await new Promise(setImmediate);
  assert.deepEqual(errors, ["no network"]);
  window.answer = () => ({
    ok: false, statusText: "x", json: async () => ({ error: { message: "log in again" } }),
  });
  pass(BEAT_MS);
  await new Promise(setImmediate);
  assert.deepEqual(errors, ["no network", "log in again"]);
  assert.deepEqual(window.said, ["online", "online"]);
});

test("a tab keeps its name over a reload, two tabs have two", () => {
  start();
  start();
  const other = new Browser();
  startPresenceHeartbeat({ url: "/", userId: "@ann:example.org", window: other });
  const [first, again] = window.reports;
  assert.equal(first.client_id, again.client_id);
  assert.notEqual(first.client_id, other.reports[0].client_id);
});

test("what somebody says of himself is sent, and may change", () => {
  let words = "here";
  start({ statusMessage: () => words });
  words = "";
  pass(BEAT_MS);
  assert.equal(window.reports[0].status_msg, "here");
  assert.equal("status_msg" in window.reports[1], false);
});

test("React: from the first render to the last", async () => {
  globalThis.IS_REACT_ACT_ENVIRONMENT = true;
  globalThis.window = window;
  mock.method(console, "error", () => {}); // The renderer says that it is deprecated.
  const { createElement, act } = await import("react");
  const { default: renderer } = await import("react-test-renderer");
  const seen = [];
  function Room({ userId }) {
    seen.push(usePresenceHeartbeat({ url: "/here", userId, accessToken: "t" }));
    return null;
  }
  let tree;
  await act(() => { tree = renderer.create(createElement(Room, { userId: "" })); });
  assert.deepEqual(window.said, []);
  await act(() => tree.update(createElement(Room, { userId: "@ann:example.org" })));
  assert.deepEqual(window.said, ["online"]);
  assert.equal(seen.at(-1), "online");
  await act(() => pass(AWAY_MS));
  assert.equal(seen.at(-1), "unavailable");
  await act(() => tree.unmount());
  assert.equal(window.said.at(-1), "offline");
  assert.equal(window.reports.at(-1).access_token, "t");
});
