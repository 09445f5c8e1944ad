// Start: build what stays, paint what changes, and listen to the controls.

function paint() {
  byId("layer").value = layer;
  byId("layer-shown").textContent = layer < 0 ? "none" : layer;
  paintText();
  paintNames();
  paintOverview();
  paintLayers();
}

function setLayer(value) {
  layer = value;
  paint();
}

function dress() {
  byId("text").className = `${pair ? "paired" : byId("shade").value} only-${byId("show").value}`;
  paintWindow();
}

function switchScheme() {
  const root = document.documentElement;
  const asked = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.style.colorScheme = asked === "dark" ? "light" : "dark";
}

function listen(id, event, act) {
  byId(id).addEventListener(event, act);
}

document.documentElement.style.setProperty("--policies", policies.length);
byId("facts").textContent = `${number(count)} tokens, ${record.layers} layers`;
byId("question").textContent = record.question;
Object.assign(byId("layer"), { min: -1, max: record.layers - 1 });
buildAnswers();
buildCards();
buildText();
buildPairs();
buildOverview();
listen("layer", "input", (event) => setLayer(Number(event.target.value)));
listen("pair", "change", (event) => choosePair(event.target.value));
listen("show", "change", dress);
listen("shade", "change", dress);
listen("find", "input", (event) => find(event.target.value));
listen("find", "keydown", (event) => event.key === "Enter" && goToMatch(event.shiftKey ? -1 : 1));
listen("next", "click", () => goToMatch(1));
listen("previous", "click", () => goToMatch(-1));
listen("theme", "click", switchScheme);
listen("text", "mouseover", (event) => point(tokenAt.get(event.target) ?? -1));
listen("text", "keydown", onKey);
paint();
dress();
