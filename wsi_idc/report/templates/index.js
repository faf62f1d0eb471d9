// Sort cards and rows of the table by a column, filter them by id and role, and change the view.
"use strict";
const cards = document.getElementById("cards"), table = document.getElementById("rows");
const groups = [cards, table.querySelector("tbody")];
const buttons = [...document.querySelectorAll("[data-by]")];
const views = [...document.querySelectorAll("[data-view]")];
const byId = new Intl.Collator("en", {numeric: true});

function sort(by, descending) {
  const name = by.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
  const sign = descending ? -1 : 1;
  const compare = (a, b) => {
    const [left, right] = [a.dataset[name], b.dataset[name]];
    const ids = byId.compare(a.dataset.patient, b.dataset.patient);
    if (by === "patient") return sign * ids;
    // Items without a value stay at the end in both directions.
    if (left === "" || right === "") return (left === "") - (right === "") || ids;
    return sign * (Number(left) - Number(right)) || ids;
  };
  for (const group of groups) group.append(...[...group.children].sort(compare));
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    const {by, descending} = button.dataset;
    const isSame = button.getAttribute("aria-pressed") === "true";
    const descends = (descending === "true") !== isSame;
    for (const other of buttons) {
      other.setAttribute("aria-pressed", String(other.dataset.by === by));
      if (other.dataset.by === by) other.dataset.descending = String(descends);
    }
    sort(by, descends);
  });
}

const find = document.getElementById("find"), role = document.getElementById("role");
function filter() {
  const part = find.value.trim().toLowerCase();
  for (const item of groups.flatMap((group) => [...group.children])) {
    const isFound = item.dataset.patient.toLowerCase().includes(part);
    item.hidden = !isFound || (role?.value && item.dataset.role !== role.value);
  }
  const shown = [...cards.children].filter((card) => !card.hidden).length;
  document.getElementById("shown").textContent = shown;
  document.getElementById("none").hidden = shown > 0 || cards.children.length === 0;
}
find.addEventListener("input", filter);
role?.addEventListener("change", filter);
filter();  // a browser that goes back to the page keeps the texts of the controls

// The address has the view, so that the browser's button "back" returns to it.
function show(view) {
  cards.hidden = view === "table";
  table.hidden = !cards.hidden;
  document.getElementById("sorts").hidden = cards.hidden;
  for (const button of views) {
    button.setAttribute("aria-pressed", String((button.dataset.view === "table") === cards.hidden));
  }
}
for (const button of views) {
  button.addEventListener("click", () => { location.hash = button.dataset.view; });
}
window.addEventListener("hashchange", () => show(location.hash.slice(1)));
show(location.hash.slice(1));
