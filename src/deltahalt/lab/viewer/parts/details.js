// What is known of one token.

const AROUND = 16; // tokens of context on either side

function point(token) {
  if (token < 0 || token >= count || token === here) return;
  for (const { cells } of columns()) {
    cells[here]?.classList.remove("here");
    cells[token].classList.add("here");
  }
  for (const policy of policies) for (const stage of policy.stages) stage.mark(stage.value[token]);
  for (const mark of document.querySelectorAll(".at-token")) mark.style.left = `${(100 * (token + 0.5)) / count}%`;
  here = token;
  const known = policies.map((policy) => {
    const lines = [`${policy.letter}: ${fateOf(policy, token)}`, ...policy.stages.filter((stage) => stage.layer >= 0).map((stage) => scoreOf(stage, token))];
    return make("div", {}, ...lines.map((textContent) => make("p", { textContent })));
  });
  const place = `token ${number(token)} of ${number(count)}`;
  byId("details").replaceChildren(
    make("p", {}, make("code", { textContent: describe(token) }), ` ${place}`, context(token)),
    make("div", { className: "columns" }, ...known),
  );
  byId("overview").setAttribute("aria-valuenow", token);
  byId("overview").setAttribute("aria-valuetext", `${place}: ${describe(token)}`);
}

// A token's text, or its place in a picture.
function describe(token) {
  const image = imageOf(token);
  if (!image) return JSON.stringify(record.tokens[token]);
  const place = token - image.begin;
  return `${nameOf(image)}, line ${1 + Math.floor(place / image.columns)}, column ${1 + (place % image.columns)}`;
}

// The words around a token, in one line.
function context(token) {
  const text = (begin, end) => record.tokens.slice(Math.max(0, begin), end).join("");
  const words = make("bdi", { className: "context" }, text(token - AROUND, token), make("b", { textContent: text(token, token + 1) }), text(token + 1, token + 1 + AROUND));
  words.setAttribute("aria-hidden", "true");
  return words;
}

function fateOf(policy, token) {
  const stage = policy.halted[token];
  if (stage >= 0) return `halted ${placeOf(policy.stages[stage])}`;
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
