// Sort the cards by the column of a button, in both directions, and search them by id.
"use strict";
const cards = document.getElementById("cards");
const buttons = [...document.querySelectorAll("[data-by]")];
const byId = new Intl.Collator("en", {numeric: true});

function sort(button) {
  const {by, descending} = button.dataset;
  const name = by.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
  const sign = descending === "true" ? -1 : 1;
  const compare = (a, b) => {
    const [left, right] = [a.dataset[name], b.dataset[name]];
    const ids = byId.compare(a.dataset.patient, b.dataset.patient);
    if (by === "patient") return sign * ids;
    // Cards without a value stay at the end in both directions.
    if (left === "" || right === "") return (left === "") - (right === "") || ids;
    return sign * (Number(left) - Number(right)) || ids;
  };
  cards.append(...[...cards.children].sort(compare));
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-pressed") === "true") {
      button.dataset.descending = String(button.dataset.descending !== "true");
    }
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    sort(button);
  });
}

const find = document.getElementById("find");
find.addEventListener("input", () => {
  const part = find.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards.children) {
    card.hidden = !card.dataset.patient.toLowerCase().includes(part);
    shown += !card.hidden;
  }
  document.getElementById("none").hidden = shown > 0 || cards.children.length === 0;
});
