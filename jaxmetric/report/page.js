"use strict";
// Draws the map and the gallery from the embedded data. Text is set by textContent or attributes, never as markup.
const { columns, queries, gallery, height } = JSON.parse(document.getElementById("data").textContent);
const ALL = -1, SIDE = 16, PAGE = 24, COLORS = 6, GOLDEN_ANGLE = 137.508;
const byId = (id) => document.getElementById(id);

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function image(tile, about) {
  const place = tile % (SIDE * SIDE);
  const element = make("span", `pic s${Math.floor(tile / (SIDE * SIDE))}`);
  const at = [place % SIDE, Math.floor(place / SIDE)].map((n) => `${(n * 100) / (SIDE - 1)}%`);
  element.style.backgroundPosition = at.join(" ");
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", about);
  return element;
}

const valueName = (column, code) => (code < 0 ? "unknown" : columns[column].values[code]);
const describe = (labels) => columns.map(({ name }, t) => `${name}: ${valueName(t, labels[t])}`).join(", ");

// true, false, or null if a label is unknown.
const agrees = (a, b) => (a < 0 || b < 0 ? null : a === b);
function agreesOn(column, labels, others) {
  if (column !== ALL) return agrees(labels[column], others[column]);
  const each = labels.map((label, t) => agrees(label, others[t]));
  return each.includes(false) ? false : each.includes(true) ? true : null;
}
// A known label without a prediction counts as wrong.
const isRight = (query, column) =>
  agreesOn(column, query.labels, query.predicted.map((code, t) => (code < 0 && query.labels[t] >= 0 ? NaN : code)));
const verdict = (right) => (right === null ? "unjudged" : right ? "good" : "bad");
const sign = (right) => {
  const element = make("span", "sign", right === null ? "?" : right ? "✓" : "✗");
  element.setAttribute("aria-label", right === null ? "unknown" : right ? "right" : "wrong");
  element.setAttribute("role", "img");
  return element;
};

function choice(parent, title, options, onChange) {
  const group = make("fieldset", "choice", make("legend", "", title));
  const texts = options.map(([value, text], i) => {
    const input = make("input");
    Object.assign(input, { type: "radio", name: title, value, checked: i === 0 });
    input.addEventListener("change", () => onChange(value));
    const shown = make("span", "", text);
    group.append(make("label", "", input, shown));
    return shown;
  });
  parent.append(group);
  return texts;
}

function card(index, judged) {
  const query = queries[index];
  const rows = columns.map(({ name }, t) => {
    const right = isRight(query, t);
    const value = make("dd", "", make("b", "", valueName(t, query.predicted[t])));
    if (right === false) value.append(make("small", "", ` true: ${valueName(t, query.labels[t])}`));
    if (right === null) value.append(make("small", "", " true label unknown"));
    return make("div", verdict(right), sign(right), make("dt", "", name), value);
  });
  const neighbors = query.neighbors.map(([row, distance]) => {
    const labels = gallery[row];
    const right = agreesOn(judged, query.labels, labels);
    const pips = columns.map((_, t) => {
      const same = agrees(query.labels[t], labels[t]);
      const pip = make("i", same === null ? "open" : same ? "yes" : "no");
      pip.style.setProperty("--color", `var(--c${t % COLORS})`);
      return pip;
    });
    const about = `${describe(labels)}; distance ${distance}`;
    const item = make("li", verdict(right), image(queries.length + row, about), sign(right), make("div", "pips", ...pips));
    item.append(distance.toFixed(2));
    item.title = about;
    return item;
  });
  const top = make("div", "top", image(index, describe(query.labels)));
  top.append(make("div", "", make("h4", "", query.name), make("dl", "", ...rows)));
  top.querySelector("h4").title = query.name;
  return make("article", `card ${verdict(isRight(query, judged))}`, top, make("ol", "strip", ...neighbors));
}

function drawBand() {
  document.querySelector(".band").append(...queries.slice(0, 48).map((_, i) => image(i, "")));
}

function drawMap() {
  const plane = byId("plane"), legend = byId("legend"), detail = byId("detail");
  const margin = 0.045;
  const scale = (place, extent) => `${(100 * (margin + place * (1 - 2 * margin))) / extent}%`;
  const tall = Math.min(Math.max(height, 0.35), 1) * (1 - 2 * margin) + 2 * margin;
  plane.style.aspectRatio = `1 / ${tall}`;
  let column = 0, pinned = null, here = 0;

  const points = queries.map((query, i) => {
    const point = make("span", "point", image(i, ""));
    point.style.left = scale(query.place[0], 1);
    point.style.top = `${(100 * (tall - margin - (query.place[1] + (Math.max(height, 0.35) - height) / 2) * (1 - 2 * margin))) / tall}%`;
    point.addEventListener("pointerenter", () => select(i));
    point.addEventListener("click", () => select(i));
    return point;
  });
  plane.append(...points);

  function color(code, codes) {
    const rank = codes.indexOf(code);
    if (columns[column].ordinal) {
      const part = codes.length > 1 ? rank / (codes.length - 1) : 0;
      return `oklch(${0.38 + 0.46 * part} 0.13 ${285 - 190 * part})`;
    }
    if (codes.length <= COLORS) return `var(--c${rank})`;
    const lift = [0, 0.12, -0.12][rank % 3];
    return `oklch(calc(var(--dot-l) + ${lift}) var(--dot-c) ${(rank * GOLDEN_ANGLE) % 360})`;
  }
  function emphasize(code) {
    points.forEach((point, i) => point.classList.toggle("other", code !== null && queries[i].labels[column] !== code));
  }
  function paint() {
    const present = queries.map((query) => query.labels[column]);
    const codes = [...new Set(present)].filter((code) => code >= 0).sort((a, b) => a - b);
    points.forEach((point, i) => {
      point.classList.toggle("unknown", present[i] < 0);
      point.style.setProperty("--value", present[i] < 0 ? "var(--muted)" : color(present[i], codes));
    });
    pinned = null;
    emphasize(null);
    const items = present.includes(-1) ? [...codes, -1] : codes;
    legend.replaceChildren(...items.map((code) => {
      const mark = make("i", code < 0 ? "unknown" : "");
      mark.style.setProperty("--value", code < 0 ? "none" : color(code, codes));
      const button = make("button", "", mark, valueName(column, code));
      Object.assign(button, { type: "button", title: `${present.filter((each) => each === code).length} images` });
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("pointerenter", () => emphasize(code));
      button.addEventListener("pointerleave", () => emphasize(pinned));
      button.addEventListener("click", () => {
        pinned = pinned === code ? null : code;
        for (const each of legend.children) each.setAttribute("aria-pressed", String(each === button && pinned !== null));
        emphasize(pinned);
      });
      return button;
    }));
    select(here);
  }
  function select(index) {
    here = index;
    const value = queries[index].labels[column];
    points.forEach((point, i) => {
      point.classList.toggle("here", i === index);
      point.classList.toggle("alike", value >= 0 && i !== index && queries[i].labels[column] === value);
    });
    detail.replaceChildren(card(index, column));
  }
  plane.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!direction) return;
    event.preventDefault();
    const [x, y] = queries[here].place;
    let best = here, least = Infinity;
    queries.forEach(({ place }, i) => {
      const along = (place[0] - x) * direction[0] + (place[1] - y) * direction[1];
      const across = Math.abs((place[0] - x) * direction[1]) + Math.abs((place[1] - y) * direction[0]);
      if (i !== here && along > 0 && along + 2 * across < least) [best, least] = [i, along + 2 * across];
    });
    select(best);
  });

  choice(byId("map-controls"), "Color by", columns.map(({ name }, t) => [t, name]), (value) => { column = value; paint(); });
  choice(byId("map-controls"), "Draw", [["images", "images"], ["dots", "dots"]], (value) =>
    plane.classList.toggle("images", value === "images"));
  plane.classList.add("images");
  paint();
}

function drawGallery() {
  const cards = byId("cards"), more = byId("more"), controls = byId("gallery-controls");
  let judged = 0, wanted = "all", shown = PAGE;
  const options = [...columns.map(({ name }, t) => [t, name])];
  if (columns.length > 1) options.push([ALL, "all labels"]);
  const texts = choice(controls, "Show", [["all", ""], ["good", ""], ["bad", ""]], (value) => { wanted = value; shown = PAGE; draw(); });
  choice(controls, "Judged by", options, (value) => { judged = value; shown = PAGE; draw(); });
  more.addEventListener("click", () => { shown += PAGE; draw(); });

  function draw() {
    const verdicts = queries.map((query) => verdict(isRight(query, judged)));
    const count = (kind) => verdicts.filter((each) => each === kind).length;
    texts[0].textContent = `all ${queries.length}`;
    texts[1].textContent = `✓ right ${count("good")}`;
    texts[2].textContent = `✗ wrong ${count("bad")}`;
    const chosen = queries.map((_, i) => i).filter((i) => wanted === "all" || verdicts[i] === wanted);
    cards.replaceChildren(...chosen.slice(0, shown).map((i) => card(i, judged)));
    if (!chosen.length) cards.append(make("p", "note", "No query is of this kind."));
    const left = chosen.length - shown;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(left, PAGE)} more of ${left}`;
  }
  draw();
}

drawBand();
drawMap();
drawGallery();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
