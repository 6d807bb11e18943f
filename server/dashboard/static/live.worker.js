// One stream of changes per browser, shared by all of its tabs: over HTTP/1.1 a browser opens only six connections.
const QUIET = 40000; // milliseconds; the server speaks at least every 15 s
const ports = new Set();
let stream, state = "connecting", last = 0;

function tell(message) { for (const port of ports) port.postMessage(message); }

function become(next) {
  state = next;
  tell({ kind: "state", state });
}

function open() {
  stream?.close();
  stream = new EventSource("/events");
  last = Date.now();
  stream.onopen = () => { last = Date.now(); become("live"); };
  stream.onerror = () => {
    if (stream.readyState !== EventSource.CLOSED) { become("reconnecting"); return; }
    // The server answered with an error, which ends an EventSource for good: is it the session, or the server?
    fetch("/me").then(
      (answer) => become(answer.status === 401 ? "signed out" : "reconnecting"),
      () => become("reconnecting"),
    );
  };
  stream.addEventListener("change", (event) => {
    last = Date.now();
    tell({ kind: "change", ...JSON.parse(event.data) });
  });
  stream.addEventListener("still", () => { last = Date.now(); });
}

setInterval(() => {
  if (state === "signed out" || !ports.size) return;
  if (stream.readyState === EventSource.CLOSED || Date.now() - last > QUIET) open();
}, 3000);

onconnect = (event) => {
  const port = event.ports[0];
  ports.add(port);
  port.onmessage = (message) => {
    if (message.data === "bye") ports.delete(port);
    if (message.data === "again" && state !== "live") open();
  };
  port.start();
  if (!stream || stream.readyState === EventSource.CLOSED) open();
  port.postMessage({ kind: "state", state });
};
