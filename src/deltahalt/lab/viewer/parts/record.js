// What the record says, by token.

const record = JSON.parse(byId("record").textContent);
const count = record.tokens.length;

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

// A, B, ..., Z, AA, AB, ...
function letters(index) {
  const last = String.fromCharCode(65 + (index % 26));
  return index < 26 ? last : letters(Math.floor(index / 26) - 1) + last;
}

const policies = record.policies.map((policy, index) => ({
  ...policy,
  letter: letters(index),
  stages: policy.stages.map((stage, at) => byToken(stage, at, policy.halted)),
  cells: new Array(count), // the element of each token
}));

// Whether a token still runs after the first `done` decisions of a policy.
const runs = (policy, token, done) => policy.halted[token] < 0 || policy.halted[token] >= done;

// How many tokens pass a test.
function tally(test) {
  let found = 0;
  for (let token = 0; token < count; token++) found += test(token);
  return found;
}

// The prompt in `most` equal parts or fewer: for each part, the share of its tokens that pass a test.
function shares(most, test) {
  const parts = Math.min(count, most);
  const all = new Float64Array(parts);
  const found = new Float64Array(parts);
  for (let token = 0; token < count; token++) {
    const part = Math.floor((token * parts) / count);
    all[part]++;
    found[part] += test(token);
  }
  return found.map((some, part) => some / all[part]);
}

const imageOf = (token) => record.images.find(({ begin, rows, columns }) => begin <= token && token < begin + rows * columns);
const endOf = (image) => image.begin + image.rows * image.columns;
const nameOf = (image) => `image ${record.images.indexOf(image) + 1}`;

// Where a decision halts tokens.
function placeOf(stage) {
  if (stage.layer < 0) return "in the ViT, before layer 0";
  const layer = `layer ${stage.layer}${record.images.length ? " of the decoder" : ""}`;
  return stage.boundary === "attention" ? `in ${layer}, after its attention` : `after ${layer}`;
}
