"use strict";
// The list goes on when its end comes into view; the rows after the last one are asked for by its key.
const lines = document.getElementById("lines");
const watcher = new IntersectionObserver(async (entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    const answer = await fetch(`/samples?${target.dataset.more}&rows=1`);
    if (!answer.ok) return; // the link stays
    target.outerHTML = await answer.text(); // escaped by the template, as the page itself is
    watch();
  }
}, { rootMargin: "1200px" });
function watch() {
  const more = lines && lines.querySelector("tr.more");
  if (more) watcher.observe(more);
}
watch();

// On a narrow screen the list comes first.
if (matchMedia("(max-width: 800px)").matches) document.getElementById("all-filters").open = false;

// Choosing is applying; only the words and the ends of a range wait for Enter or the button.
const filters = document.getElementById("filters");
filters.addEventListener("change", (event) => {
  const { name } = event.target;
  if (name === "sort_by" || (name === "direction" && filters.sort_by.value)) filters.requestSubmit();
});

// Back from a sample leads to its place in the list.
if (lines) {
  lines.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-id]");
    if (!row || !event.target.closest("a")) return;
    const rows = [...lines.querySelectorAll("tr[data-id]")];
    const before = rows[rows.indexOf(row) - 3];
    const address = new URL(location.href);
    if (before && rows.indexOf(row) > 40) {
      address.searchParams.set("after", before.dataset.id);
      history.replaceState(null, "", address);
    }
  });
}

// j and k, or the arrows, move from sample to sample; Enter opens it.
document.addEventListener("keydown", (event) => {
  if (!lines || event.ctrlKey || event.metaKey || event.target.closest("input, textarea, select")) return;
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const links = [...lines.querySelectorAll("tr[data-id] a")];
  const at = links.indexOf(document.activeElement);
  const next = links[at < 0 ? 0 : at + step];
  if (next) {
    event.preventDefault();
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }
});
