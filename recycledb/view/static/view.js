"use strict";
// On every page: g and a letter opens a page, / goes to the search field. Not while something is typed.
const PAGES = { o: "/", s: "/samples", c: "/compare", q: "/sql", r: "/review" };
let going = false;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  if (going && PAGES[event.key]) location.href = PAGES[event.key];
  going = event.key === "g";
  const search = document.querySelector("input[type=search]");
  if (event.key === "/" && search) {
    event.preventDefault();
    search.focus();
  }
});
