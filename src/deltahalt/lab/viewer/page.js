"use strict";

const record = JSON.parse(document.getElementById("record").textContent);
const count = record.tokens.length;
const BLOCK = 200; // tokens in a row of the text, which ends at the next line break
const BINS = 60;
const LEVELS = 5; // shades of a score
const tokenAt = new WeakMap(); // of an element of the text
const byId = (id) => document.getElementById(id);

function make(tag, fields = {}, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

function number(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) < 1e-3 ? value.toExponential(2) : Number(value.toPrecision(4)).toString();
}

// --- what the record says, by token ---

const within = (runs, token) => runs.some(([begin, end]) => begin <= token && token < end);

// A stage as arrays over the whole prompt: NaN where a token had halted before, or may not halt.
function byToken(stage, index, halted) {
  const score = new Float64Array(count).fill(NaN);
  const value = new Float64Array(count).fill(NaN); // what eligible tokens were ranked by
  let next = 0;
  for (let token = 0; token < count; token++) {
    if (halted[token] >= 0 && halted[token] < index) continue;
    score[token] = stage.scores[next];
    if (within(stage.eligible, token)) {
      value[token] = (stage.ranked ?? stage.scores)[next];
    }
    next++;
  }
  const sorted = value.filter((each) => !Number.isNaN(each)).sort().reverse();
  return { ...stage, score, value, sorted };
}

// How many of `sorted`, the highest first, are higher than `value`.
function higher(sorted, value) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > value) low = middle + 1;
    else high = middle;
  }
  return low;
}

const policies = record.policies.map((policy) => ({
  ...policy,
  stages: policy.stages.map((stage, index) => byToken(stage, index, policy.halted)),
  cells: new Array(count), // the element of each token
}));

// --- state ---

let layer = record.layers - 1; // the text is shown as after this layer
let here = -1; // the token whose details are shown
let matches = []; // [first, last] token of each
let match = -1;

const stageClass = (stage) => `stage-${Math.min(stage + 1, 3)}`;
const stagesDone = (policy) => policy.stages.filter((stage) => stage.layer <= layer).length;

// --- the text ---

const imageOf = (token) => record.images.find(({ begin, rows, columns }) => begin <= token && token < begin + rows * columns);
const endOf = (image) => image.begin + image.rows * image.columns;
const nameOf = (image) => `image ${record.images.indexOf(image) + 1}`;

// A picture under a grid of its visual tokens, which are empty and let it be seen.
function picture(image) {
  const size = `${image.rows} lines of ${image.columns} visual tokens`;
  const grid = make("div", { className: "picture" }, make("img", { src: image.uri, alt: `${nameOf(image)}, ${size}` }));
  grid.style.setProperty("--columns", image.columns);
  grid.style.setProperty("--rows", image.rows);
  return grid;
}

function buildText() {
  const rows = document.createDocumentFragment();
  for (let begin = 0; begin < count; ) {
    let end = Math.min(begin + BLOCK, count);
    while (end < count && end < begin + 5 * BLOCK && !record.tokens[end - 1].endsWith("\n")) end++;
    const cut = end < count && imageOf(end);
    if (cut && cut.begin < end) end = endOf(cut); // a picture is in one row
    const row = make("div", { className: "row" });
    for (const policy of policies) {
      const cell = make("div", { className: "cell" });
      for (let token = begin; token < end; token++) {
        const image = imageOf(token);
        if (image?.begin === token) cell.append(picture(image));
        policy.cells[token] = make("span", { textContent: record.tokens[token] });
        tokenAt.set(policy.cells[token], token);
        (image ? cell.lastElementChild : cell).append(policy.cells[token]);
      }
      row.append(cell);
    }
    rows.append(row);
    begin = end;
  }
  byId("text").append(rows);
}

function paint() {
  const hits = new Uint8Array(count);
  for (const [first, last] of matches) hits.fill(1, first, last + 1);
  for (const policy of policies) {
    const done = stagesDone(policy);
    const latest = policy.stages[done - 1];
    let before = "";
    for (let token = 0; token < count; token++) {
      const stage = policy.halted[token];
      const state = stage >= 0 && stage < done ? "halted" : "kept";
      let names = state;
      if (state !== before) names += " head";
      if (state === "halted") names += ` ${stageClass(stage)}`;
      if (latest && !Number.isNaN(latest.value[token])) {
        const below = 1 - higher(latest.sorted, latest.value[token]) / latest.sorted.length;
        names += ` q${Math.min(LEVELS, 1 + Math.floor(below * LEVELS))}`;
      }
      if (hits[token]) names += " hit";
      if (token === here) names += " here";
      policy.cells[token].className = names;
      before = state;
    }
  }
  byId("layer-shown").textContent = layer < 0 ? "none" : layer;
  paintNames();
}

function paintNames() {
  byId("names").replaceChildren(
    ...policies.map((policy) => {
      const done = stagesDone(policy);
      const active = policy.halted.filter((stage) => stage < 0 || stage >= done).length;
      const share = make("span", { textContent: `${number(active)} of ${number(count)} active: ` });
      return make("h2", { title: policy.policy }, share, policy.policy);
    }),
  );
}

// --- a policy's card: its decisions as histograms with the cut ---

function buildCards() {
  byId("policies").append(
    ...policies.map((policy) => {
      const kept = policy.halted.filter((stage) => stage < 0).length;
      const facts = make("p", { className: "facts" });
      const active = make("span", { className: "kept", textContent: "active in all layers" });
      facts.append(`${number(kept)} of ${number(count)} tokens are `, active, `; ${policy.speedup.toFixed(2)}x fewer FLOPs${record.images.length ? " in the decoder" : ""}`);
      return make(
        "article",
        {},
        make("h2", { textContent: policy.policy }),
        facts,
        ...policy.stages.map((stage, index) => histogram(policy, stage, index)),
      );
    }),
  );
}

// Bars of how many eligible tokens have which score: those that stay in colour, those that halt in grey.
function histogram(policy, stage, index) {
  const halted = policy.halted.filter((each) => each === index).length;
  if (stage.layer < 0) {
    const visual = stage.eligible.reduce((all, [begin, end]) => all + end - begin, 0);
    stage.mark = () => {};
    return make("figure", {}, make("figcaption", { textContent: `${number(halted)} of ${number(visual)} visual tokens halt in the ViT, before layer 0` }));
  }
  const low = stage.sorted.at(-1);
  const high = stage.sorted[0];
  const wide = low > 0 && high / low > 20; // scores over decades are shown on a logarithmic axis
  const scale = (value) => (wide ? Math.log(value) : value);
  const span = scale(high) - scale(low) || 1;
  const place = (value) => (scale(value) - scale(low)) / span;
  const stays = new Array(BINS).fill(0);
  const halts = new Array(BINS).fill(0);
  stage.value.forEach((value, token) => {
    if (Number.isNaN(value)) return;
    const bins = policy.halted[token] === index ? halts : stays;
    bins[Math.min(BINS - 1, Math.floor(place(value) * BINS))]++;
  });
  const tallest = Math.max(...stays.map((bin, at) => bin + halts[at]));
  const svg = shape("svg", { viewBox: `0 0 ${BINS} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (let bin = 0; bin < BINS; bin++) {
    const grey = (95 * halts[bin]) / tallest;
    const colour = (95 * stays[bin]) / tallest;
    svg.append(shape("rect", { class: "halted", x: bin, width: 0.9, y: 100 - grey, height: grey }));
    svg.append(shape("rect", { class: "kept", x: bin, width: 0.9, y: 100 - grey - colour, height: colour }));
  }
  const line = (name, value) => shape("line", { class: name, x1: BINS * place(value), x2: BINS * place(value), y1: 0, y2: 100 });
  if (stage.cut !== null) svg.append(line("cut", stage.cut));
  stage.mark = (value) => {
    svg.querySelector(".here")?.remove();
    if (!Number.isNaN(value)) svg.append(line("here", value));
  };
  const cut = stage.cut === null ? "with no single cut" : `cut at ${number(stage.cut)}`;
  const ranked = stage.ranked ? "mean score of chunks" : "score";
  const caption = make("figcaption");
  const name = make("span", { className: `halted ${stageClass(index)}`, textContent: `after layer ${stage.layer}` });
  caption.append(`${number(halted)} of ${number(stage.sorted.length)} eligible tokens halt `, name, `, ${cut}`);
  const axis = make("div", { className: "axis" });
  axis.append(
    make("span", { textContent: number(low) }),
    make("span", { textContent: wide ? `${ranked}, logarithmic` : ranked }),
    make("span", { textContent: number(high) }),
  );
  return make("figure", {}, caption, svg, axis);
}

function shape(tag, fields) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(fields)) node.setAttribute(name, value);
  return node;
}

// --- details of one token ---

function point(token) {
  if (token < 0 || token >= count || token === here) return;
  for (const policy of policies) {
    policy.cells[here]?.classList.remove("here");
    policy.cells[token].classList.add("here");
    for (const stage of policy.stages) stage.mark(stage.value[token]);
  }
  here = token;
  const text = make("code", { textContent: describe(token) });
  const columns = policies.map((policy) => {
    const lines = [fateOf(policy, token), ...policy.stages.filter((stage) => stage.layer >= 0).map((stage) => scoreOf(stage, token))];
    return make("div", {}, ...lines.map((textContent) => make("p", { textContent })));
  });
  byId("details").replaceChildren(
    make("p", {}, text, ` token ${number(token)} of ${number(count)}`),
    make("div", { className: "columns" }, ...columns),
  );
}

// A token's text, or its place in a picture.
function describe(token) {
  const image = imageOf(token);
  if (!image) return JSON.stringify(record.tokens[token]);
  const place = token - image.begin;
  return `${nameOf(image)}, line ${1 + Math.floor(place / image.columns)}, column ${1 + (place % image.columns)}`;
}

function fateOf(policy, token) {
  const stage = policy.halted[token];
  if (stage >= 0 && policy.stages[stage].layer < 0) return "halted in the ViT, before layer 0";
  if (stage >= 0) return `halted after layer ${policy.stages[stage].layer}${record.images.length ? " of the decoder" : ""}`;
  const last = policy.stages.at(-1);
  return last && last.layer >= 0 ? `active in all layers: ${standing(last, token)}` : "active in all layers";
}

// Why a stage left a token active.
function standing(stage, token) {
  if (!within(stage.scope, token)) return "outside the scope";
  if (Number.isNaN(stage.value[token])) return "protected, as the prompt's ends are";
  return stage.cut === null ? "chosen" : "kept by its score";
}

function scoreOf(stage, token) {
  const where = `at layer ${stage.layer}: `;
  if (Number.isNaN(stage.score[token])) return `${where}halted before`;
  const score = number(stage.score[token]);
  if (Number.isNaN(stage.value[token])) return `${where}${score}, ${standing(stage, token)}`;
  const mean = stage.ranked ? `, chunk's mean ${number(stage.value[token])}` : "";
  const rank = 1 + higher(stage.sorted, stage.value[token]);
  return `${where}${score}${mean}, rank ${number(rank)} of ${number(stage.sorted.length)}`;
}

// --- moving through the text ---

// The element of a token in the first column that shows it, and its box. Patches that are not to be seen are covered.
const COVERED = ".only-kept .picture .halted, .only-halted .picture .kept";
const visible = (cell) => cell?.getClientRects().length && !cell.matches(COVERED);
const shown = (token) => policies.map((policy) => policy.cells[token]).find(visible);
const boxOf = (token) => shown(token)?.getClientRects()[0];

function step(by, from = here) {
  let token = from + by;
  while (token >= 0 && token < count && !shown(token)) token += by;
  return token;
}

// The token on the line above (-1) or below (1) that lies nearest to the one here.
function line(by) {
  const from = boxOf(here);
  if (!from) return step(by);
  let best = -1;
  let top = null;
  for (let token = here + by; token >= 0 && token < count; token += by) {
    const box = boxOf(token);
    if (!box || Math.abs(box.top - from.top) < from.height / 2) continue;
    top ??= box.top;
    if (Math.abs(box.top - top) > from.height / 2) break;
    if (best < 0 || Math.abs(box.left - from.left) < Math.abs(boxOf(best).left - from.left)) best = token;
  }
  return best;
}

const MOVES = {
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  ArrowDown: () => line(1),
  ArrowUp: () => line(-1),
  Home: () => step(1, -1),
  End: () => step(-1, count),
};

function onKey(event) {
  const move = MOVES[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  point(move());
  reveal(here);
}

function reveal(token) {
  (shown(token) ?? policies[0].cells[token])?.scrollIntoView({ block: "center" });
}

// --- finding ---

function find(wanted) {
  matches = [];
  match = -1;
  const ends = [];
  let text = "";
  for (const token of record.tokens) ends.push((text += token.toLowerCase()).length);
  const tokenOf = (place) => {
    let low = 0;
    for (let high = count - 1; low < high; ) {
      const middle = (low + high) >> 1;
      if (ends[middle] > place) high = middle;
      else low = middle + 1;
    }
    return low;
  };
  const needle = wanted.toLowerCase();
  for (let at = needle ? text.indexOf(needle) : -1; at >= 0; at = text.indexOf(needle, at + needle.length)) {
    matches.push([tokenOf(at), tokenOf(at + needle.length - 1)]);
  }
  paint();
  go(1);
}

function go(by) {
  if (matches.length) {
    match = (match + by + matches.length) % matches.length;
    point(matches[match][0]);
    reveal(here);
  }
  byId("found").textContent = byId("find").value ? `${match + 1} of ${matches.length}` : "";
}

// --- start ---

document.documentElement.style.setProperty("--policies", policies.length);
byId("facts").textContent = `${number(count)} tokens, ${record.layers} layers; asked: ${record.question}`;
buildCards();
buildText();
Object.assign(byId("layer"), { max: record.layers - 1, value: layer });
byId("layer").addEventListener("input", (event) => {
  layer = Number(event.target.value);
  paint();
});
const dress = () => {
  byId("text").className = `${byId("shade").value} only-${byId("show").value}`;
};
byId("show").addEventListener("change", dress);
byId("shade").addEventListener("change", dress);
byId("find").addEventListener("input", (event) => find(event.target.value));
byId("find").addEventListener("keydown", (event) => event.key === "Enter" && go(event.shiftKey ? -1 : 1));
byId("next").addEventListener("click", () => go(1));
byId("previous").addEventListener("click", () => go(-1));
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "dark" || (!root.style.colorScheme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = dark ? "light" : "dark";
});
byId("text").addEventListener("mouseover", (event) => point(tokenAt.get(event.target) ?? -1));
byId("text").addEventListener("keydown", onKey);
dress();
paint();
