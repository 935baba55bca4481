// Cards with a plot each. A plot is drawn when it comes near the screen, and again when a control changes.
const report = JSON.parse(document.getElementById("report-data").textContent);
const longest = Math.max(...report.runs.map((run) => run.columns.step?.length ?? 0));
const state = {axis: "step", smoothing: longest > 200 ? 3 : 8, shown: report.runs.map(() => true)};
const cards = [];
const AXES = {step: "step", rollouts: "rollouts", hours: "hours of training steps"};

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") node.style.cssText = value;
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function section(id, title, about) {
  const grid = element("div", {className: "grid"});
  const node = element("section", {id}, element("h2", {}, title), element("p", {className: "about"}, about), grid);
  document.querySelector("main").append(node);
  document.getElementById("sections").append(element("a", {href: `#${id}`}, title));
  return grid;
}

// `draw` returns {spec, series}, or a sentence that says why there is nothing to draw. `keys`: [[name, colour()], ...].
function card(grid, title, about, draw, {keys = [], wide = false, run = null} = {}) {
  const plot = element("div", {className: "plot waiting"});
  const legend = element("div", {className: "keys"});
  const node = element("div", {className: wide ? "card wide" : "card"}, element("h3", {}, title),
    ...(about ? [element("p", {}, about)] : []), legend, plot);
  grid.append(node);
  cards.push({node, plot, legend, keys, draw, run, view: null, dirty: true, near: false});
}

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const one = cards.find((c) => c.plot === entry.target);
    one.near = entry.isIntersecting;
    if (one.near) render(one);
  }
}, {rootMargin: "500px"});

function redraw() {
  for (const one of cards) { one.dirty = true; if (one.near) render(one); }
}
function renderAll() { return Promise.all(cards.map(render)); }

async function render(one) {
  one.node.hidden = one.run !== null && !state.shown[one.run];
  if (!one.dirty || one.node.hidden) return;
  one.dirty = false;
  one.view?.finalize();
  one.view = null;
  one.legend.replaceChildren(...one.keys.map(([name, colour]) =>
    element("span", {}, element("i", {className: "swatch", style: `background:${colour()}`}), name)));
  const drawing = one.draw();
  one.plot.classList.remove("waiting");
  if (typeof drawing === "string") {
    one.legend.replaceChildren();
    one.plot.style.minHeight = "0";
    one.plot.replaceChildren(element("p", {className: "note"}, drawing));
    return;
  }
  const spec = {description: one.node.querySelector("h3").textContent, width: "container", height: 210, autosize: {type: "fit-x", contains: "padding"},
    ...drawing.spec};
  const result = await vegaEmbed(one.plot, spec, {
    actions: false, renderer: "svg", ast: true, config: vegaConfig(), tooltip: {theme: isDark() ? "dark" : "light"}});
  one.view = result.view;
  if (drawing.series) follow(one, drawing.series);
}

// -- curves -----------------------------------------------------------------------------------------------------------

// [{run, label, points: [[x, y], ...]}] of a column, of the runs that are shown and have it.
function columnSeries(name) {
  return shownRuns().flatMap(([run, index]) => {
    const ys = run.columns[name];
    const xs = run.columns[state.axis];
    if (!ys) return [];
    return [{run: index, label: run.name, points: xs.map((x, i) => [x, ys[i]]).filter(([, y]) => y !== null)}];
  }).filter((series) => series.points.length);
}
function shownRuns() { return report.runs.map((run, i) => [run, i]).filter(([, i]) => state.shown[i]); }

// Exponential moving average; its span is `state.smoothing` percent of the points. It starts without a bias, and anew in
// each stage, whose change would else look gradual.
function smooth({run, points}) {
  const keep = 1 - 2 / (Math.max(1, points.length * state.smoothing / 100) + 1);
  const starts = report.runs[run].stages.map((stage) => xOf(report.runs[run], stage.first));
  let sum = 0, weight = 0;
  return points.map(([x, y]) => {
    if (x >= starts[0]) {
      while (x >= starts[0]) starts.shift();
      sum = weight = 0;
    }
    sum = keep * sum + (1 - keep) * y;
    weight = keep * weight + (1 - keep);
    return [x, sum / weight];
  });
}

// The same for all curves, from the start of training on, so that they can be compared at a glance.
function xEncoding() {
  const high = Math.max(...shownRuns().map(([run]) => run.columns[state.axis]?.at(-1) ?? 0));
  const axis = {title: AXES[state.axis], labelExpr: LABELS[state.axis === "hours" ? "number" : "integer"]};
  if (state.axis !== "hours" && high < 6) axis.tickMinStep = 1;
  return {field: "x", type: "quantitative", scale: {domain: [0, high || 1], nice: false}, axis};
}

const LABELS = {
  percent: "format(datum.value, '~%')",
  integer: "abs(datum.value) >= 10000 ? format(datum.value, '~s') : format(datum.value, ',~r')",
  number: "format(datum.value, ',~r')",
  small: "datum.value === 0 ? '0' : format(datum.value, '~e')",
};

// Options: format (of LABELS), y (axis title), zero (axis from zero), top (axis up to at least), plain (no smoothing),
// marks (a point for each value), dashed: series with `dashed` set are dashed.
function curves(series, {y, format = "number", zero = false, top = null, plain = false, marks = false, x = xEncoding()}) {
  const rows = (list) => list.flatMap((s) => s.points.map((p) => ({x: p[0], y: p[1], key: s.key})));
  series = series.map((s, key) => ({...s, key}));
  const lines = plain || !state.smoothing ? series : series.map((s) => ({...s, points: smooth(s)}));
  const raw = lines === series ? [] : series;
  const scale = {zero, nice: true};
  if (zero && series.every((s) => s.points.every((p) => p[1] === 0))) scale.domain = [0, top ?? 1];
  else if (top !== null) scale.domainMax = Math.max(top, ...series.flatMap((s) => s.points.map((p) => p[1])));
  const encoding = (list) => ({
    x, y: {field: "y", type: "quantitative", scale, axis: {title: y, labelExpr: LABELS[format]}},
    detail: {field: "key"},
    color: {field: "key", type: "nominal", legend: null, scale: {
      domain: list.map((_, i) => i), range: list.map((s) => s.colour ?? runColour(s.run))}},
    strokeDash: {field: "key", type: "nominal", legend: null, scale: {
      domain: list.map((_, i) => i), range: list.map((s) => s.dashed ? [5, 4] : runDash(s.run))}},
  });
  const alone = rows(lines.filter((s) => s.points.length === 1));
  const layer = [
    ...(x.field === "x" && x.axis.title === AXES[state.axis] ? stageLayers(x) : []),
    ...(raw.length ? [{data: {values: rows(raw)}, mark: {type: "line", strokeWidth: 1, opacity: isDark() ? 0.3 : 0.25},
      encoding: encoding(raw)}] : []),
    {data: {values: rows(lines)}, mark: {type: "line", point: marks ? {size: 28, filled: true} : false}, encoding: encoding(lines)},
    ...(alone.length && !marks ? [{data: {values: alone}, mark: {type: "circle", size: 28, opacity: 1},
      encoding: {...encoding(lines), strokeDash: undefined}}] : []),
  ];
  return {spec: {layer}, series: {format, axis: x.axis.title, lines: lines.map((s, i) => (
    {label: s.label, colour: s.colour ?? runColour(s.run), points: s.points, raw: raw.length ? series[i].points : null}))}};
}

// Where a step is on the X axis; the next one that is a point, where points are means of several steps.
function xOf(run, step) {
  const i = run.columns.step.findIndex((s) => s >= step);
  return run.columns[state.axis].at(i);
}

// Where each stage begins: shaded bands for one run, a rule in each run's colour for more.
function stageLayers(x) {
  const runs = shownRuns();
  const p = palette();
  const [low, high] = x.scale.domain;
  const bands = runs.flatMap(([run, index]) => run.stages.map((stage, i) => ({
    x: i ? xOf(run, stage.first) : low,
    x2: i + 1 < run.stages.length ? xOf(run, run.stages[i + 1].first) : high,
    name: stage.name, run: index, odd: i % 2, first: i === 0}))).filter((b) => b.x2 > low && b.x < high);
  if (runs.length === 1) {
    if (bands.length < 2) return [];
    return [
      {data: {values: bands.filter((b) => b.odd)}, mark: {type: "rect", color: p.band, opacity: 0.13},
        encoding: {x, x2: {field: "x2"}}},
      {data: {values: bands}, mark: {type: "text", align: "left", baseline: "bottom", dy: -4, fontSize: 10},
        encoding: {x, y: {value: 0}, text: {field: "name"}}},
    ];
  }
  return runs.flatMap(([, index], row) => {
    const values = bands.filter((b) => !b.first && b.run === index);
    const color = runColour(index);
    return values.length ? [
      {data: {values}, mark: {type: "rule", strokeDash: [3, 3], opacity: 0.8, color}, encoding: {x}},
      ...(row < 4 ? [{data: {values}, mark: {type: "text", align: "left", baseline: "bottom", dy: -4 - 11 * row,
        fontSize: 10, limit: 90, color}, encoding: {x, y: {value: 0}, text: {field: "name"}}}] : []),
    ] : [];
  });
}

// -- the value under the pointer ----------------------------------------------------------------------------------------

function show(value, format) {
  if (value === null || value === undefined) return "-";
  if (format === "percent") return `${(100 * value).toFixed(1)} %`;
  if (format === "integer") return Math.round(value).toLocaleString("en");
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en", {maximumSignificantDigits: size >= 1000 ? 6 : 4});
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? low : high;
}

function follow(one, {format, axis, lines}) {
  const hover = document.getElementById("hover");
  const cursor = element("div", {className: "cursor", hidden: true});
  one.plot.append(cursor);
  const leave = () => { hover.hidden = true; cursor.hidden = true; };
  one.plot.onpointerleave = leave;
  one.plot.onpointermove = (event) => {
    const svg = one.plot.querySelector("svg");
    if (!one.view || !svg) return;
    const box = svg.getBoundingClientRect();
    const {left: padding, top: above} = one.view.padding();
    const [left, top] = [one.view.origin()[0] + padding, one.view.origin()[1] + above];
    const scale = one.view.scale("x");
    const inside = event.clientX - box.left - left;
    if (inside < -4 || inside > one.view.width() + 4) return leave();
    const wanted = scale.invert(inside);
    const found = lines.map((line) => [line, nearest(line.points, wanted)]);
    const x = found.map(([line, i]) => line.points[i][0])
      .reduce((best, next) => Math.abs(next - wanted) < Math.abs(best - wanted) ? next : best);
    const rows = found.filter(([line, i]) => Math.abs(scale(line.points[i][0]) - scale(x)) < 6).map(([line, i]) =>
      element("tr", {}, element("td", {}, element("i", {className: "chip", style: `background:${line.colour}`})),
        element("td", {}, line.label), element("td", {}, show(line.points[i][1], format)),
        element("td", {className: "muted"}, line.raw ? show(line.raw[i][1], format) : "")));
    const head = element("div", {className: "muted"}, `${axis} ${show(x, axis === AXES.hours ? "number" : "integer")}`
      + (lines[0].raw ? " · smoothed, as measured" : ""));
    hover.replaceChildren(head, element("table", {}, ...rows));
    hover.hidden = false;
    const wide = hover.offsetWidth, right = event.clientX + 16 + wide > innerWidth;
    hover.style.left = `${Math.max(4, right ? event.clientX - wide - 16 : event.clientX + 16)}px`;
    hover.style.top = `${Math.min(event.clientY + 14, innerHeight - hover.offsetHeight - 6)}px`;
    cursor.hidden = false;
    const outer = one.plot.getBoundingClientRect();
    cursor.style.left = `${box.left - outer.left + left + scale(x)}px`;
    cursor.style.top = `${box.top - outer.top + top}px`;
    cursor.style.height = `${one.view.height()}px`;
  };
}
