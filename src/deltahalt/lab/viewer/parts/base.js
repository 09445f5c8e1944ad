"use strict";

// Elements, and numbers in words.

const byId = (id) => document.getElementById(id);

function make(tag, fields = {}, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

function shape(tag, fields) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(fields)) node.setAttribute(name, value);
  return node;
}

function number(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) < 1e-3 ? value.toExponential(2) : Number(value.toPrecision(4)).toString();
}

// A share in percent that says 0 and 100 only where they are exact.
function percent(part, whole) {
  const rounded = Math.round((100 * part) / whole);
  if (rounded === 0 && part > 0) return "under 1 %";
  if (rounded === 100 && part < whole) return "over 99 %";
  return `${rounded} %`;
}

// A policy's text, which may be broken into lines between its options.
function policyText(text) {
  return text.split(/(?<=[,:+/])/).flatMap((part) => [part, make("wbr")]);
}
