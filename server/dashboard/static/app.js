// What every page does: it shows whether it is live, fetches anew what changed, tells ages, and sends its key with each change.
"use strict";

const LATER = 120; // milliseconds: changes that come together are fetched together
const AGAIN = 3000; // milliseconds after which what could not be fetched is asked for again
const page = document.documentElement;

function announce(state) {
  const shown = document.getElementById("live");
  if (shown) { shown.dataset.state = state; shown.textContent = state; }
}

// --- the stream of changes ------------------------------------------------------------------------------------------------

const topics = new Set();
let waiting = 0, was = "";

function changed(found) {
  for (const topic of found) topics.add(topic);
  if (document.hidden || !topics.size) return; // what nobody looks at is fetched when somebody does
  waiting ||= setTimeout(() => {
    waiting = 0;
    const now = [...topics];
    topics.clear();
    const due = [...document.querySelectorAll("[data-live]")].filter(
      (panel) => panel.dataset.live.split(" ").some((topic) => now.includes(topic) || now.includes("*")),
    );
    fetchParts(due.filter((panel) => panel.dataset.part), true).then((done) => {
      if (!done) setTimeout(() => changed(now), AGAIN);
    });
    for (const panel of due) if (!panel.dataset.part) htmx.trigger(panel, "changed");
  }, LATER);
}

// --- parts of the page, all in one call -----------------------------------------------------------------------------------

const asked = new WeakMap(), shownText = new WeakMap();
let asking = 0;

// Returns whether it need not be asked again.
async function fetchParts(panels, byItself) {
  if (!panels.length) return true;
  const number = ++asking;
  const query = new URLSearchParams({
    run: panels[0].closest("[data-run]").dataset.run,
    names: panels.map((panel) => panel.dataset.part).join(","),
  });
  let told;
  try {
    const answer = await fetch(`/parts?${query}`, { headers: byItself ? { "X-Live": "1" } : {} });
    if (!answer.ok) return [401, 404].includes(answer.status); // signed out, or the run is gone: what is shown stays
    told = await answer.json();
  } catch {
    return true; // the connection is gone, which the page tells; everything is fetched when it is back
  }
  for (const panel of panels) {
    if ((asked.get(panel) ?? 0) > number) continue; // a later answer was quicker
    asked.set(panel, number);
    const part = told[panel.dataset.part];
    if (typeof part === "string") replace(panel, part);
    else panel.dispatchEvent(new CustomEvent("excise:part", { detail: part, bubbles: true }));
  }
  return true;
}

// How far the tables of a panel are scrolled; what is returned scrolls those that are there then as far.
function scrolled(panel) {
  const tables = () => [...panel.querySelectorAll(".scroll, .wide")];
  const places = tables().map((table) => [table.scrollTop, table.scrollLeft]);
  return () => tables().forEach((table, at) => { [table.scrollTop, table.scrollLeft] = places[at] ?? [0, 0]; });
}

// Text of a panel, from the server's own template and escaped there; who reads or steps through a list stays where they are.
function replace(panel, text) {
  if (shownText.get(panel) === text) return;
  shownText.set(panel, text);
  const scrollBack = scrolled(panel);
  const focused = panel.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  panel.innerHTML = text;
  ages(); // which changes how high the lines are
  scrollBack();
  if (focused) panel.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// The stream is there again: the page shows what it missed, and after another sign-in it has another key.
async function back(from) {
  if (from === "signed out") {
    await renewKey();
    for (const place of document.querySelectorAll("#said, .answer")) place.replaceChildren();
  }
  changed(["*"]);
}

let keyMayBeOld = false; // after a refusal: somebody may have signed in again meanwhile, in another tab

async function renewKey() {
  const answer = await fetch("/me");
  if (!answer.ok) return;
  document.querySelector("meta[name=csrf]").content = (await answer.json()).csrf;
  keyMayBeOld = false;
}

document.addEventListener("htmx:responseError", (event) => {
  keyMayBeOld ||= [401, 403].includes(event.detail.xhr.status);
});
document.addEventListener("htmx:confirm", (event) => {
  if (!keyMayBeOld || !event.detail.elt.matches("form")) return;
  event.preventDefault();
  renewKey().finally(() => event.detail.issueRequest(true));
});

// Says what went wrong where it is seen: in the open dialog, which lies over the page, or at the page's top.
function say(...parts) {
  const shown = document.createElement("p");
  shown.className = "bad";
  shown.append("✗ ", ...parts);
  placeOf(document.querySelector("dialog[open]")).replaceChildren(shown);
}

// Where answers are shown; a dialog has such a place above its buttons from when it is opened.
function placeOf(dialog) {
  if (!dialog) return document.getElementById("said");
  const there = dialog.querySelector(".answer");
  if (there) return there;
  const made = document.createElement("div");
  made.className = "answer";
  made.tabIndex = -1;
  made.setAttribute("role", "alert");
  dialog.querySelector("form > .row:last-of-type").before(made);
  return made;
}

function signInLink() {
  const link = document.createElement("a");
  Object.assign(link, { href: "/login", target: "_blank", rel: "noopener", textContent: "Sign in in another tab" });
  return link;
}

function follow() {
  const worker = new SharedWorker("/static/live.worker.js", "excise");
  worker.port.onmessage = ({ data }) => {
    if (data.kind === "change") changed(data.topics);
    if (data.kind === "state") {
      announce(data.state);
      if (data.state === "signed out") say("You are not signed in any more. ", signInLink(), ": what you typed here is kept.");
      if (data.state === "live" && was !== "live") back(was); // the first time too: something may have changed meanwhile
      was = data.state;
    }
  };
  worker.port.start();
  addEventListener("focus", () => { if (was === "signed out") worker.port.postMessage("again"); });
  document.addEventListener("visibilitychange", () => changed([]));
  addEventListener("pagehide", () => worker.port.postMessage("bye"));
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

// --- forms ------------------------------------------------------------------------------------------------------------------

document.addEventListener("htmx:configRequest", (event) => {
  const key = document.querySelector("meta[name=csrf]");
  if (key) event.detail.headers["X-CSRF"] = key.content;
  if (event.detail.triggeringEvent?.type === "changed") event.detail.headers["X-Live"] = "1"; // the page asks, nobody else
});
// A part that could not be fetched anew stays as it is: what its panel would do with the answer is not for a refusal.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status < 400) {
    const panel = event.detail.requestConfig.elt;
    if (panel.dataset.live) addEventListener("htmx:afterSwap", scrolled(panel), { once: true });
    return;
  }
  const dialog = event.detail.requestConfig.elt.closest?.("dialog[open]");
  if (event.detail.requestConfig.triggeringEvent?.type === "changed") event.detail.shouldSwap = false;
  else if (dialog) event.detail.target = placeOf(dialog); // the page's top lies behind it
});
// What a coordinator can do is shown anew when it is something else by now, and never while a dialog is open.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const now = event.detail.target, next = event.detail.fragment.querySelector?.(`#${now.id}`) ?? event.detail.fragment;
  if (now.id === "act" && (now.querySelector("dialog[open]") || now.dataset.as === next.dataset?.as)) event.detail.shouldSwap = false;
});
document.addEventListener("htmx:sendError", (event) => {
  announce("reconnecting");
  if (event.detail.elt.closest("dialog[open]")) say("The server does not answer. What you typed is kept: send it again when the page is live.");
});
document.addEventListener("htmx:beforeRequest", (event) => {
  if (!event.detail.elt.matches("form")) return;
  document.getElementById("said")?.replaceChildren();
  event.detail.elt.querySelector(".answer")?.replaceChildren();
  busy(event.detail.elt);
});
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.opens);
    for (const [name, value] of Object.entries(JSON.parse(opener.dataset.fill ?? "{}"))) {
      for (const input of dialog.querySelectorAll(`[name="${name}"]`)) input.value = value;
      for (const shown of dialog.querySelectorAll(`[data-shows="${name}"]`)) shown.textContent = value;
    }
    placeOf(dialog).replaceChildren();
    dialog.showModal();
  }
  const closer = event.target.closest("[data-closes]");
  if (closer) closer.closest("dialog")?.close();
});
document.addEventListener("change", (event) => {
  if (event.target.matches("select[data-goes]")) event.target.form.requestSubmit();
});

// While an answer is awaited, which takes seconds, the button says what goes on.
function busy(form) {
  const button = form.querySelector("button.primary");
  if (!button || button.dataset.idle) return;
  button.dataset.idle = button.textContent;
  button.textContent = button.dataset.busy ?? "One moment…";
  form.setAttribute("aria-busy", "true");
}

function idle(form) {
  const button = form.querySelector("button.primary");
  form.removeAttribute("aria-busy");
  if (!button?.dataset.idle) return;
  button.textContent = button.dataset.idle;
  delete button.dataset.idle;
}

// --- ages -------------------------------------------------------------------------------------------------------------------

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function ages() {
  for (const element of document.querySelectorAll("time[data-age]")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(element.dateTime)) / 1000);
    const [size, unit] = UNITS.find(([size]) => seconds >= size) ?? [1, "s"];
    const text = `${Math.floor(seconds / size)} ${unit} ago`;
    if (element.textContent !== text) element.textContent = text;
    element.title = element.dateTime;
  }
}

// --- theme ------------------------------------------------------------------------------------------------------------------

function theme(button) {
  const show = () => {
    const dark = page.dataset.theme === "dark";
    button.textContent = dark ? "☾ Dark" : "☀ Light";
    button.setAttribute("aria-label", `Theme: ${dark ? "dark" : "light"}`);
    button.title = `Change to ${dark ? "light" : "dark"}`;
  };
  show();
  button.addEventListener("click", () => {
    page.dataset.theme = page.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", page.dataset.theme);
    show();
    document.dispatchEvent(new Event("excise:theme"));
  });
}

document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  if (button) theme(button);
  if (document.querySelector("meta[name=csrf]")) follow();
  fetchParts([...document.querySelectorAll("[data-part^='chart:']")], false);
  ages();
  setInterval(ages, 1000);
});
document.addEventListener("htmx:afterSwap", ages);
document.addEventListener("htmx:afterRequest", (event) => {
  const form = event.detail.elt;
  if (form.matches("form")) {
    idle(form);
    if (event.detail.successful) {
      form.closest("dialog")?.close();
      form.reset(); // what was sent is not sent again by mistake
      for (const note of form.querySelectorAll("[data-clears]")) note.replaceChildren();
    } else form.querySelector(".answer")?.focus();
  }
  for (const secret of event.detail.elt.querySelectorAll?.("input[type=password]") ?? []) secret.value = "";
});
