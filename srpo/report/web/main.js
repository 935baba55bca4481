// Puts the page together.
function heading() {
  const runs = report.runs;
  document.getElementById("heading").textContent = runs.length === 1 ? runs[0].name
    : runs.map((run) => run.name).join(" · ");
  document.getElementById("lead").textContent = `SRPO report, srpo ${report.version}. ` + runs.map((run) =>
    (runs.length > 1 ? `${run.name}: ` : "") + `${run.path}, ${run.steps} ${run.steps === 1 ? "step" : "steps"}, `
    + (run.finished ? "finished" : "not finished: the figures go as far as it has come")).join(". ") + ".";
  document.title = `${runs.map((run) => run.name).join(", ")}: SRPO report`;
  document.getElementById("legend").replaceChildren(...runs.map((run, i) => {
    const box = element("input", {type: "checkbox", checked: true, onchange: (event) => {
      state.shown[i] = event.target.checked;
      redraw();
    }});
    return element("label", {}, ...(runs.length > 1 ? [box] : []),
      element("i", {className: "chip", id: `chip-${i}`}), element("span", {}, run.name));
  }));
}

function colourLegend() {
  report.runs.forEach((_, i) => { document.getElementById(`chip-${i}`).style.background = runColour(i); });
}

// Mean of a column's last tenth, at least one value.
function latest(run, column) {
  const values = (run.columns[column] ?? []).filter((v) => v !== null);
  const tail = values.slice(-Math.max(1, Math.round(values.length / 10)));
  return tail.length ? tail.reduce((a, b) => a + b, 0) / tail.length : null;
}

function keyFigures() {
  const last = (list) => list?.[list.length - 1] ?? null;
  const hours = (h) => h === null ? "-" : h < 1 ? `${(60 * h).toFixed(1)} min` : `${h.toFixed(1)} h`;
  const figures = [
    ["Steps", (run) => show(run.steps, "integer")],
    ["Closed epochs", (run) => show(run.epochs.length, "integer")],
    ["Rollouts", (run) => show(run.totals.rollouts, "integer")],
    ["Response tokens", (run) => show(run.totals.tokens, "integer")],
    ["Time in steps", (run) => hours(last(run.columns.hours))],
    ["Prompts seen", (run) => show(run.totals.prompts, "integer")],
    ["Reward, last tenth", (run) => show(latest(run, "reward/all"))],
    ["Length, last tenth", (run) => show(latest(run, "length/all"))],
    ["Groups with an advantage", (run) => show(run.totals.advantage, "percent")],
    ["Identical rewards", (run) => show(run.totals.identical, "percent")],
    ...[...new Set(report.runs.flatMap((run) => Object.keys(run.evaluations)))].sort().reverse().map((name) =>
      [`Held-out ${name.slice(5)}`, (run) => {
        const values = run.evaluations[name];
        return values ? `${(100 * values[0][3]).toFixed(1)} → ${show(last(values)[3], "percent")}` : "-";
      }]),
  ];
  const one = report.runs.length === 1 ? " one" : "";
  document.querySelector("header").append(element("dl", {className: "tiles"}, ...figures.map(([name, value]) =>
    element("div", {className: `tile${one}`}, element("dt", {}, name), ...report.runs.map((run, i) =>
      element("dd", {}, ...(one ? [] : [element("i", {className: `chip of-${i}`})]), value(run)))))));
}

function settings() {
  const runs = report.runs;
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  const text = (run, key) => key in run.config ? String(run.config[key]) : "";
  const differing = keys.filter((key) => key !== "run" && new Set(runs.map((run) => text(run, key))).size > 1);
  const table = (names) => element("div", {className: "scroll"}, element("table", {className: "data"},
    element("tr", {}, ...["setting", ...runs.map((run) => run.name)].map((name) => element("th", {}, name))),
    ...names.map((key) => element("tr", {}, element("td", {className: "key"}, key),
      ...runs.map((run) => element("td", {}, text(run, key)))))));
  const header = document.querySelector("header");
  if (runs.length > 1) {
    header.append(element("h3", {}, "What the configurations differ in"), differing.length ? table(differing)
      : element("p", {className: "note"}, "Nothing but the run folder."));
  }
  header.append(keys.length ? element("details", {}, element("summary", {}, "All settings"), table(keys))
    : element("p", {className: "note"}, "No config.yaml in the run folder: settings unknown."));
}

function eventLog() {
  const rows = report.runs.flatMap((run) => run.events.map((event) => [run.name, ...event]));
  const grid = section("events", "Events", "What the runs decided, in the words of their ledgers.");
  if (!rows.length) return grid.replaceWith(element("p", {className: "note"}, "No event is recorded yet."));
  const table = element("div", {className: "scroll"}, element("table", {className: "data"},
    element("tr", {}, ...["run", "after step", "kind", "detail"].map((name) => element("th", {}, name))),
    ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, String(cell)))))));
  grid.replaceWith(element("details", {open: rows.length <= 12}, element("summary", {}, `${rows.length} events`), table));
}

function footnotes() {
  const lines = report.runs.map((run) => `${run.name}: ` + (run.steps_per_point === 1 ? "each point is a step"
    : `each point is the mean of ${run.steps_per_point} steps in a row (sums: the last of them)`)
    + (run.responses.rows.length ? `; ${run.responses.rows.length} stored responses of ${run.responses.shown} of `
      + `${run.responses.stored} steps are in this page, long ones with their middle left out.` : "."));
  document.getElementById("footer").append(...lines.map((line) => element("p", {}, line)),
    element("p", {}, "Faint lines are values as measured, strong ones an exponential moving average over the given share "
      + "of the points, begun anew with each stage. Numbers have six significant digits. Plots: Vega-Lite."));
}

function boot() {
  heading();
  keyFigures();
  settings();
  for (const part of [rewardFigures, evaluationFigures, signalFigures, epochFigures, behaviourFigures, responseBrowser,
    updateFigures, speedFigures, otherFigures, eventLog, footnotes]) part();
  const recolour = () => {
    applyTheme();
    colourLegend();
    report.runs.forEach((_, i) => document.querySelectorAll(`.of-${i}`).forEach((node) => {
      node.style.background = runColour(i);
    }));
    redraw();
  };
  const axis = document.getElementById("axis"), smoothing = document.getElementById("smoothing");
  axis.onchange = () => { state.axis = axis.value; redraw(); };
  const smoothed = () => { document.getElementById("smoothed").textContent = state.smoothing ? `${state.smoothing} %` : "off"; };
  smoothing.value = state.smoothing;
  smoothed();
  smoothing.oninput = () => { state.smoothing = Number(smoothing.value); smoothed(); redraw(); };
  document.getElementById("theme").onclick = () => {
    choice = THEMES[(THEMES.indexOf(choice) + 1) % THEMES.length];
    recolour();
  };
  media.addEventListener("change", recolour);
  addEventListener("beforeprint", renderAll);
  recolour();
  for (const one of cards) observer.observe(one.plot);
}
boot();
