// In a function, since the libraries before it have names of their own.
(() => {
"use strict";
// Text from result files reaches the page as text nodes and as Vega data, never as markup.
const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (name, text, attributes = {}) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

// Tables: a column is a list, a text column a list of numbers of its distinct texts.
const kinds = page.kinds.map((kind) => ({
  ...kind,
  columns: kind.columns.map((c) => (c.texts ? { ...c, values: c.values.map((n) => c.texts[n]) } : c)),
}));
const kindOf = (row) => kinds.find((kind) => row >= kind.start && row < kind.start + kind.size);
const column = (kind, name) => kind.columns.find((c) => c.name === name);
const record = (row) => {
  const kind = kindOf(row), found = { row };
  for (const c of kind.columns) if (c.values[row - kind.start] !== null) found[c.name] = c.values[row - kind.start];
  return found;
};

// Filters. A kind without the column passes a filter on it.
const filters = { model: $("model"), impl: $("impl"), dtype: $("dtype") };
for (const [name, select] of Object.entries(filters)) {
  const texts = new Set(kinds.flatMap((kind) => column(kind, name)?.texts ?? []));
  for (const text of [...texts].filter(Boolean).sort()) select.append(make("option", text, { value: text }));
}
let shown = null; // a flag for each row
const haystacks = [];
const haystack = (kind, at) =>
  (haystacks[kind.start + at] ??= kind.columns.map((c) => c.values[at] ?? "").join(" ").toLowerCase());
function filter() {
  const words = $("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = new Uint8Array(kinds.reduce((sum, kind) => sum + kind.size, 0));
  for (const kind of kinds) {
    const tests = Object.entries(filters).flatMap(([name, select]) => {
      const values = select.value && column(kind, name)?.values;
      return values ? [(at) => values[at] === select.value] : [];
    });
    if (words.length) tests.push((at) => words.every((word) => haystack(kind, at).includes(word)));
    for (let at = 0; at < kind.size; at++) shown[kind.start + at] = tests.every((test) => test(at)) ? 1 : 0;
  }
}

// Pictures: drawn when they come into view or are printed, from the rows that pass.
const dark = matchMedia("(prefers-color-scheme: dark)");
const stale = new Set(), visible = new Set();
async function draw(figure) {
  stale.delete(figure);
  const place = $("chart-" + figure.name), keep = new Set(), points = [];
  const total = new Set();
  const { rows, series: codes, names } = page.sets[figure.set];
  rows.forEach((row, n) => {
    if (!shown[row]) return;
    const series = names ? names[codes[n]] : undefined;
    if (series !== undefined) {
      total.add(series);
      if (!keep.has(series) && keep.size === page.most) return;
      keep.add(series);
    }
    points.push(series === undefined ? record(row) : { ...record(row), series });
  });
  const notes = figure.notes.filter((note) => (!note.series || keep.has(note.series)) && (!note.other || keep.has(note.other)));
  figure.points = points;
  figure.at = -1;
  const left = total.size - keep.size;
  $("said-" + figure.name).textContent = !points.length
    ? "No row passes the filter."
    : figure.caption + (left > 0 ? ` ${keep.size} of ${total.size} curves are drawn: filter to see others.` : "");
  if (!points.length) return place.replaceChildren();
  const narrow = place.clientWidth < 480, columns = narrow ? 1 : 2;
  const legend = { ...figure.spec.config.legend, columns, labelLimit: place.clientWidth / columns - 40 };
  const axisY = narrow ? { labelLimit: 110 } : {};
  const spec = {
    ...structuredClone(figure.spec), datasets: { points, notes }, config: { ...figure.spec.config, legend, axisY },
  };
  for (const layer of spec.layer ?? [spec])
    for (const channel of Object.values(layer.encoding)) {
      if (channel.field === "series") channel.scale.domain = [...keep];
      else if (narrow && channel.axis?.labelLimit) channel.axis.labelLimit = 165;
    }
  const options = { actions: false, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } };
  const { view } = await vegaEmbed(place, spec, options);
  view.addEventListener("click", (event, item) => item?.datum?.row !== undefined && go(item.datum.row));
}
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target.figure);
  redraw();
}, { rootMargin: "150px" });
let drawing = false;
async function redraw() {
  if (drawing) return;
  drawing = true;
  for (let next; (next = [...visible].find((figure) => stale.has(figure))); ) {
    await draw(next);
    await new Promise((done) => setTimeout(done)); // lets the page answer between two pictures
  }
  drawing = false;
}
// A printer waits for no timer, but for promises, of which alone a picture is made.
addEventListener("beforeprint", () => { for (const figure of [...stale]) draw(figure); });
for (const figure of page.figures) {
  const place = $("chart-" + figure.name);
  place.figure = figure;
  watcher.observe(place);
  place.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const points = figure.points ?? [];
    if (step && points.length) {
      event.preventDefault();
      figure.at = (figure.at + step + points.length) % points.length;
      const { row, ...values } = points[figure.at];
      const told = Object.entries(values).filter(([name, value]) => value !== "" && name !== "series").slice(0, 12);
      $("said-" + figure.name).textContent = told.map(([name, value]) => `${name} ${value}`).join(", ") + " (Enter: its row)";
    } else if (event.key === "Enter" && points[figure.at]) go(points[figure.at].row);
  });
}

// The table.
const PER = 100;
let table = kinds[0], sort = null, order = [], start = 0, here = -1;
function list() {
  order = [];
  for (let at = 0; at < table.size; at++) if (shown[table.start + at]) order.push(at);
  if (sort) {
    const values = column(table, sort.name).values, way = sort.down ? -1 : 1;
    order.sort((a, b) => {
      const one = values[a], other = values[b];
      if (one === null || one === "") return other === null || other === "" ? a - b : 1; // what is empty comes last
      if (other === null || other === "") return -1;
      return way * (one < other ? -1 : one > other ? 1 : 0) || a - b;
    });
  }
}
function fill() {
  const columns = table.columns.filter((c) => c.used);
  const head = make("tr");
  for (const c of columns) {
    const sorted = sort?.name === c.name ? (sort.down ? "descending" : "ascending") : "none";
    const cell = make("th", undefined, { scope: "col", "aria-sort": sorted, class: c.texts ? "text" : "" });
    const button = make("button", c.name + { none: "", ascending: " ▲", descending: " ▼" }[sorted], { type: "button" });
    button.addEventListener("click", () => {
      sort = { name: c.name, down: sort?.name === c.name ? !sort.down : !c.texts };
      start = 0;
      list();
      fill();
      [...$("head").querySelectorAll("button")].find((b) => b.textContent.startsWith(c.name + " "))?.focus();
    });
    cell.append(button);
    head.append(cell);
  }
  $("head").replaceChildren(head);
  const body = order.slice(start, start + PER).map((at) => {
    const row = table.start + at, line = make("tr", undefined, { id: "row-" + row, tabindex: "-1" });
    const status = column(table, "status")?.values[at];
    line.className = (status && status !== "ok" ? "bad" : "") + (row === here ? " here" : "");
    for (const c of columns) {
      const value = c.values[at];
      const long = c.texts && value.length > 40;
      line.append(make("td", value ?? "", { class: c.texts ? (long ? "long" : "text") : "", ...(long && { title: value }) }));
    }
    return line;
  });
  $("body").replaceChildren(...body);
  const last = Math.min(start + PER, order.length);
  $("count").textContent = order.length ? `rows ${start + 1} to ${last} of ${order.length}` : "no row passes the filter";
  $("back").disabled = start === 0;
  $("on").disabled = last >= order.length;
  for (const tab of $("tabs").children) tab.setAttribute("aria-pressed", String(tab.kind === table));
}
function turn(to) {
  start = Math.max(0, to);
  fill();
  $("table").scrollTop = 0;
}
$("back").addEventListener("click", () => turn(start - PER));
$("on").addEventListener("click", () => turn(start + PER));
for (const kind of kinds) {
  const tab = make("button", `${kind.title} (${kind.size})`, { type: "button" });
  tab.kind = kind;
  tab.addEventListener("click", () => {
    table = kind;
    sort = null;
    list();
    turn(0);
  });
  $("tabs").append(tab);
}
function go(row) {
  if (!kindOf(row)) return;
  if (table !== kindOf(row)) [table, sort] = [kindOf(row), null];
  list();
  const at = order.indexOf(row - table.start);
  if (at < 0) return;
  here = row;
  start = at - (at % PER);
  fill();
  history.replaceState(null, "", "#row-" + row);
  $("row-" + row).scrollIntoView({ block: "center" });
  $("row-" + row).focus({ preventScroll: true });
}

function update() {
  filter();
  list();
  turn(0);
  for (const figure of page.figures) stale.add(figure);
  redraw();
}
let later;
const soon = () => { clearTimeout(later); later = setTimeout(update, 120); };
for (const select of Object.values(filters)) select.addEventListener("change", update);
$("text").addEventListener("input", soon);
$("clear").addEventListener("click", () => {
  for (const element of [...Object.values(filters), $("text")]) element.value = "";
  update();
});
dark.addEventListener("change", update);
let width = innerWidth;
addEventListener("resize", () => { if (width !== innerWidth) { width = innerWidth; soon(); } });
update();
const linked = () => { const found = /^#row-(\d+)$/.exec(location.hash); if (found) go(Number(found[1])); };
addEventListener("hashchange", linked);
linked();
})();
