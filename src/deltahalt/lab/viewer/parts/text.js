// The text: a column for each policy, or one for the difference of two.

const BLOCK = 200; // tokens in a row of the text, which ends at the next line break
const LEVELS = 5; // shades of a score
const tokenAt = new WeakMap(); // of an element of the text
const rows = []; // begin and end, in tokens, and element of each

// The columns that are shown.
const columns = () => (pair ? [difference] : policies);

// A picture under a grid of its visual tokens, which are empty and let it be seen.
function picture(image) {
  const size = `${image.rows} lines of ${image.columns} visual tokens`;
  const grid = make("div", { className: "picture" }, make("img", { src: image.uri, alt: `${nameOf(image)}, ${size}` }));
  grid.style.setProperty("--columns", image.columns);
  grid.style.setProperty("--rows", image.rows);
  return grid;
}

function buildText() {
  for (let begin = 0; begin < count; ) {
    let end = Math.min(begin + BLOCK, count);
    while (end < count && end < begin + 5 * BLOCK && !record.tokens[end - 1].endsWith("\n")) end++;
    const cut = end < count && imageOf(end);
    if (cut && cut.begin < end) end = endOf(cut); // a picture is in one row
    rows.push({ begin, end, element: make("div", { className: "row" }) });
    begin = end;
  }
  for (const policy of policies) fillColumn(policy);
  byId("text").append(...rows.map(({ element }) => element));
}

function fillColumn(column) {
  for (const { begin, end, element } of rows) {
    const cell = make("div", { className: column === difference ? "cell difference" : "cell" });
    for (let token = begin; token < end; token++) {
      const image = imageOf(token);
      if (image?.begin === token) cell.append(picture(image));
      column.cells[token] = make("span", { textContent: record.tokens[token] });
      tokenAt.set(column.cells[token], token);
      (image ? cell.lastElementChild : cell).append(column.cells[token]);
    }
    element.append(cell);
  }
}

// For each column that is shown: a function from a token to its state, kept or halted, and to its further classes.
function dresses() {
  if (pair) {
    const fate = fateOfPair();
    return [(token) => [fate(token) < 3 ? "kept" : "halted", ` ${FATES[fate(token)]}`]];
  }
  return policies.map((policy) => {
    const done = stagesDone(policy);
    const latest = policy.stages[done - 1];
    return (token) => {
      const state = runs(policy, token, done) ? "kept" : "halted";
      let names = state === "halted" ? ` ${stageClass(policy.halted[token])}` : "";
      if (latest && !Number.isNaN(latest.value[token])) {
        const below = 1 - higher(latest.sorted, latest.value[token]) / latest.sorted.length;
        names += ` q${Math.min(LEVELS, 1 + Math.floor(below * LEVELS))}`;
      }
      return [state, names];
    };
  });
}

function paintText() {
  const hits = new Uint8Array(count);
  for (const [first, last] of matches) hits.fill(1, first, last + 1);
  const dress = dresses();
  columns().forEach(({ cells }, column) => {
    let before = "";
    for (let token = 0; token < count; token++) {
      let [state, names] = dress[column](token);
      if (state !== before) names += " head";
      if (hits[token]) names += " hit";
      if (token === here) names += " here";
      cells[token].className = state + names;
      before = state;
    }
  });
}

// The names over the columns.
function paintNames() {
  const title = ({ letter, policy }) => make("h2", { title: policy }, make("b", { className: "letter", textContent: letter }), " ", policy);
  const when = layer < 0 ? "before layer 0" : `after layer ${layer}`;
  const meaning = pair ? [make("p", { className: "facts", textContent: `Active ${when} under both policies, under one alone, or under neither.` })] : [];
  byId("names").classList.toggle("paired", pair !== null);
  byId("names").replaceChildren(...(pair ?? policies).map(title), ...meaning);
}
