// Finding words, in all columns.

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
  paintText();
  paintOverview();
  goToMatch(1);
}

function goToMatch(by) {
  if (matches.length) {
    match = (match + by + matches.length) % matches.length;
    go(matches[match][0]);
  }
  byId("found").textContent = byId("find").value ? `${match + 1} of ${matches.length}` : "";
}

