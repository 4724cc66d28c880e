"use strict";
// Reads what is on the page, and adds nothing to it but text: textContent, never markup.

const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
const fmt = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });

// Charts: the value under the pointer, or by arrow keys.
for (const chart of all(".chart")) {
  const svg = chart.querySelector("svg.lines");
  if (!svg) continue;
  const out = chart.querySelector(".readout");
  const cursor = svg.querySelector(".cursor");
  let lines = null;
  let at = -1;
  let chosen = 0;
  const read = () => {
    lines ??= all("path.line", svg).map((path) => ({
      name: path.dataset.name,
      x: path.dataset.x.split(",").map(Number),
      y: path.dataset.y.split(",").map(Number),
      places: path.getAttribute("d").slice(1).split(" ").map((point) => point.split(",").map(Number)),
    }));
    return lines;
  };
  const nearest = (line, place) => {
    let best = 0;
    line.places.forEach((point, i) => {
      if (Math.abs(point[0] - place) < Math.abs(line.places[best][0] - place)) best = i;
    });
    return best;
  };
  const show = (line, i) => {
    const place = line.places[i][0];
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.setAttribute("visibility", "visible");
    const name = read().length > 1 ? `${line.name}, ` : "";
    out.textContent = `${name}${svg.dataset.x} ${fmt(line.x[i])}: ${fmt(line.y[i])}`;
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    out.textContent = "";
  };
  svg.addEventListener("pointermove", (event) => {
    if (!read().length) return;
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * 1000;
    const height = event.clientY - box.top;
    const candidates = read().map((line) => [line, nearest(line, place)]);
    candidates.sort((a, b) => Math.abs(a[0].places[a[1]][1] - height) - Math.abs(b[0].places[b[1]][1] - height));
    show(...candidates[0]);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e9, 0], End: [1e9, 0] };
    if (!(event.key in move) || !read().length) return;
    event.preventDefault();
    const [step, line] = move[event.key];
    chosen = (chosen + line + lines.length) % lines.length;
    at = Math.max(0, Math.min(lines[chosen].x.length - 1, at + step));
    show(lines[chosen], at);
  });
}

// Legends: a line in all charts.
const standOut = (key) => {
  for (const chart of all(".chart.many")) {
    const parts = all(".data g, .end", chart).filter((part) => part.dataset.key);
    chart.classList.toggle("fade", Boolean(key) && parts.some((part) => part.dataset.key === key));
    for (const part of parts) part.classList.toggle("on", part.dataset.key === key);
  }
};
for (const button of all(".legend button")) {
  for (const type of ["pointerenter", "focus"]) button.addEventListener(type, () => standOut(button.dataset.key));
  for (const type of ["pointerleave", "blur"]) button.addEventListener(type, () => standOut(""));
}

// Tokens: numbers and the teacher's alternatives.
const probability = (logprob) => {
  const p = Math.exp(logprob);
  return p >= 0.001 ? p.toFixed(3) : p.toExponential(0);
};
const lined = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
const tell = (token) => {
  const out = token.closest(".tokenised").querySelector(".detail");
  const { s, t, d, c, a } = token.dataset;
  const name = document.createElement("b");
  name.textContent = `“${lined(token.textContent)}”`;
  const said = d === "–" ? "no log-probs are kept" : `reverse KL ${d} nats (student ${s}, teacher ${t})`;
  out.replaceChildren(name, ` ${c}: ${said}`);
  const others = JSON.parse(a || "[]");
  if (others.length) {
    out.append("\nteacher: " + others.map(([text, logprob]) => `“${lined(text)}” ${probability(logprob)}`).join("   "));
  }
};
for (const said of all(".said")) {
  const tokens = all(".k", said);
  said.addEventListener("pointerover", (event) => event.target.classList.contains("k") && tell(event.target));
  said.addEventListener("focusin", (event) => event.target.classList.contains("k") && tell(event.target));
  said.addEventListener("keydown", (event) => {
    const back = said.dir === "rtl" ? "ArrowRight" : "ArrowLeft";
    const on = said.dir === "rtl" ? "ArrowLeft" : "ArrowRight";
    const i = tokens.indexOf(document.activeElement);
    const next = { [back]: i - 1, [on]: i + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (i < 0 || next === undefined) return;
    event.preventDefault();
    const token = tokens[Math.max(0, Math.min(tokens.length - 1, next))];
    tokens[i].tabIndex = -1;
    token.tabIndex = 0;
    token.focus();
  });
}

// What is folded is printed too.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = all("details:not([open]):not(.numbers)");
  for (const details of folded) details.open = true;
});
window.addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));

// Live: its own server says when there is a newer page; what was open stays open.
const button = document.getElementById("live");
if (button) {
  const kept = JSON.parse(sessionStorage.getItem("open") || "null");
  if (kept) all("details").forEach((details, i) => (details.open = kept[i] ?? details.open));
  let on = true;
  let seen = null;
  button.addEventListener("click", () => {
    on = !on;
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "refreshes itself" : "stands still";
  });
  setInterval(async () => {
    if (!on) return;
    const stamp = await fetch("stamp").then((answer) => answer.text()).catch(() => null);
    if (stamp === null) button.textContent = "the server has ended";
    else if (seen === null) seen = stamp;
    else if (stamp !== seen) {
      sessionStorage.setItem("open", JSON.stringify(all("details").map((details) => details.open)));
      location.reload();
    }
  }, 2000);
}
