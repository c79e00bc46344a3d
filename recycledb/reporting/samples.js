"use strict";
/* The table of samples. The index (one entry per sample) is decompressed at the start; blocks of texts are decompressed when needed.
   Texts are only inserted as text nodes, never as markup. */
(() => {
  const root = document.getElementById("browser");
  if (!root) return;
  const meta = JSON.parse(document.getElementById("meta").textContent);
  const el = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value != null) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const blocks = new Map(); // a cache of the last few, by number
  const block = (number) => {
    if (!blocks.has(number)) {
      blocks.set(number, unpack(`block-${number}`));
      if (blocks.size > 8) blocks.delete(blocks.keys().next().value);
    }
    return blocks.get(number);
  };
  const sampleOf = async (i) => (await block(Math.floor(i / meta.block)))[i % meta.block];

  // -- word diff: the longest common subsequence

  // A word includes the space after it, so that spaces alone never match.
  const words = (text) => text.match(/[\p{L}\p{N}_]+\s*|[^\s\p{L}\p{N}_]\s*|\s+/gu) ?? [];
  const MOST_CELLS = 16e6;
  const steps = (a, b) => {
    const out = [], tail = [];
    let start = 0, endA = a.length, endB = b.length;
    while (start < endA && start < endB && a[start] === b[start]) out.push(["same", a[start++]]);
    while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { tail.push(["same", a[--endA]]); endB--; }
    const n = endA - start, m = endB - start, width = m + 1;
    if (n * m > MOST_CELLS) { // too large for the table: mark everything as changed
      for (const word of a.slice(start, endA)) out.push(["del", word]);
      for (const word of b.slice(start, endB)) out.push(["ins", word]);
      return out.concat(tail.reverse());
    }
    const best = new Uint16Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
      const at = i * width + j;
      best[at] = a[start + i] === b[start + j] ? best[at + width + 1] + 1 : Math.max(best[at + width], best[at + 1]);
    }
    for (let i = 0, j = 0; i < n || j < m;) {
      const at = i * width + j;
      if (i < n && j < m && a[start + i] === b[start + j]) { out.push(["same", a[start + i]]); i++; j++; }
      else if (i < n && (j === m || best[at + width] >= best[at + 1])) out.push(["del", a[start + i++]]);
      else out.push(["ins", b[start + j++]]);
    }
    return out.concat(tail.reverse());
  };
  // One or two equal words between changes are a coincidence: merge them into one change.
  const FEWEST = 3;
  const diff = (before, after) => {
    const runs = [];
    for (const [kind, word] of steps(words(before), words(after))) {
      const same = kind === "same";
      if (!runs.length || runs[runs.length - 1].same !== same) runs.push({ same, words: 0, del: "", ins: "" });
      const run = runs[runs.length - 1];
      run.words++;
      if (kind !== "ins") run.del += word;
      if (kind !== "del") run.ins += word;
    }
    const out = [];
    runs.forEach((run, i) => {
      const same = run.same && (run.words >= FEWEST || i === 0 || i === runs.length - 1);
      const last = out[out.length - 1];
      if (last && last.same === same) { last.del += run.del; last.ins += run.ins; } else out.push({ same, del: run.del, ins: run.ins });
    });
    return out.flatMap((run) => (run.same ? [["same", run.ins]] : [["del", run.del], ["ins", run.ins]])).filter(([, text]) => text);
  };
  const marked = (before, after) => {
    const box = el("div", { class: "text" });
    for (const [kind, text] of diff(before, after)) box.append(kind === "same" ? text : el(kind, {}, text));
    return box;
  };

  // -- the details of one sample

  const ratio = (value) => (value == null ? "–" : value.toFixed(3));
  const scoreLine = (scores) =>
    meta.students.map((name, s) => `${name}: IFD ${ratio(scores?.[s]?.[0])}, rIFD ${ratio(scores?.[s]?.[1])}`).join(" · ");
  const column = (variant, scores, texts) => {
    const box = el("div", { class: meta.kinds[variant.k] }, el("h4", {}, el("span", { class: `chip ${meta.kinds[variant.k]}` }, meta.kinds[variant.k])));
    if (variant.t) box.firstChild.append(el("span", { class: "soft" }, ` by ${variant.t}`));
    box.append(el("div", { class: "soft" }, scoreLine(scores)), el("div", { class: "id soft" }, variant.id));
    for (const [name, node] of texts) if (node) box.append(el("h5", {}, name), node);
    return box;
  };
  const plain = (text) => el("div", { class: "text" }, text);
  const detail = (i, sample, cells) => {
    const origin = sample.v[0], scores = index[i][2];
    const panel = el("div");
    const others = sample.v.slice(1);
    const show = (chosen, compare) => {
      const changed = (name) => (compare ? marked(origin[name], chosen[name]) : plain(chosen[name]));
      const pair = el("div", { class: "pair" },
        column(origin, scores[0], [["context", sample.c && plain(sample.c)], ["instruction", plain(origin.i)], ["input", origin.n && plain(origin.n)], ["output", plain(origin.o)]]));
      if (chosen) pair.append(column(chosen, scores[sample.v.indexOf(chosen)],
        [["instruction", changed("i")], ["input", (chosen.n || origin.n) && changed("n")], ["output", changed("o")]]));
      const tabs = el("div", { class: "tabs" }, ...others.map((v) =>
        el("button", { type: "button", "aria-pressed": String(v === chosen), onclick: () => show(v, compare) }, meta.kinds[v.k])));
      if (chosen) tabs.append(el("button", { type: "button", class: "apart", "aria-pressed": String(compare), onclick: () => show(chosen, !compare) }, "mark changes"));
      panel.replaceChildren(tabs, pair);
    };
    show(others[others.length - 1], true);
    const taken = meta.selections.filter((_, s) => index[i][3].includes(s));
    return el("tr", { class: "detail" }, el("td", { colspan: cells },
      el("div", {}, el("span", { class: "id" }, sample.id), el("span", { class: "soft" }, taken.length ? ` picked by ${taken.join(", ")}` : " in no selection")),
      panel));
  };

  // -- the table and its pages

  const PAGE = 25;
  let index = [], found = [], at = 0, run = 0;
  const option = (value, text) => el("option", { value }, text);
  const search = el("input", { type: "search", placeholder: "Search ids and first words", "aria-label": "Search" });
  const everywhere = el("input", { type: "checkbox", id: "everywhere" });
  const kind = el("select", { "aria-label": "Kind" }, option("", "every sample"), ...meta.kinds.slice(1).flatMap((name, k) =>
    [option(`+${k + 1}`, `with ${name}`), option(`-${k + 1}`, `without ${name}`)]));
  const selection = el("select", { "aria-label": "Selection" }, option("", "any selection or none"), ...meta.selections.flatMap((name, s) =>
    [option(`+${s}`, `picked by ${name}`), option(`-${s}`, `not picked by ${name}`)]));
  const order = el("select", { "aria-label": "Order" }, option("", "in dataset order"), ...meta.students.flatMap((name, s) =>
    [option(`d${s}`, `origin's IFD under ${name}, highest first`), option(`a${s}`, `origin's IFD under ${name}, lowest first`)]));
  const status = el("span", { class: "soft", role: "status" });
  const body = el("tbody");
  const head = el("tr", {}, el("th", { class: "pos n" }, "position"), el("th", {}, "first words"), el("th", { class: "kinds" }, "variants"),
    ...meta.students.slice(0, 2).map((name) => el("th", { class: "score n", title: "IFD of the origin" }, `IFD, ${name}`)));
  const cells = head.children.length;
  const back = el("button", { type: "button", onclick: () => turn(at - PAGE) }, "← previous");
  const on = el("button", { type: "button", onclick: () => turn(at + PAGE) }, "next →");
  const where = el("span", { class: "soft" });
  root.append(
    el("div", { class: "tools" }, search, el("label", {}, everywhere, " in all texts"), kind, selection, order, status),
    el("div", { class: "scroll" }, el("table", { class: "rows" }, el("thead", {}, head), body)),
    el("div", { class: "pager" }, back, on, where));

  const matches = (chosen, has) => !chosen || (chosen[0] === "+") === has(Number(chosen.slice(1)));
  const inTexts = (sample, wanted) => sample.c?.toLowerCase().includes(wanted) || sample.v.some((v) => [v.id, v.i, v.n, v.o].some((text) => text.toLowerCase().includes(wanted)));
  const filter = async () => {
    const mine = ++run, wanted = search.value.trim().toLowerCase();
    const kept = [];
    index.forEach((row, i) => {
      if (matches(kind.value, (k) => row[1].includes(k)) && matches(selection.value, (s) => row[3].includes(s))) kept.push(i);
    });
    let result = kept;
    if (wanted && everywhere.checked) {
      result = [];
      for (let i = 0, last = -1; i < kept.length; i++) {
        const number = Math.floor(kept[i] / meta.block);
        if (number !== last) {
          last = number;
          status.textContent = `searching ${Math.round((100 * kept[i]) / index.length)} %`;
          await new Promise((done) => setTimeout(done));
          if (mine !== run) return;
        }
        if (inTexts(await sampleOf(kept[i]), wanted)) result.push(kept[i]);
      }
    } else if (wanted) result = kept.filter((i) => index[i][0].toLowerCase().includes(wanted) || (wanted.length > 3 && index[i][5].startsWith(wanted.slice(0, 12))));
    if (mine !== run) return;
    if (order.value) {
      const s = Number(order.value.slice(1)), sign = order.value[0] === "a" ? 1 : -1;
      const value = (i) => index[i][2][0]?.[s]?.[0];
      result = result.filter((i) => value(i) != null).sort((x, y) => sign * (value(x) - value(y)) || x - y);
    }
    found = result;
    status.textContent = `${found.length.toLocaleString("en")} of ${index.length.toLocaleString("en")} samples`;
    turn(0);
  };
  const row = (i) => {
    const [text, kinds, scores, , place] = index[i];
    const line = el("tr", { class: "row", tabindex: "0", "aria-expanded": "false" }, el("td", { class: "n pos", title: meta.datasets[place[0]] }, place[1].toLocaleString("en")),
      el("td", { class: "words" }, text), el("td", { class: "kinds" }, ...kinds.slice(1).map((k) => el("span", { class: `chip ${meta.kinds[k]}` }, meta.short[k]))),
      ...meta.students.slice(0, 2).map((_, s) => el("td", { class: "n score" }, ratio(scores[0]?.[s]?.[0]))));
    const toggle = async () => {
      if (line.nextSibling?.classList.contains("detail")) line.nextSibling.remove();
      else line.after(detail(i, await sampleOf(i), cells));
      line.setAttribute("aria-expanded", String(line.nextSibling?.classList.contains("detail") ?? false));
    };
    line.toggle = toggle;
    line.addEventListener("click", toggle);
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
    return line;
  };
  const turn = (to) => {
    at = Math.max(0, Math.min(to, found.length - 1));
    at -= at % PAGE;
    body.replaceChildren(...found.slice(at, at + PAGE).map(row));
    if (!found.length) body.append(el("tr", {}, el("td", { colspan: cells, class: "soft" }, "nothing matches")));
    where.textContent = found.length ? `${(at + 1).toLocaleString("en")}–${Math.min(at + PAGE, found.length).toLocaleString("en")}` : "";
    back.disabled = at === 0;
    on.disabled = at + PAGE >= found.length;
  };
  let waiting;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); });
  for (const node of [everywhere, kind, selection, order]) node.addEventListener("change", filter);
  status.textContent = "loading …";
  unpack("index").then(async (rows) => {
    index = rows;
    await filter();
    // #sample=<id prefix> opens that sample
    const asked = new URLSearchParams(location.hash.slice(1)).get("sample");
    if (asked) { search.value = asked; await filter(); await body.querySelector(".row")?.toggle(); root.scrollIntoView(); }
    document.documentElement.dataset.ready = "1";
  });
})();
