// What the full model and each policy answered.

function buildAnswers() {
  if (!record.answer) return;
  const table = byId("answers");
  table.hidden = false;
  table.tBodies[0].append(answerRow("full model", "", record.answer, null));
  for (const policy of policies) {
    table.tBodies[0].append(answerRow(policy.letter, policy.policy, policy.answer, record.answer));
  }
}

function answerRow(name, text, answer, full) {
  const title = make("th", { scope: "row", title: text }, make("span", { className: text && "letter", textContent: name }), " ", make("code", { textContent: text }));
  return make("tr", {}, title, make("td", {}, answerText(answer, full)), make("td", { className: "facts", textContent: remark(answer, full) }));
}

// The answer, underlined from the word on where it leaves the full model's.
function answerText(answer, full) {
  if (!answer.text) return make("i", { textContent: "(an empty answer)" });
  const same = full ? sharedWords(answer.text, full.text) : answer.text.length;
  const rest = make("span", { className: "differs", textContent: answer.text.slice(same) });
  return make("bdi", {}, answer.text.slice(0, same), rest, answer.cut ? " \u2026" : "");
}

function remark(answer, full) {
  const length = `${answer.cut ? "cut at " : ""}${number(answer.tokens)} ${answer.tokens === 1 ? "token" : "tokens"}`;
  if (!full) return length;
  if (answer.text === full.text) return `as the full model; ${length}`;
  const same = sharedWords(answer.text, full.text);
  return `${same < answer.text.length ? "differs where underlined" : "ends earlier"}; ${length}`;
}

// How many characters of whole words two texts begin with in common.
function sharedWords(one, other) {
  const [own, others] = [one, other].map((text) => text.match(/\s*\S+\s*/g) ?? []);
  let same = 0;
  for (let at = 0; at < own.length && own[at].trim() === others[at]?.trim(); at++) same += own[at].length;
  return same;
}
