// The difference of two policies: each token is kept by both, by one of them, or by neither.

const difference = { cells: new Array(count) };
const FATES = ["both", "first", "second", "neither"];

// A token's fate under the two policies, a place in FATES.
function fateOfPair() {
  const [first, second] = pair.map(active);
  return (token) => (first(token) ? (second(token) ? 0 : 1) : second(token) ? 2 : 3);
}

const fateNames = () => ["both", `only ${pair[0].letter}`, `only ${pair[1].letter}`, "neither"];

function buildPairs() {
  policies.forEach((first, index) => {
    for (const second of policies.slice(index + 1)) {
      const chosen = make("option", { textContent: `${first.letter} with ${second.letter}` });
      chosen.value = `${index} ${policies.indexOf(second)}`;
      byId("pair").append(chosen);
    }
  });
  byId("pair").parentElement.hidden = policies.length < 2;
}

// Show the difference of two policies, or with "" each policy by itself.
function choosePair(value) {
  pair = value === "" ? null : value.split(" ").map((index) => policies[index]);
  if (pair && !difference.cells[0]) fillColumn(difference);
  byId("shade").disabled = pair !== null;
  paint();
  dress();
}
