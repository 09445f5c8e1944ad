// A policy's card: what it saves, which tokens run in which layer, and its decisions as histograms with the cut.

const BINS = 60;

function buildCards() {
  byId("policies").append(
    ...policies.map((policy) => {
      const kept = tally((token) => policy.halted[token] < 0);
      const facts = make("p", { className: "facts" });
      const all = make("span", { className: "kept", textContent: "active in all layers" });
      facts.append(`${number(kept)} of ${number(count)} tokens are `, all, `; ${policy.speedup.toFixed(2)}x fewer FLOPs${record.images.length ? " in the decoder" : ""}`);
      const title = make("h2", {}, make("b", { className: "letter", textContent: policy.letter }), " ", ...policyText(policy.policy));
      return make("article", {}, title, facts, layersPicture(policy), make("div", {}, ...policy.stages.map((stage, index) => histogram(policy, stage, index))));
    }),
  );
}

// Bars of how many eligible tokens have which score: those that stay in colour, those that halt in grey.
function histogram(policy, stage, index) {
  const halted = tally((token) => policy.halted[token] === index);
  if (stage.layer < 0) {
    const visual = stage.eligible.reduce((all, [begin, end]) => all + end - begin, 0);
    stage.mark = () => {};
    return make("figure", {}, make("figcaption", { textContent: `${number(halted)} of ${number(visual)} visual tokens halt ${placeOf(stage)}` }));
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
  const name = make("span", { className: `halted ${stageClass(index)}`, textContent: placeOf(stage) });
  caption.append(`${number(halted)} of ${number(stage.sorted.length)} eligible tokens halt `, name, `, ${cut}`);
  const axis = make("div", { className: "axis" });
  axis.append(
    make("span", { textContent: number(low) }),
    make("span", { textContent: wide ? `${ranked}, logarithmic` : ranked }),
    make("span", { textContent: number(high) }),
  );
  return make("figure", {}, caption, svg, axis);
}
