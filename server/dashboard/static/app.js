// What every page does: it shows whether it is live, fetches anew what changed, tells ages, and sends its key with each change.
"use strict";

const LATER = 120; // milliseconds: changes that come together are fetched together
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
    for (const panel of document.querySelectorAll("[data-live]")) {
      if (panel.dataset.live.split(" ").some((topic) => now.includes(topic) || now.includes("*"))) htmx.trigger(panel, "changed");
    }
    document.dispatchEvent(new CustomEvent("excise:changed", { detail: now }));
  }, LATER);
}

// The stream is there again: the page shows what it missed, and after another sign-in it has another key.
async function back(from) {
  if (from === "signed out") {
    const answer = await fetch("/me");
    if (answer.ok) document.querySelector("meta[name=csrf]").content = (await answer.json()).csrf;
    document.getElementById("said").replaceChildren();
  }
  changed(["*"]);
}

function say(text) {
  const shown = document.createElement("p");
  shown.className = "bad";
  shown.textContent = `✗ ${text}`;
  document.getElementById("said").replaceChildren(shown);
}

function follow() {
  const worker = new SharedWorker("/static/live.worker.js", "excise");
  worker.port.onmessage = ({ data }) => {
    if (data.kind === "change") changed(data.topics);
    if (data.kind === "state") {
      announce(data.state);
      if (data.state === "signed out") say("You are not signed in any more. Sign in in another tab: what you typed here is kept.");
      if (data.state === "live" && was && was !== "live") back(was);
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
document.addEventListener("htmx:sendError", () => announce("reconnecting"));
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.elt.matches("form")) document.getElementById("said")?.replaceChildren();
});
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.opens);
    for (const [name, value] of Object.entries(JSON.parse(opener.dataset.fill ?? "{}"))) {
      for (const input of dialog.querySelectorAll(`[name="${name}"]`)) input.value = value;
      for (const shown of dialog.querySelectorAll(`[data-shows="${name}"]`)) shown.textContent = value;
    }
    dialog.showModal();
  }
  const closer = event.target.closest("[data-closes]");
  if (closer) closer.closest("dialog")?.close();
});
document.addEventListener("change", (event) => {
  if (event.target.matches("select[data-goes]")) event.target.form.requestSubmit();
});

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
  const show = () => button.setAttribute("aria-pressed", String(page.dataset.theme === "dark"));
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
  ages();
  setInterval(ages, 1000);
});
document.addEventListener("htmx:afterSwap", ages);
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful && event.detail.elt.matches("dialog form")) event.detail.elt.closest("dialog").close();
  for (const secret of event.detail.elt.querySelectorAll?.("input[type=password]") ?? []) secret.value = "";
});
