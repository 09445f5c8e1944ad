// Moving through the text.

// The element of a token in the first column that shows it, and its box. Patches that are not to be seen are covered.
const COVERED = ".only-kept .picture .halted, .only-halted .picture .kept";
const visible = (cell) => cell?.getClientRects().length && !cell.matches(COVERED);
const shown = (token) => columns().map(({ cells }) => cells[token]).find(visible);
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
  go(move());
}

// Points at a token and scrolls there.
function go(token) {
  point(token);
  reveal(here);
}

function reveal(token) {
  (shown(token) ?? columns()[0].cells[token])?.scrollIntoView({ block: "center" });
}

