"use strict";
// A queue by keyboard. The next items are fetched ahead, a mark is sent while the next item is already shown, and an error brings it back.
const page = document.getElementById("review");
if (page) {
  const place = document.getElementById("place"), told = document.getElementById("told"), rate = document.getElementById("rate");
  const total = Number(page.dataset.total), query = page.dataset.query, AHEAD = 4, KEPT = 60;
  const words = { k: "keep", d: "drop", u: "unsure" };
  const fetched = new Map(); // place → promise of the item's HTML
  const marks = new Map(); // place → the mark given here
  const given = [], times = []; // for undo; when marks were given
  let done = Number(page.dataset.done), at = Number(document.getElementById("item").dataset.at), sending = Promise.resolve();

  const item = () => document.getElementById("item");
  const note = () => item().querySelector("input[name=note]");
  const fetchItem = (n) => {
    if (!fetched.has(n)) {
      const answer = fetch(`/review/item?${query}&at=${n}`).then((found) => {
        if (!found.ok) throw new Error(`the server answers ${found.status}`);
        return found.text();
      });
      answer.catch(() => fetched.delete(n));
      fetched.set(n, answer);
      if (fetched.size > KEPT) fetched.delete(fetched.keys().next().value);
    }
    return fetched.get(n);
  };
  const ahead = () => { for (let n = at + 1; n <= Math.min(at + AHEAD, total - 1); n++) fetchItem(n).catch(() => {}); };
  const paint = () => {
    const own = marks.has(at) ? marks.get(at) : item().dataset.mark;
    item().dataset.mark = own;
    for (const button of item().querySelectorAll("form.marks button")) {
      const word = button.textContent.trim();
      button.setAttribute("aria-pressed", String(word === own));
      button.value = word === own ? "none" : word;
    }
    document.getElementById("bar").value = done;
    document.getElementById("done").textContent = document.getElementById("done").textContent.replace(/^[\d,]+/, done.toLocaleString("en"));
    const span = times.length > 1 ? (times[times.length - 1] - times[0]) / 3.6e6 : 0;
    rate.textContent = span > 0 ? `${Math.round((times.length - 1) / span).toLocaleString("en")} an hour` : "";
  };
  const show = async (n) => {
    if (n < 0 || n >= total) { told.textContent = n < 0 ? "This is the first." : `This was the last: ${done.toLocaleString("en")} of ${total.toLocaleString("en")} marked.`; return; }
    const mine = (at = n);
    let html;
    try { html = await fetchItem(n); } catch (error) { told.textContent = `Not read: ${error.message}`; return; }
    if (mine !== at) return;
    place.innerHTML = html; // from the server's templates, which escape every text
    history.replaceState(null, "", `/review?${query}&at=${n}`);
    paint();
    ahead();
  };
  const send = (where, data) => {
    const body = JSON.stringify(data);
    sending = sending.then(async () => {
      let answer;
      try {
        answer = await fetch("/marks", { method: "POST", body, headers: { "content-type": "application/json", accept: "application/json" } });
        if (answer.ok) return;
      } catch (error) { answer = null; }
      const why = answer ? (await answer.json().catch(() => ({}))).error ?? `the server answers ${answer.status}` : "the server does not answer";
      marks.delete(where);
      fetched.delete(where);
      told.textContent = `The mark of item ${where + 1} is not stored: ${why}`;
      await show(where);
    });
  };
  const write = (where, from, mark, words) => {
    const before = from.mark;
    if (!before !== (mark === "none")) done += mark === "none" ? -1 : 1;
    marks.set(where, mark === "none" ? "" : mark);
    fetched.delete(where); // its marks have changed
    send(where, { sample_id: from.sample, variant_id: from.variant, mark, note: words, page: "review", variants: from.seen });
  };
  const mark = (word) => {
    const from = { ...item().dataset }, where = at;
    given.push({ where, from, before: from.mark || "none", word });
    times.push(performance.now());
    if (times.length > 30) times.shift();
    write(where, from, word, note().value);
    told.textContent = `${where + 1}: ${word}`;
    if (where + 1 < total) show(where + 1); else { paint(); show(total); }
  };
  const undo = () => {
    const last = given.pop();
    if (!last) { told.textContent = "Nothing to undo here; the buttons of an item change its mark."; return; }
    write(last.where, { ...last.from, mark: last.word }, last.before, "");
    times.pop();
    told.textContent = `${last.where + 1}: ${last.word} taken back`;
    sending = sending.then(() => show(last.where));
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === note()) {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      if (event.key === "Escape") note().value = "";
      note().blur();
      if (event.key === "Enter" && item().dataset.mark) { write(at, { ...item().dataset }, item().dataset.mark, note().value); told.textContent = `${at + 1}: noted`; }
      else if (event.key === "Enter" && note().value) told.textContent = "The note goes with the next mark of this item.";
      return;
    }
    if (event.target.closest("input, textarea, select")) return;
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (words[event.key]) mark(words[event.key]);
    else if (event.key === "z") undo();
    else if (event.key === "n") note().focus();
    else if (way) show(at + way);
    else return;
    event.preventDefault();
  });
  page.addEventListener("submit", (event) => { // the buttons do what the keys do
    event.preventDefault();
    const word = event.submitter?.value;
    if (word) mark(word);
  });
  window.addEventListener("popstate", () => location.reload());
  ahead();
}
