"use strict";
// The compare page: drag a rectangle to fill in the four bounds. The server computes the region from the numbers, by the same form.
const form = document.getElementById("compare");
const NEAR = 6; // units of the drawing: so near to its edge a bound is open
let from = null;

function place(event) { // where the pointer is, in units of the drawing
  const svg = document.querySelector("#picture svg");
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const box = boxOf();
  return { x: Math.min(box.right, Math.max(box.left, at.x)), y: Math.min(box.floor, Math.max(box.top, at.y)) };
}

function boxOf() {
  return Object.fromEntries(Object.entries(document.getElementById("picture").dataset).map(([name, value]) => [name, Number(value)]));
}

function draw(one, other) {
  const svg = document.querySelector("#picture svg");
  const old = svg.querySelector(".region");
  const mark = old || document.createElementNS("http://www.w3.org/2000/svg", "rect");
  mark.setAttribute("class", "region");
  mark.setAttribute("x", Math.min(one.x, other.x));
  mark.setAttribute("y", Math.min(one.y, other.y));
  mark.setAttribute("width", Math.abs(one.x - other.x));
  mark.setAttribute("height", Math.abs(one.y - other.y));
  if (!old) svg.append(mark);
}

function number(at, begin, end, low, high) { // with as many digits as the drawing can tell apart
  if (Math.abs(at - begin) < NEAR || Math.abs(at - end) < NEAR) return "";
  const value = low + ((at - begin) / (end - begin)) * (high - low);
  const digits = Math.min(12, Math.max(0, Math.ceil(-Math.log10((high - low) / 2000))));
  return String(Number(value.toFixed(digits)));
}

function address() {
  return `/compare?${new URLSearchParams([...new FormData(form)].filter(([, value]) => value))}`;
}

async function take(here, keep) {
  const answer = await fetch(here);
  const read = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!answer.ok || !read.getElementById("region")) { location.href = here; return; }
  for (const id of ["picture", "numbers", "region"]) document.getElementById(id).replaceChildren(...read.getElementById(id).childNodes);
  form.querySelector(".bounds").replaceWith(read.querySelector(".bounds"));
  if (keep) history.pushState(null, "", here);
}

document.querySelector("main").addEventListener("pointerdown", (event) => {
  if (!event.target.closest("#picture svg") || event.button) return;
  event.preventDefault();
  from = { ...place(event), target: event.target, moved: false };
  event.target.closest("svg").setPointerCapture(event.pointerId);
});
document.querySelector("main").addEventListener("pointermove", (event) => {
  if (!from) return;
  const to = place(event);
  from.moved = from.moved || Math.abs(to.x - from.x) + Math.abs(to.y - from.y) > 5;
  if (from.moved) draw(from, to);
});
document.querySelector("main").addEventListener("pointercancel", () => { from = null; });
document.querySelector("main").addEventListener("pointerup", (event) => {
  if (!from) return;
  const begun = from;
  const to = place(event);
  from = null;
  if (!begun.moved) {
    if (begun.target.dataset.id) location.href = `/samples/${begun.target.dataset.id}`;
    return;
  }
  const box = boxOf();
  const fields = form.elements;
  fields.xlow.value = number(Math.min(begun.x, to.x), box.left, box.right, box.xlow, box.xhigh);
  fields.xhigh.value = number(Math.max(begun.x, to.x), box.left, box.right, box.xlow, box.xhigh);
  fields.ylow.value = number(Math.max(begun.y, to.y), box.floor, box.top, box.ylow, box.yhigh);
  fields.yhigh.value = number(Math.min(begun.y, to.y), box.floor, box.top, box.ylow, box.yhigh);
  take(address(), true);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  take(address(), true);
});
form.addEventListener("change", (event) => {
  if (!event.target.matches("select")) return;
  for (const name of ["xlow", "xhigh", "ylow", "yhigh"]) form.elements[name].value = "";
  location.href = address();
});
addEventListener("popstate", () => take(location.href, false));
