// Cards with a plot each. A plot is drawn when it comes near the screen, and again when a control changes.
const report = JSON.parse(document.getElementById("report-data").textContent);
const state = {axis: "step", smoothing: 6, shown: report.runs.map(() => true)};
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
  const spec = {width: "container", height: 210, autosize: {type: "fit-x", contains: "padding"}, ...drawing.spec};
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

// Exponential moving average; its span is `state.smoothing` percent of the points, and it starts without a bias.
function smooth(points) {
  const keep = 1 - 2 / (Math.max(1, points.length * state.smoothing / 100) + 1);
  let sum = 0, weight = 0;
  return points.map(([x, y]) => {
    sum = keep * sum + (1 - keep) * y;
    weight = keep * weight + (1 - keep);
    return [x, sum / weight];
  });
}

function xEncoding(series) {
  const xs = series.flatMap((s) => [s.points[0][0], s.points[s.points.length - 1][0]]);
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  const axis = {title: AXES[state.axis], format: state.axis === "hours" ? "~g" : "~s"};
  if (state.axis !== "hours" && high - low < 6) axis.tickMinStep = 1;
  return {field: "x", type: "quantitative", scale: {domain: low < high ? [low, high] : [low - 1, high + 1], nice: false},
    axis};
}

const FORMATS = {percent: "~%", integer: "~s", number: "~g", seconds: "~g", small: "~e"};

// Options: format (of FORMATS), y (axis title), zero (axis from zero), top (axis up to at least), plain (no smoothing),
// marks (a point for each value), dashed: series with `dashed` set are dashed.
function curves(series, {y, format = "number", zero = false, top = null, plain = false, marks = false, log = false}) {
  const rows = (list) => list.flatMap((s, key) => s.points.map((p) =>
    ({x: p[0], y: p[1], key, run: s.run, dashed: Boolean(s.dashed)})));
  const lines = plain || !state.smoothing ? series : series.map((s) => ({...s, points: smooth(s.points)}));
  const raw = lines === series ? [] : series;
  const x = xEncoding(series);
  const scale = log ? {type: "log", nice: true} : {zero, nice: true};
  if (top !== null) scale.domainMax = Math.max(top, ...series.flatMap((s) => s.points.map((p) => p[1])));
  const encoding = (list) => ({
    x, y: {field: "y", type: "quantitative", scale, axis: {title: y, format: FORMATS[format]}},
    detail: {field: "key"},
    color: {field: "key", type: "nominal", legend: null, scale: {
      domain: list.map((_, i) => i), range: list.map((s) => s.colour ?? runColour(s.run))}},
    strokeDash: {field: "key", type: "nominal", legend: null, scale: {
      domain: list.map((_, i) => i), range: list.map((s) => s.dashed ? [5, 4] : runDash(s.run))}},
  });
  const single = (list) => list.some((s) => s.points.length === 1);
  const layer = [
    ...stageLayers(x),
    ...(raw.length ? [{data: {values: rows(raw)}, mark: {type: "line", strokeWidth: 1, opacity: isDark() ? 0.3 : 0.25},
      encoding: encoding(raw)}] : []),
    {data: {values: rows(lines)}, mark: {type: "line", point: marks || single(lines) ? {size: 28, filled: true} : false},
      encoding: encoding(lines)},
  ];
  return {spec: {layer}, series: {format, lines: lines.map((s, i) => (
    {label: s.label, colour: s.colour ?? runColour(s.run), points: s.points, raw: raw.length ? series[i].points : null}))}};
}

// Where each stage begins: shaded bands for one run, a rule in each run's colour for more.
function stageLayers(x) {
  const runs = shownRuns();
  const p = palette();
  const at = (run, step) => {
    const steps = run.columns.step;
    const i = steps.findIndex((s) => s >= step);
    return run.columns[state.axis][i < 0 ? steps.length - 1 : i];
  };
  const [low, high] = x.scale.domain;
  const bands = runs.flatMap(([run, index], row) => run.stages.map((stage, i) => ({
    x: i ? Math.max(low, at(run, stage.first)) : low, row,
    x2: i + 1 < run.stages.length ? at(run, run.stages[i + 1].first) : high,
    name: stage.name, run: index, odd: i % 2, first: i === 0})));
  if (runs.length === 1) {
    if (bands.length < 2) return [];
    return [
      {data: {values: bands.filter((b) => b.odd)}, mark: {type: "rect", color: p.band, opacity: 0.13},
        encoding: {x, x2: {field: "x2"}}},
      {data: {values: bands}, mark: {type: "text", align: "left", baseline: "top", dx: 4, dy: 2, fontSize: 10},
        encoding: {x, y: {value: 0}, text: {field: "name"}}},
    ];
  }
  const rules = bands.filter((b) => !b.first);
  if (!rules.length) return [];
  const colour = {field: "run", type: "nominal", legend: null,
    scale: {domain: runs.map(([, i]) => i), range: runs.map(([, i]) => runColour(i))}};
  return [
    {data: {values: rules}, mark: {type: "rule", strokeDash: [3, 3], opacity: 0.8}, encoding: {x, color: colour}},
    ...runs.map(([, index], row) => ({
      data: {values: rules.filter((b) => b.run === index)},
      mark: {type: "text", align: "left", baseline: "top", dx: 4, dy: 2 + 11 * row, fontSize: 10, limit: 90},
      encoding: {x, y: {value: 0}, text: {field: "name"}, color: colour}})),
  ];
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

function follow(one, {format, lines}) {
  const hover = document.getElementById("hover");
  const cursor = element("div", {className: "cursor", hidden: true});
  one.plot.append(cursor);
  const leave = () => { hover.hidden = true; cursor.hidden = true; };
  one.plot.onpointerleave = leave;
  one.plot.onpointermove = (event) => {
    const svg = one.plot.querySelector("svg");
    if (!one.view || !svg) return;
    const box = svg.getBoundingClientRect();
    const [left] = one.view.origin();
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
    const head = element("div", {className: "muted"}, `${AXES[state.axis]} ${show(x, state.axis === "hours" ? "number" : "integer")}`
      + (lines[0].raw ? " · smoothed, as measured" : ""));
    hover.replaceChildren(head, element("table", {}, ...rows));
    hover.hidden = false;
    const wide = hover.offsetWidth, right = event.clientX + 16 + wide > innerWidth;
    hover.style.left = `${Math.max(4, right ? event.clientX - wide - 16 : event.clientX + 16)}px`;
    hover.style.top = `${Math.min(event.clientY + 14, innerHeight - hover.offsetHeight - 6)}px`;
    cursor.hidden = false;
    cursor.style.left = `${box.left - one.plot.getBoundingClientRect().left + left + scale(x)}px`;
    cursor.style.height = `${one.view.height()}px`;
  };
}
