"use strict";
// The running sync: states come as server-sent events; texts are only inserted as text nodes, never as markup.
(() => {
  const root = document.getElementById("sync");
  if (!root.dataset.events) return;
  const at = (name) => document.getElementById(`sync-${name}`);
  const el = (name, attributes, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const number = (value, digits = 0) => (value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }));
  const dollars = (value) => (value == null ? "–" : `$${value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: value < 1 ? 4 : 2 })}`);
  const duration = (seconds) => {
    if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };
  const clock = (moment) => new Date(moment).toLocaleTimeString();
  const row = (...cells) => el("tr", {}, ...cells.map((cell) => (Array.isArray(cell) ? el("td", { class: cell[1] }, cell[0]) : el("td", {}, cell))));
  const card = (name, value, more) => el("div", {}, el("dt", {}, name), el("dd", {}, value, ...(more ? [el("small", {}, more)] : [])));

  const drawCards = (now) => {
    const left = now.left ?? {};
    const cards = [card("replies in this run", number(now.replies), now.replies_per_minute == null ? "" : `${number(now.replies_per_minute, 1)} a minute`)];
    if (now.running) cards.push(card("questions left", number(left.questions), left.seconds ? `about ${duration(left.seconds)}` : ""));
    cards.push(card("spent in this run", dollars(now.cost_usd), now.cost_unknown ? `+ ${number(now.cost_unknown)} of unknown cost` : `${number(now.tokens)} tokens`));
    if (now.running) cards.push(card("still to be spent", dollars(left.usd), left.usd == null ? (left.why == null ? "without known prices" : "") : "at most"));
    const rate = now.statistics_per_second;
    cards.push(card("statistics", number(now.statistics), rate == null ? "" : `${number(rate, 1)} a second`));
    if (now.running && left.statistics != null) cards.push(card("statistics left", number(left.statistics),
      left.statistics_seconds ? `about ${duration(left.statistics_seconds)}` : left.statistics_to_follow ? `up to ${number(left.statistics_to_follow)} more to follow` : ""));
    at("cards").replaceChildren(...cards);
  };
  const drawReplies = (now) => {
    at("last").replaceChildren(...now.last.map((reply) => {
      const link = el("a", { href: `/samples/${encodeURIComponent(reply.sample_id)}`, dir: "auto" }, reply.text || "(empty)");
      const line = row(link, reply.step, reply.teacher, [reply.cost_usd == null ? "–" : dollars(reply.cost_usd), "n"],
        [reply.duration_ms == null ? "–" : number(reply.duration_ms / 1000, 1), "n"]);
      if (reply.status !== "ok") line.className = "bad";
      return line;
    }));
    if (!now.last.length) at("last").append(el("tr", {}, el("td", { colspan: 5, class: "soft" }, "no reply yet")));
  };
  const draw = (now) => {
    const known = now.since !== undefined;
    at("run").hidden = !known;
    root.classList.toggle("off", !now.running);
    if (now.problem) at("state").textContent = now.problem;
    else if (!known) at("state").textContent = "No sync is running. One that is started in another terminal appears here.";
    else if (now.running) at("state").textContent = `Running since ${clock(now.since)}.`;
    else at("state").textContent = `No process is at work. The last ended at ${clock(now.ended_at)}.`;
    if (!known) return;
    drawCards(now);
    const left = now.left ?? {};
    at("left").textContent = left.why ? `Left to do: unknown (${left.why}).` : now.left
      ? "What is left is what recycledb.toml asks for; it is an upper bound, since some questions follow from replies." : "";
    at("progress").hidden = left.questions == null;
    if (left.questions != null) { at("progress").max = now.replies + left.questions || 1; at("progress").value = now.replies; }
    at("workers").replaceChildren(...now.workers.map((each) => row(each.machine, [String(each.pid), "n"], clock(each.started_at), clock(each.heartbeat_at),
      [number(each.sent), "n"], [number(Math.max(0, each.sent - each.answered)), "n"])));
    if (!now.workers.length) at("workers").append(el("tr", {}, el("td", { colspan: 6, class: "soft" }, "none")));
    at("steps").replaceChildren(...now.steps.map(([step, ...counts]) => row(step, ...counts.map((count) => [number(count), "n"]))));
    if (!now.steps.length) at("steps").append(el("tr", {}, el("td", { colspan: 4, class: "soft" }, "no reply yet")));
    at("failing").hidden = !now.failures.length;
    at("failures").replaceChildren(...now.failures.map(([reason, count, example]) => row(reason, [number(count), "n"], [example, "t"])));
    drawReplies(now);
  };

  // A browser opens few connections to one server: a page that nobody sees holds none.
  let source = null, was = null;
  const open = () => {
    if (source || document.hidden) return;
    source = new EventSource(root.dataset.events);
    source.addEventListener("sync", (event) => {
      const now = JSON.parse(event.data);
      draw(now);
      if (was && was !== `${now.replies} ${now.statistics} ${now.running}`) document.getElementById("newer").hidden = false;
      was = `${now.replies} ${now.statistics} ${now.running}`;
    });
    source.onerror = () => { at("state").textContent = "The server does not answer; trying again."; };
  };
  const close = () => { source?.close(); source = null; };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  open();
})();
