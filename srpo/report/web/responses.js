// The browser of stored responses. Their text comes from a model: it reaches the page as text nodes only.
const PAGE = 100;

function responseBrowser() {
  const grid = section("responses", "Responses", "Stored responses with their prompt and grade.");
  const all = report.runs.flatMap((run, index) => run.responses.rows.map((row) =>
    ({run: index, ...Object.fromEntries(run.responses.fields.map((name, i) => [name, row[i]]))})));
  const without = report.runs.filter((run) => !run.responses.rows.length).map((run) => run.name);
  const notes = without.length ? [element("p", {className: "note"}, `No stored responses: ${without.join(", ")} `
    + "(logging.responses: 0, or no step yet).")] : [];
  if (!all.length) return grid.replaceWith(...notes);

  const choose = (label, options) => {
    const select = element("select", {}, ...options.map(([value, text]) => element("option", {value}, text)));
    return [select, element("label", {}, `${label} `, select)];
  };
  const distinct = (name) => [...new Set(all.map((r) => r[name]))].sort().map((v) => [v, v]);
  const steps = all.map((r) => r.step);
  const bound = (label, value) => {
    const input = element("input", {type: "number", min: Math.min(...steps), max: Math.max(...steps), value});
    input.setAttribute("aria-label", label);
    return input;
  };
  const [run, runLabel] = choose("run", [["", "all"], ...report.runs.map((r, i) => [i, r.name])]);
  const [domain, domainLabel] = choose("domain", [["", "all"], ...distinct("domain")]);
  const [stage, stageLabel] = choose("stage", [["", "all"], ...distinct("stage")]);
  const [outcome, outcomeLabel] = choose("outcome", [["", "all"], ["correct", "correct"], ["wrong", "not correct"],
    ["truncated", "truncated"], ["failed", "grading failed"]]);
  const from = bound("first step", Math.min(...steps)), to = bound("last step", Math.max(...steps));
  const search = element("input", {type: "search", placeholder: "search in prompt, response, id"});
  search.setAttribute("aria-label", "search");
  Object.entries({run, domain, stage, outcome, from, to, search}).forEach(([name, node]) => { node.id = `filter-${name}`; });
  const count = element("span", {id: "matches", className: "muted"});
  const list = element("div", {className: "card list", id: "list"});
  const detail = element("div", {className: "card one", id: "response"});
  const filters = element("div", {className: "filters"}, ...(report.runs.length > 1 ? [runLabel] : []), domainLabel,
    stageLabel, outcomeLabel, element("label", {}, "steps ", from, " to ", to), search, count);
  grid.replaceWith(...notes, filters, element("div", {className: "browser"}, list, detail));

  let found = [], listed = 0, current = 0;
  const fits = (r, words) => (!run.value || r.run === Number(run.value)) && (!domain.value || r.domain === domain.value)
    && (!stage.value || r.stage === stage.value) && r.step >= Number(from.value) && r.step <= Number(to.value || Infinity)
    && (!outcome.value || {correct: r.correct >= 1, wrong: r.correct < 1, truncated: r.truncated, failed: r.failed}[outcome.value])
    && (!words || `${r.prompt}\n${r.response}\n${r.prompt_id}`.toLowerCase().includes(words));
  const filter = () => {
    const words = search.value.toLowerCase();
    found = all.filter((r) => fits(r, words));
    count.textContent = `${found.length.toLocaleString("en")} of ${all.length.toLocaleString("en")}`;
    list.replaceChildren();
    listed = 0;
    more();
    select(0);
  };
  const more = () => {
    list.querySelector(".more")?.remove();
    for (const end = Math.min(found.length, listed + PAGE); listed < end; listed++) {
      const i = listed;
      list.append(item(found[i], () => select(i)));
    }
    if (listed < found.length) {
      list.append(element("button", {className: "more", type: "button", onclick: more}, `${found.length - listed} more ...`));
    }
  };
  const select = (i) => {
    list.children[current]?.removeAttribute("aria-current");
    current = i;
    if (!found.length) return detail.replaceChildren(element("p", {className: "note"}, "No stored response fits the filter."));
    list.children[i].setAttribute("aria-current", "true");
    detail.replaceChildren(...responseDetail(found[i], search.value));
  };
  for (const node of [run, domain, stage, outcome, from, to, search]) node.addEventListener("input", filter);
  list.addEventListener("keydown", (event) => {
    const move = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!move || !found[current + move] || current + move >= listed) return;
    event.preventDefault();
    select(current + move);
    list.children[current].focus();
  });
  filter();
}

function verdict(r) {
  if (r.failed) return element("span", {className: "bad"}, "grading failed");
  return element("span", {className: r.correct >= 1 ? "good" : "bad"},
    r.correct >= 1 ? "✓ correct" : r.correct > 0 ? `◐ ${show(r.correct, "percent")}` : "✗ wrong");
}

function item(r, onclick) {
  return element("button", {type: "button", onclick},
    element("div", {className: "what"}, verdict(r), `step ${r.step}`, element("span", {}, r.domain),
      element("span", {}, `${r.tokens} tokens`),
      ...(report.runs.length > 1 ? [element("i", {className: "chip", style: `background:${runColour(r.run)}`,
        title: report.runs[r.run].name})] : [])),
    element("div", {className: "snippet"}, r.response.slice(0, 120).replace(/\s+/g, " ") || "(empty)"));
}

function responseDetail(r, words) {
  const row = (name, ...value) => element("tr", {}, element("th", {}, name), element("td", {}, ...value));
  const scored = Object.entries(JSON.parse(r.parts || "{}")).map(([name, value]) => `${name} ${show(value)}`).join(" · ");
  return [
    element("h3", {}, `${r.prompt_id}, sample ${r.sample}`),
    element("div", {className: "scroll"}, element("table", {className: "data"},
      row("grade", verdict(r), `, reward ${show(r.reward)}`), ...(scored ? [row("parts", scored)] : []),
      ...(r.reason ? [row("reason", r.reason)] : []),
      row("where", `${report.runs[r.run].name}, step ${r.step}, epoch ${r.epoch}, stage ${r.stage}, ${r.domain}`),
      row("length", `${r.tokens.toLocaleString("en")} tokens${r.truncated ? ", cut off at the limit" : ""}`))),
    element("h4", {}, "Prompt"), element("pre", {}, ...marked(r.prompt, words)),
    element("h4", {}, "Response"), element("pre", {}, ...marked(r.response, words)),
  ];
}

function marked(text, words) {
  if (!words) return [text];
  const pieces = [], lower = text.toLowerCase(), wanted = words.toLowerCase();
  if (lower.length !== text.length) return [text];  // places differ, as in "İ"
  let at = 0;
  for (let i = lower.indexOf(wanted); i >= 0; i = lower.indexOf(wanted, at)) {
    pieces.push(text.slice(at, i), element("mark", {}, text.slice(i, i + wanted.length)));
    at = i + wanted.length;
  }
  return [...pieces, text.slice(at)];
}
