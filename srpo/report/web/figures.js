// The figures, section by section.
const ORDER = ["all", "math", "code", "other"];
const rank = (domain) => ORDER.includes(domain) ? ORDER.indexOf(domain) : ORDER.length;
const domains = [...new Set(report.runs.flatMap((run) => Object.keys(run.columns)
  .filter((name) => name.startsWith("reward/")).map((name) => name.slice(7))))].sort((a, b) => rank(a) - rank(b));
const named = (domain) => domain === "all" ? "all responses" : domain;
// Beside one domain alone, "all" would be the same curve twice.
const parts = domains.length === 2 ? domains.slice(1) : domains;

function curveCard(grid, title, about, column, options, missing) {
  card(grid, title, about, () => {
    const series = columnSeries(column);
    return series.length ? curves(series, options) : missing;
  });
}
const NO_STEPS = "No step has been recorded yet.";
const NO_METRIC = "metrics.jsonl has no such figure in these runs.";

function rewardFigures() {
  const grid = section("reward", "Reward and length", "Means over all responses of a step, from the ledger. "
    + "Where a stage begins is shaded (one run) or ruled in the run's colour (several).");
  for (const domain of parts) {
    curveCard(grid, `Reward, ${named(domain)}`, "", `reward/${domain}`, {y: "mean reward"}, NO_STEPS);
  }
  for (const domain of parts) {
    curveCard(grid, `Response length, ${named(domain)}`, "", `length/${domain}`, {y: "tokens", format: "integer"}, NO_STEPS);
  }
  const graded = (domain) => report.runs.some((run) => `metrics:accuracy/${domain}` in run.columns);
  for (const domain of domains.filter(graded)) {
    curveCard(grid, `Accuracy on training prompts, ${domain}`, "", `metrics:accuracy/${domain}`,
      {y: "mean correctness", format: "percent"}, NO_METRIC);
  }
}

function evaluationFigures() {
  const grid = section("heldout", "Held-out accuracy", "avg@k on held-out problems, as measured while training.");
  const names = [...new Set(report.runs.flatMap((run) => Object.keys(run.evaluations)))].sort().reverse();
  if (!names.length) {
    grid.replaceWith(element("p", {className: "note"},
      "These runs were not evaluated: data.eval names no held-out problems, or no evaluation has been made yet."));
  }
  const column = {step: 0, rollouts: 1, hours: 2};
  for (const name of names) {
    card(grid, `Held-out accuracy, ${name.slice(5)}`, "", () => {
      const series = shownRuns().filter(([run]) => run.evaluations[name]).map(([run, index]) => ({
        run: index, label: run.name, points: run.evaluations[name].map((p) => [p[column[state.axis]], p[3]])}));
      return series.length ? curves(series, {y: "avg@k", format: "percent", plain: true, marks: true})
        : "The runs shown were not evaluated on this domain.";
    });
  }
}

function signalFigures() {
  const grid = section("signal", "Signal", "A group whose responses all have one reward has no advantage, and teaches "
    + "nothing. What is left of the rollouts after that?");
  curveCard(grid, "Groups with zero advantage", "Share of a step's groups; beside identical rewards, those "
    + "whose responses were cut off.", "metrics:groups/zero_advantage",
    {y: "share of groups", format: "percent", zero: true, top: 1}, NO_METRIC);
  for (const domain of parts) {
    curveCard(grid, `Identical rewards, ${named(domain)}`, "Share of groups whose responses all have one reward.", `identical/${domain}`, {y: "share of groups", format: "percent", zero: true, top: 1}, NO_STEPS);
  }
  for (const [name, title] of [["correct", "all correct"], ["wrong", "all wrong"]]) {
    curveCard(grid, `Identical rewards: ${title}`, "Share of all groups.", `identical_${name}/all`,
      {y: "share of groups", format: "percent", zero: true}, NO_STEPS);
  }
  curveCard(grid, "Effective gradients per rollout", "Groups with an advantage that the update used, per 1,000 "
    + "rollouts spent, thrown-away ones included.", "advantage_rate/all", {y: "groups per 1,000 rollouts", zero: true},
    NO_STEPS);
  curveCard(grid, "Effective gradients so far", "Groups with an advantage, added up. Against rollouts (X axis above), "
    + "the steeper the better.", "advantage", {y: "groups with an advantage", format: "integer", plain: true, zero: true},
    NO_STEPS);
}

// -- epochs -----------------------------------------------------------------------------------------------------------

const DECISIONS = [["kept", 0], ["dropped", 1], ["returned", 2]];
const NO_EPOCH = "No epoch of this run is closed yet: what stays and what leaves is decided at an epoch's end.";

function epochFigures() {
  const grid = section("epochs", "Epochs", "What each epoch's end decided, and where prompts went from one epoch to "
    + "the next by the share of their rollouts that were correct.");
  card(grid, "Retention", "Share of an epoch's prompts that stay for the next.", () => {
    const series = shownRuns().filter(([run]) => run.epochs.length).map(([run, index]) => ({
      run: index, label: run.name, points: run.epochs.filter((e) => e.prompts).map((e) => [e.epoch, e.kept / e.prompts])}));
    if (!series.length) return NO_EPOCH;
    const x = {field: "x", type: "quantitative", axis: {title: "epoch", tickMinStep: 1, format: "d"},
      scale: {domain: [1, Math.max(2, ...series.map((s) => s.points.at(-1)[0]))], nice: false}};
    return curves(series, {y: "prompts kept", format: "percent", plain: true, marks: true, top: 1, x});
  });
  report.runs.forEach((run, index) => {
    card(grid, of("Prompts by decision", run), "", () => decisions(run), {run: index,
      keys: DECISIONS.map(([name, i]) => [name, () => palette().parts[i]])});
  });
  report.runs.forEach((run, index) => {
    card(grid, of("Pass-rate flow between epochs", run), "A ribbon's width is its number of prompts, of closed epochs"
      + (run.epochs.length > run.flow.epochs.length ? `, the last ${run.flow.epochs.length} of ${run.epochs.length}.` : "."),
      () => run.flow.flow.length ? flow(run.flow) : "A flow needs two closed epochs; this run has "
        + (run.epochs.length ? "one." : "none yet."),
      {run: index, wide: true, keys: report.bins.map((name, i) => [name, () => palette().bins[i]])});
  });
}
function of(title, run) { return report.runs.length > 1 ? `${title}: ${run.name}` : title; }

function decisions(run) {
  if (!run.epochs.length) return NO_EPOCH;
  const values = run.epochs.flatMap((e) => DECISIONS.map(([name, order]) =>
    ({epoch: e.epoch, stage: e.stage, decision: name, order, prompts: e[name]})).filter((d) => d.prompts));
  return {spec: {data: {values}, mark: {type: "bar", tooltip: true, stroke: palette().card,
      strokeWidth: run.epochs.length < 40 ? 1 : 0},
    encoding: {
      x: {field: "epoch", type: "ordinal", axis: {labelAngle: 0, title: "epoch"}},
      y: {field: "prompts", type: "quantitative", axis: {title: "prompts", labelExpr: LABELS.integer}},
      color: {field: "decision", type: "nominal", legend: null,
        scale: {domain: DECISIONS.map((d) => d[0]), range: DECISIONS.map((d) => palette().parts[d[1]])}},
      order: {field: "order"},
      tooltip: [{field: "epoch"}, {field: "stage"}, {field: "decision"}, {field: "prompts", format: ","}],
    }}};
}

// Ribbons from one epoch's states to the next one's; Vega-Lite draws them as areas between two sampled curves.
function flow({epochs, flow: counts}) {
  const bins = report.bins.length;
  const nodes = epochs.map((_, t) => Array.from({length: bins}, (_, b) => Math.max(
    t < counts.length ? counts[t][b].reduce((a, n) => a + n, 0) : 0,
    t > 0 ? counts[t - 1].reduce((a, row) => a + row[b], 0) : 0)));
  const gap = 0.02 * Math.max(...nodes.map((n) => n.reduce((a, b) => a + b, 0)));
  const base = nodes.map((node) => {
    let y = 0;
    return node.map((size) => { const at = y; y += size + (size ? gap : 0); return at; });
  });
  const bars = nodes.flatMap((node, t) => node.map((prompts, b) => ({
    x: t - 0.03, x2: t + 0.03, y: base[t][b], y2: base[t][b] + prompts, prompts, epoch: epochs[t],
    state: report.bins[b]})).filter((d) => d.prompts));
  const ribbons = [];
  counts.forEach((matrix, t) => {
    const used = base[t + 1].slice();
    matrix.forEach((row, a) => {
      let from = base[t][a];
      row.forEach((prompts, b) => {
        if (!prompts) return;
        const to = used[b];
        for (let i = 0; i <= 12; i++) {
          const u = i / 12, ease = u * u * (3 - 2 * u), y = from + (to - from) * ease;
          ribbons.push({x: t + 0.03 + 0.94 * u, y, y2: y + prompts, id: `${t} ${a} ${b}`, state: report.bins[a], prompts,
            from: `epoch ${epochs[t]}: ${report.bins[a]}`, to: `epoch ${epochs[t + 1]}: ${report.bins[b]}`});
        }
        from += prompts;
        used[b] += prompts;
      });
    });
  });
  const colour = {field: "state", type: "nominal", legend: null, scale: {domain: report.bins, range: palette().bins}};
  const x = {field: "x", type: "quantitative", scale: {domain: [-0.05, epochs.length - 0.95], nice: false}, axis: {
    title: "epoch", values: epochs.map((_, t) => t), tickCount: epochs.length, labelOverlap: false,
    labelExpr: `[${epochs.join(",")}][datum.value]`}};
  const y = {field: "y", type: "quantitative", axis: null};
  return {spec: {height: 290, layer: [
    {data: {values: ribbons}, mark: {type: "area", opacity: 0.42, tooltip: true}, encoding: {
      x, y, y2: {field: "y2"}, detail: {field: "id"}, color: colour,
      tooltip: [{field: "prompts", format: ","}, {field: "from"}, {field: "to"}]}},
    {data: {values: bars}, mark: {type: "rect", tooltip: true}, encoding: {
      x, x2: {field: "x2"}, y, y2: {field: "y2"}, color: colour,
      tooltip: [{field: "epoch"}, {field: "state"}, {field: "prompts", format: ","}]}},
  ]}};
}

// -- behaviour --------------------------------------------------------------------------------------------------------

function behaviourFigures() {
  const grid = section("behaviour", "Behaviour", "Share of the stored responses that show a pattern, and the mean "
    + "length of those that do (solid) and do not (dashed).");
  const names = [...new Set(report.runs.flatMap((run) => Object.keys(run.patterns)))];
  if (!names.length) {
    grid.replaceWith(element("p", {className: "note"}, "These runs have stored no responses (logging.responses: 0, or no "
      + "step yet), so no pattern could be counted."));
    return;
  }
  const found = [...new Set(report.runs.flatMap((run) => Object.values(run.patterns)
    .flatMap((pattern) => Object.keys(pattern.domains))))].sort((a, b) => rank(a) - rank(b));
  const domain = element("select", {id: "pattern-domain", onchange: redraw},
    ...found.map((value) => element("option", {value}, value)));
  grid.before(element("div", {className: "filters"}, element("label", {}, "domain ", domain)));
  const lines = (name, column, dashed) => shownRuns().flatMap(([run, index]) => {
    const table = run.patterns[name]?.domains[domain.value];
    if (!table) return [];
    const points = table.step.map((step, i) => [xOf(run, step), table[column][i]]).filter((p) => p[1] !== null);
    const label = dashed === undefined ? run.name : `${run.name}, ${dashed ? "without" : "with"}`;
    return points.length ? [{run: index, label, points, dashed}] : [];
  });
  const none = "Not looked for in this domain of the runs shown, or not in any response yet.";
  const shows = (name) => report.runs.some((run) => run.patterns[name]?.domains.all.matching.some((n) => n > 0));
  for (const name of names) {
    const about = report.runs.map((run) => run.patterns[name]?.about).find(Boolean);
    card(grid, `Frequency: ${name}`, about, () => {
      const series = lines(name, "share");
      return series.length ? curves(series, {y: "share of responses", format: "percent", zero: true}) : none;
    });
  }
  for (const name of names.filter(shows)) {
    card(grid, `Mean length: ${name}`, "", () => {
      const series = [...lines(name, "tokens_with", false), ...lines(name, "tokens_without", true)];
      return series.length ? curves(series, {y: "tokens", format: "integer"}) : none;
    });
  }
  const absent = names.filter((name) => !shows(name));
  if (absent.length) grid.after(element("p", {className: "note"}, `No stored response shows: ${absent.join(", ")}.`));
}

// -- the update, throughput, the rest -----------------------------------------------------------------------------------

const UPDATE = [
  ["policy/entropy", "Entropy", "nats a token", {}],
  ["policy/kl", "KL to the starting policy", "nats a token", {}],
  ["policy/clip_frac", "Clipped tokens", "share of tokens", {format: "percent", zero: true}],
  ["loss/policy", "Policy loss", "loss", {}],
  ["grad/norm", "Gradient norm", "before clipping", {zero: true}],
  ["rollout/logprob_diff_max", "Canary: trainer against vLLM", "largest |difference| of log-probs", {format: "small", zero: true}],
  ["rollout/logprob_diff_mean", "Canary, mean", "mean |difference| of log-probs", {format: "small", zero: true}],
  ["rollout/truncated", "Truncated responses", "share of responses", {format: "percent", zero: true}],
  ["rollout/stale", "Stale tokens", "share of tokens", {format: "percent", zero: true}],
];
const SPEED = [
  ["rollout/tokens_per_s", "Generation", "tokens/s", {format: "integer", zero: true}],
  ["train/tokens_per_s", "Training", "tokens/s", {format: "integer", zero: true}],
  ["time/step", "Step time", "seconds", {zero: true}],
  ["gpu/utilization", "GPU utilization", "percent", {zero: true}],
  ["gpu/memory_gib", "GPU memory in use", "GiB", {zero: true}],
  ["gpu/power_w", "GPU power", "W", {zero: true}],
];
const PHASES = ["rollout", "reward", "update", "sync", "other"];
const ELSEWHERE = /^metrics:((reward|accuracy|length|groups)\/|time\/(rollout|reward|update|sync|slowest_rank)$)/;

// Zero throughout says that the run does without it, as policy/kl without a KL term.
function has(column) { return report.runs.some((run) => run.columns[column]?.some((v) => v)); }
function metricCards(grid, list) {
  for (const [name, title, y, options] of list.filter(([metric]) => has(`metrics:${metric}`))) {
    curveCard(grid, title, name, `metrics:${name}`, {y, ...options}, NO_METRIC);
  }
}

function updateFigures() {
  const grid = section("update", "Update", "The policy update of each step and the comparison of the trainer with vLLM. "
    + "What is zero throughout is left out.");
  metricCards(grid, UPDATE);
  if (!grid.children.length) grid.replaceWith(element("p", {className: "note"}, "metrics.jsonl has none of these figures yet."));
}

function speedFigures() {
  const grid = section("speed", "Throughput", "Where a step's time goes. Reward is what is left of grading when "
    + "generation ends; other is what no phase covers.");
  report.runs.forEach((run, index) => {
    card(grid, of("Seconds a step, by phase", run), "", () => phases(run), {run: index,
      keys: PHASES.map((name, i) => [name, () => palette().parts[i]])});
  });
  metricCards(grid, SPEED);
}

function phases(run) {
  const step = run.columns["metrics:time/step"];
  if (!step) return "metrics.jsonl has no step times of this run yet.";
  const xs = run.columns[state.axis];
  const seconds = PHASES.slice(0, 4).map((name) => run.columns[`metrics:time/${name}`] ?? []);
  const known = (i) => seconds.reduce((sum, column) => sum + (column[i] ?? 0), 0);
  const table = [...seconds, xs.map((_, i) => step[i] === null ? null : Math.max(0, step[i] - known(i)))];
  const values = xs.flatMap((x, i) => PHASES.map((phase, order) => ({x, phase, order, y: table[order][i] ?? 0})));
  const series = PHASES.map((name, k) => ({label: name, colour: palette().parts[k], run: 0,
    points: xs.map((x, i) => [x, table[k][i]]).filter((p) => p[1] !== null && p[1] !== undefined)})).filter((s) => s.points.length);
  return {spec: {data: {values}, mark: {type: "area", opacity: 0.9, interpolate: "step-after"}, encoding: {
    x: xEncoding(), y: {field: "y", type: "quantitative", stack: true, axis: {title: "seconds", labelExpr: LABELS.number}},
    color: {field: "phase", type: "nominal", legend: null, scale: {domain: PHASES, range: palette().parts}},
    order: {field: "order"}}}, series: {format: "number", axis: AXES[state.axis], lines: series.map((s) => ({...s, raw: null}))}};
}

function otherFigures() {
  const shown = new Set([...UPDATE, ...SPEED].map(([name]) => `metrics:${name}`));
  const rest = [...new Set(report.runs.flatMap((run) => Object.keys(run.columns)))]
    .filter((name) => name.startsWith("metrics:") && !shown.has(name) && !ELSEWHERE.test(name)).sort();
  const varying = rest.filter((name) => report.runs.some((run) => new Set(run.columns[name]).size > 1));
  if (!varying.length) return;
  const grid = section("other", "Other metrics", "Everything else in metrics.jsonl that changes over a run.");
  for (const name of varying) curveCard(grid, name.slice(8), "", name, {y: ""}, NO_METRIC);
}
