"use strict";
// The SQL page: runs without leaving the page, Cancel, indentation, names that fit, fields for parameters. Without this script its buttons work too.
const form = document.getElementById("query");
const editor = document.getElementById("q");
const outcome = document.getElementById("outcome");
const cancel = document.getElementById("cancel");
const clock = document.getElementById("clock");
const LONGEST_ADDRESS = 30000;

// -- running

let running = null; // the name of the run, its AbortController and its beginning

function address() {
  const pairs = new URLSearchParams([["q", editor.value]]);
  for (const [name, value] of new FormData(form)) if (value && (name.startsWith(":") || name === "limit")) pairs.append(name, value);
  return `/sql?${pairs}`;
}

function keepAddress() {
  const here = address();
  if (here.length <= LONGEST_ADDRESS) history.replaceState(null, "", here);
}

function show(html) {
  const read = new DOMParser().parseFromString(html, "text/html");
  outcome.replaceChildren(...read.body.childNodes);
}

function tell(text) {
  const line = document.createElement("p");
  line.className = "error";
  line.setAttribute("role", "alert");
  line.textContent = text;
  outcome.replaceChildren(line);
}

function save(file, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function send(button) {
  if (running) return;
  const fields = new URLSearchParams(new FormData(form));
  fields.set("action", button.value);
  fields.set("part", "1");
  running = { name: crypto.randomUUID(), stop: new AbortController(), began: Date.now() };
  fields.set("run", running.name);
  keepAddress();
  const ticking = setInterval(() => { clock.textContent = `${((Date.now() - running.began) / 1000).toFixed(1)} s`; }, 100);
  cancel.hidden = !/^(run$|download-)/.test(button.value);
  form.querySelectorAll("button[name=action]").forEach((each) => { each.disabled = true; });
  outcome.setAttribute("aria-busy", "true");
  outcome.querySelector("[role=alert]")?.remove();
  try {
    const answer = await fetch("/sql", { method: "POST", body: fields, signal: running.stop.signal });
    const named = /filename(?:="([^"]*)"|\*=utf-8''([^;]+))/.exec(answer.headers.get("content-disposition") || "");
    if (named) return save(await answer.blob(), named[1] || decodeURIComponent(named[2]));
    const text = await answer.text();
    if (answer.headers.get("content-type").startsWith("text/html")) show(text);
    else tell(text);
  } catch (error) {
    tell(`The server did not answer: ${error.message}. Is recycledb view still running?`);
  } finally {
    clearInterval(ticking);
    clock.textContent = "";
    cancel.hidden = true;
    running = null;
    outcome.removeAttribute("aria-busy");
    form.querySelectorAll("button[name=action]").forEach((each) => { each.disabled = false; });
  }
}

form.addEventListener("submit", (event) => {
  const button = event.submitter || form.querySelector("button[value=run]");
  keepAddress();
  event.preventDefault();
  send(button);
});
cancel.addEventListener("click", () => {
  if (running) fetch("/sql/cancel", { method: "POST", body: new URLSearchParams({ run: running.name }) });
});
addEventListener("pagehide", () => {
  if (running) navigator.sendBeacon("/sql/cancel", new URLSearchParams({ run: running.name }));
});
outcome.addEventListener("change", (event) => {
  if (event.target.matches("select[name=x], select[name=y]")) send(form.querySelector("button[value=run]"));
});

// -- the fields of parameters: the server knows what is a parameter; it is asked when the names in the text change

let known = names(editor.value);
let waiting = 0;

function names(text) {
  return (text.match(/[:$][A-Za-z_]\w*|^--\s*@param.*$/gm) || []).join("\n");
}

async function updateFields() {
  const now = names(editor.value);
  if (now === known) return;
  known = now;
  const answer = await fetch("/sql/fields", { method: "POST", body: new URLSearchParams(new FormData(form)) });
  if (!answer.ok) return;
  const read = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.getElementById("fields").replaceChildren(...read.body.childNodes);
}

// -- the editor

function write(text) { // as if typed, so that it can be undone
  editor.focus();
  if (!document.execCommand("insertText", false, text)) editor.setRangeText(text, editor.selectionStart, editor.selectionEnd, "end");
}

function indent(back) {
  const { selectionStart: start, selectionEnd: end, value } = editor;
  const first = value.lastIndexOf("\n", start - 1) + 1;
  if (!back && start === end) return write(" ".repeat(4 - ((start - first) % 4)));
  const lines = value.slice(first, end).split("\n");
  const moved = lines.map((line) => (back ? line.replace(/^ {1,4}|^\t/, "") : `    ${line}`)).join("\n");
  editor.setSelectionRange(first, end);
  write(moved);
  editor.setSelectionRange(start === end ? Math.max(first, start + moved.length - (end - first)) : first, first + moved.length);
}

let schema = {}; // columns by view
let leaving = false; // after Escape, Tab leaves the editor
const list = document.getElementById("suggestions");
fetch("/sql/names").then((answer) => answer.json()).then((found) => { schema = found; });

function word() {
  return /(?<![\w:$])[A-Za-z_]\w*$/.exec(editor.value.slice(0, editor.selectionStart))?.[0] || ""; // no parameter: :name
}

function fitting() {
  const start = word().toLowerCase();
  if (start.length < 2 || editor.selectionStart !== editor.selectionEnd) return [];
  const used = Object.keys(schema).filter((view) => new RegExp(`\\b${view}\\b`, "i").test(editor.value));
  const found = new Map(Object.keys(schema).map((view) => [view, "view"]));
  for (const view of used.length ? used : Object.keys(schema)) for (const column of schema[view]) if (!found.has(column)) found.set(column, view);
  return [...found].filter(([name]) => name.toLowerCase().startsWith(start) && name.toLowerCase() !== start).slice(0, 8);
}

function suggest() {
  const found = fitting();
  list.replaceChildren(...found.map(([name, where], i) => {
    const line = document.createElement("li");
    line.id = `suggestion-${i}`;
    line.setAttribute("role", "option");
    line.setAttribute("aria-selected", String(i === 0));
    line.dataset.name = name;
    line.textContent = name;
    const from = document.createElement("small");
    from.textContent = where;
    line.append(from);
    return line;
  }));
  list.hidden = !found.length;
  if (found.length) {
    editor.setAttribute("aria-activedescendant", "suggestion-0");
    const above = editor.value.slice(0, editor.selectionStart).split("\n").length;
    const style = getComputedStyle(editor);
    const below = above * parseFloat(style.lineHeight) + parseFloat(style.paddingTop) - editor.scrollTop;
    list.style.top = `${editor.offsetTop + Math.min(below, editor.offsetHeight) + 2}px`;
    list.style.left = `${editor.offsetLeft + 12}px`;
  } else editor.removeAttribute("aria-activedescendant");
}

function close() {
  list.hidden = true;
  editor.removeAttribute("aria-activedescendant");
}

function take(name) {
  const at = editor.selectionStart;
  editor.setSelectionRange(at - word().length, at);
  write(name);
  close();
}

function move(step) {
  const all = [...list.children];
  const at = all.findIndex((each) => each.getAttribute("aria-selected") === "true");
  const next = all[(at + step + all.length) % all.length];
  all.forEach((each) => each.setAttribute("aria-selected", String(each === next)));
  editor.setAttribute("aria-activedescendant", next.id);
}

editor.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    close();
    send(form.querySelector("button[value=run]"));
  } else if (event.key === "Tab" && !event.altKey && !event.ctrlKey && !leaving) {
    event.preventDefault();
    const chosen = list.hidden ? null : list.querySelector("[aria-selected=true]");
    if (chosen && !event.shiftKey) take(chosen.dataset.name);
    else indent(event.shiftKey);
  } else if (!list.hidden && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    event.preventDefault();
    move(event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "Escape" && !list.hidden) {
    close();
  } else {
    if (/^(Arrow|Home|End|Page)/.test(event.key)) close();
    leaving = event.key === "Escape" || (leaving && ["Tab", "Shift"].includes(event.key));
  }
});
editor.addEventListener("input", () => {
  suggest();
  clearTimeout(waiting);
  waiting = setTimeout(updateFields, 250);
});
editor.addEventListener("blur", () => { leaving = false; setTimeout(close, 150); });
editor.addEventListener("click", close);
list.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  const line = event.target.closest("li");
  if (line) take(line.dataset.name);
});
document.querySelector(".schema").addEventListener("click", (event) => {
  const name = event.target.closest("button.name");
  if (name) write(name.dataset.name);
});
