// The overview: the whole prompt as strips, each of one policy, or of one fate under two policies.

const PARTS = 1200; // of the prompt in a strip
const SHORTEST = 0.15; // the height of a bar that stands for one token of many

// Each strip's name, what its number counts, which tokens it counts, and its looks. Bars show the share of a place's tokens.
function strips() {
  const found = new Set(matches.flatMap(([first, last]) => Array.from({ length: last - first + 1 }, (_, at) => first + at)));
  const hits = matches.length ? [{ name: "found", test: (token) => found.has(token), look: "hit" }] : [];
  if (!pair) return [...policies.map((policy) => ({ name: policy.letter, word: " active", test: active(policy), look: "kept" })), ...hits];
  const fate = fateOfPair();
  return [...fateNames().map((name, at) => ({ name, test: (token) => fate(token) === at, look: FATES[at] })), ...hits];
}

// Paint the strips, and their names as buttons that go to the next place of each.
function paintOverview() {
  const labels = [];
  const drawn = [];
  for (const { name, word = "", test, look } of strips()) {
    const tokens = tally(test);
    const words = [make("span", { className: look, textContent: name }), make("span", { className: "count", textContent: ` ${number(tokens)}${word}` }), ` (${percent(tokens, count)})`];
    const label = make("button", { type: "button", title: `go to the next: ${name}` }, ...words);
    label.addEventListener("click", () => goToNext(test));
    labels.push(label);
    const svg = shape("svg", { class: look, viewBox: `0 0 ${Math.min(count, PARTS)} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(shape("path", { d: outline(shares(PARTS, test)) }));
    drawn.push(svg);
  }
  byId("strip-names").replaceChildren(...labels);
  byId("strips").replaceChildren(...drawn);
}

// The first token after the one here that passes and stands after one that does not; from the start again at the end.
function goToNext(test) {
  for (let step = 1; step <= count; step++) {
    const token = (Math.max(here, 0) + step) % count;
    if (test(token) && (token === 0 || !test(token - 1))) return go(token);
  }
}

function outline(heights) {
  let path = "M0 1";
  heights.forEach((height, at) => {
    path += `V${(1 - (height && Math.max(height, SHORTEST))).toFixed(3)}H${at + 1}`;
  });
  return `${path}V1Z`;
}

// Round numbers of tokens along the prompt, and its pictures.
function buildRuler() {
  const step = [1, 2, 5].flatMap((digit) => [1, 10, 100, 1e3, 1e4, 1e5, 1e6].map((unit) => digit * unit)).sort((one, other) => one - other).find((each) => count / each <= 8);
  for (let token = 0; token < 0.95 * count; token += step) if (!imageOf(token)) byId("ruler").append(rulerMark("tick", number(token), token, token));
  for (const image of record.images) byId("ruler").append(rulerMark("image", nameOf(image), image.begin, endOf(image)));
}

function rulerMark(className, textContent, begin, end) {
  const mark = make("span", { className, textContent });
  mark.style.left = `${(100 * begin) / count}%`;
  if (end > begin) mark.style.width = `${(100 * (end - begin)) / count}%`;
  return mark;
}

// The box around what the window shows of the text.
function paintWindow() {
  const top = placeAt(document.querySelector("nav").getBoundingClientRect().bottom);
  const bottom = placeAt(byId("details").getBoundingClientRect().top);
  Object.assign(byId("window").style, { left: `${(100 * top) / count}%`, width: `${(100 * (bottom - top)) / count}%` });
}

// The token at a height of the window, about: rows are taken as evenly filled.
function placeAt(height) {
  let low = 0;
  let high = rows.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].element.getBoundingClientRect().bottom > height) high = middle;
    else low = middle + 1;
  }
  const { begin, end, element } = rows[low];
  const box = element.getBoundingClientRect();
  return begin + (end - begin) * Math.max(0, Math.min(1, (height - box.top) / box.height));
}

const STRIDES = {
  ArrowRight: (token) => token + Math.max(1, Math.round(count / 100)),
  ArrowLeft: (token) => token - Math.max(1, Math.round(count / 100)),
  PageDown: (token) => token + Math.max(1, Math.round(count / 10)),
  PageUp: (token) => token - Math.max(1, Math.round(count / 10)),
  Home: () => 0,
  End: () => count - 1,
};

function buildOverview() {
  buildRuler();
  const strip = byId("overview");
  strip.setAttribute("aria-valuemax", count - 1);
  strip.addEventListener("keydown", (event) => {
    const stride = STRIDES[event.key];
    if (!stride || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    go(Math.max(0, Math.min(count - 1, stride(Math.max(here, 0)))));
  });
  strip.addEventListener("pointermove", (event) => (event.buttons & 1 ? go : point)(tokenUnder(event, strip)));
  strip.addEventListener("pointerdown", (event) => {
    strip.setPointerCapture(event.pointerId);
    go(tokenUnder(event, strip));
  });
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      paintWindow();
    });
  };
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", later);
}
