// The picture of a policy's work: from left to right the prompt, from top to bottom the layers.

const COLUMNS = 480; // places of the prompt that a picture tells apart
const SHADES = 6; // of the share of a place's tokens that run
const SEAM = 0.06; // layers that a band reaches into the one above, so that no line is seen between them

// From the first layer on: parts of the depth, [begin, end) in layers, in which `done` decisions are made.
function bandsOf(policy) {
  const bands = [];
  let begin = 0;
  policy.stages.forEach((stage, done) => {
    const end = stage.boundary === "attention" ? stage.layer + 0.5 : stage.layer + 1;
    if (end > begin) bands.push({ begin, end, done });
    begin = end;
  });
  if (begin < record.layers) bands.push({ begin, end: record.layers, done: policy.stages.length });
  return bands;
}

// The name of a part of the depth; one that begins or ends with half a layer has its FFN or its attention alone.
function bandName({ begin, end }) {
  const [first, last] = [Math.ceil(begin), Math.floor(end) - 1];
  const names = [];
  if (begin < first) names.push(`FFN of layer ${first - 1}`);
  if (first === last) names.push(`layer ${first}`);
  if (first < last) names.push(`layers ${first} to ${last}`);
  if (last + 1 < end) names.push(`attention of layer ${last + 1}`);
  return names.join(", ");
}

function layersPicture(policy) {
  const svg = shape("svg", { viewBox: `0 0 ${Math.min(count, COLUMNS)} ${record.layers}`, preserveAspectRatio: "none" });
  const bands = bandsOf(policy);
  const lines = bands.map(({ begin, end, done }) => {
    const test = (token) => runs(policy, token, done);
    const levels = shares(COLUMNS, test).map((share) => Math.ceil(share * SHADES));
    for (let level = 1; level <= SHADES; level++) svg.append(shape("path", { class: `level-${level}`, d: blocks(levels, level, begin && begin - SEAM, end) }));
    const running = tally(test);
    return `${bandName({ begin, end })}: ${running === count ? "all " : ""}${number(running)} tokens${running === count ? "" : ` (${percent(running, count)})`}`;
  });
  const labels = bands.map(({ begin }) => Math.ceil(begin)).filter((at, index, all) => index === 0 || at - all[index - 1] > record.layers / 10);
  const depth = make("div", { className: "depth" }, ...labels.map((at) => depthLabel(at, at / record.layers)));
  if (record.layers - 1 - labels.at(-1) > record.layers / 5) depth.append(depthLabel(record.layers - 1, 1));
  const frame = make("div", { className: "frame" }, svg, make("i", { className: "at-layer" }), make("i", { className: "at-token" }));
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Tokens that run in each layer. ${lines.join("; ")}`);
  frame.addEventListener("pointermove", (event) => point(tokenUnder(event, frame)));
  frame.addEventListener("click", (event) => {
    const box = frame.getBoundingClientRect();
    setLayer(Math.min(record.layers - 1, Math.floor((record.layers * (event.clientY - box.top)) / box.height)));
    go(tokenUnder(event, frame));
  });
  const ends = [number(0), "position in the prompt", number(count - 1)];
  const axis = make("div", { className: "axis" }, ...ends.map((textContent) => make("span", { textContent })));
  const caption = make("figcaption", {}, ...lines.map((textContent) => make("p", { textContent })));
  return make("figure", { className: "layers" }, depth, frame, axis, caption);
}

function depthLabel(at, share) {
  const label = make("span", { textContent: at === 0 ? "layer 0" : number(at) });
  label.style.top = `${100 * share}%`;
  label.style.translate = `0 ${-100 * share}%`;
  return label;
}

// Where levels are `level` or higher, as blocks from one depth to another. Higher levels are drawn over lower ones.
function blocks(levels, level, top, bottom) {
  let path = "";
  for (let at = 0; at < levels.length; at++) {
    if (levels[at] < level) continue;
    const begin = at;
    while (levels[at + 1] >= level) at++;
    path += `M${begin} ${top}H${at + 1}V${bottom}H${begin}Z`;
  }
  return path;
}

// The token at the place of the mouse over an element that is as wide as the prompt.
function tokenUnder(event, element) {
  const box = element.getBoundingClientRect();
  return Math.max(0, Math.min(count - 1, Math.floor((count * (event.clientX - box.left)) / box.width)));
}

// The line of the layer that the text is shown after.
function paintLayers() {
  for (const line of document.querySelectorAll(".at-layer")) line.style.top = `${(100 * (layer + 1)) / record.layers}%`;
}
