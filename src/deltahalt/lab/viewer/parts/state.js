// What is shown now.

let layer = record.layers - 1; // the text is shown as after this layer
let here = -1; // the token whose details are shown
let pair = null; // the two policies whose difference is shown in place of the columns of all
let matches = []; // [first, last] token of each
let match = -1;

const stageClass = (stage) => `stage-${Math.min(stage + 1, 3)}`;
const stagesDone = (policy) => policy.stages.filter((stage) => stage.layer <= layer).length;

// A test of tokens: which run on after the layer.
function active(policy) {
  const done = stagesDone(policy);
  return (token) => runs(policy, token, done);
}
