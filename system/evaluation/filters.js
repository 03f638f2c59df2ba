"use strict";
const cards = [...document.querySelectorAll(".prompt-card")];
const grid = document.getElementById("cards");
const control = (id) => document.getElementById(id);
const scoresOf = new Map(cards.map((card) => [card, JSON.parse(card.dataset.scores)]));

/* The score of model A minus that of model B; null if either is a hole. */
function difference(card) {
  const scores = scoresOf.get(card), score = control("score").value;
  const a = scores[control("model-a").value][score], b = scores[control("model-b").value][score];
  return a == null || b == null ? null : a - b;
}

function isShown(card, gap) {
  const wanted = (id) => control(id).value;
  if (wanted("set") && card.dataset.set !== wanted("set")) return false;
  if (wanted("category") && card.dataset.category !== wanted("category")) return false;
  if (!card.dataset.prompt.includes(wanted("prompt").toLowerCase())) return false;
  const low = control("low").valueAsNumber, high = control("high").valueAsNumber;
  if (Number.isNaN(low) && Number.isNaN(high)) return true;
  return gap !== null && !(gap < low) && !(gap > high);
}

function update() {
  const gaps = new Map(cards.map((card) => [card, difference(card)]));
  const order = control("order").value, sorted = [...cards];
  if (order !== "file") {
    const sign = order === "gain" ? -1 : 1;
    const place = (card) => gaps.get(card) === null ? Infinity : sign * gaps.get(card);
    sorted.sort((left, right) => place(left) < place(right) ? -1 : place(left) > place(right) ? 1 : 0);
  }
  let shown = 0;
  for (const card of sorted) {
    const gap = gaps.get(card);
    card.hidden = !isShown(card, gap);
    shown += !card.hidden;
    const text = card.querySelector(".gap");
    text.textContent = gap === null ? "–" : (gap > 0 ? "+" : gap < 0 ? "−" : "") + Number(Math.abs(gap).toPrecision(3));
    text.className = "gap " + (gap > 0 ? "up" : gap < 0 ? "down" : "");
    grid.append(card);
  }
  control("count").textContent = `${shown} of ${cards.length} prompts`;
}

document.getElementById("filters").hidden = false;
document.getElementById("filters").addEventListener("input", update);
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("filters").addEventListener("reset", () => setTimeout(update));
update();
