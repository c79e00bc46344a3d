"use strict";
// Lists go on when their end comes into view: the rows after the last one are fetched by key.
const lines = document.getElementById("lines");
if (lines) {
  const watcher = new IntersectionObserver(async (entries) => {
    if (!entries.some((each) => each.isIntersecting) || !lines.dataset.more) return;
    const more = lines.dataset.more;
    lines.dataset.more = "";
    const answer = await fetch(`/samples?${more}&rows=1`);
    if (!answer.ok) return;
    lines.querySelectorAll("tr.more").forEach((each) => each.remove());
    lines.insertAdjacentHTML("beforeend", await answer.text());
    const last = lines.querySelector("tr.more");
    lines.dataset.more = last ? last.dataset.more : "";
    watcher.disconnect();
    if (lines.lastElementChild) watcher.observe(lines.querySelector("tr[data-id]:last-of-type") || lines.lastElementChild);
  }, { rootMargin: "800px" });
  const rows = lines.querySelectorAll("tr[data-id]");
  if (rows.length) watcher.observe(rows[rows.length - 1]);
}
