"use strict";
// What is rated is in #data; what was rated is in localStorage, under the fingerprint of #data.
const data = JSON.parse(document.getElementById("data").textContent);
const storageKey = `mlcalib-ratings:${data.fingerprint}`;
const at = (id) => document.getElementById(id);

// {rater: name | null, raters: {name: {languages: [code], ratings: [{item, ...}]}}}
let state = load();
let order = []; // indices of data.items, in the order of the rater
let shown = 0; // when the item came on the screen, ms
let storable = true;

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(storageKey));
    if (kept && kept.raters) return { rater: kept.rater, raters: Object.assign(Object.create(null), kept.raters) };
  } catch { /* nothing is kept, or nothing can be: save() tells */ }
  return { rater: null, raters: Object.create(null) };
}

function save() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(state));
    storable = true;
  } catch {
    storable = false;
  }
}

// 32 well-mixed bits of a text (FNV-1a, then the finalizer of MurmurHash3).
function hash(text) {
  let bits = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) bits = Math.imul(bits ^ byte, 0x01000193);
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}

const mine = () => state.raters[state.rater];
const draw = (what, item) => hash(JSON.stringify([data.seed, state.rater, what, item]));
// Which answer of the item stands left: 0 or 1.
const left = (item) => draw("side", item) >>> 31;

function sort() {
  const languages = new Set(mine().languages);
  order = data.items.map((_, item) => item).filter((item) => languages.has(data.items[item].language));
  const keys = new Map(order.map((item) => [item, draw("order", item)]));
  order.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
}

function current() {
  const rated = new Set(mine().ratings.map((rating) => rating.item));
  return order.find((item) => !rated.has(item));
}

function rate(choice) {
  const item = current();
  if (item === undefined) return;
  const first = left(item);
  const better = choice === "tie" || choice === "skip" ? choice : Number(choice) === 0 ? first : 1 - first;
  const seconds = Math.round((performance.now() - shown) / 100) / 10;
  mine().ratings.push({ item, better, left: first, seconds, time: new Date().toISOString() });
  save();
  const said = { 0: "Answer 1 is better", 1: "Answer 2 is better", tie: "Equally good or bad", skip: "Skipped" }[choice];
  render(`${said}.`);
}

function undo() {
  if (!mine().ratings.length) return;
  mine().ratings.pop();
  save();
  render("Taken back.");
}

function put(element, text, language) {
  element.textContent = text.text; // never markup
  element.dir = text.dir;
  element.lang = language;
  element.classList.toggle("empty", text.text.trim() === "");
  element.scrollTop = 0;
}

function render(said = "") {
  const rating = state.rater !== null;
  at("start").hidden = rating;
  at("rating").hidden = !rating;
  if (!rating) {
    at("name").focus();
    return;
  }
  const item = current();
  const finished = item === undefined;
  const rated = new Set(mine().ratings.map((each) => each.item));
  const done = order.filter((each) => rated.has(each)).length;
  at("count").textContent = `${done} of ${order.length} rated`;
  at("progress").max = order.length;
  at("progress").value = done;
  at("undo").disabled = mine().ratings.length === 0;
  at("unsaved").hidden = storable;
  at("item").hidden = finished;
  at("done").hidden = !finished;
  at("language").hidden = finished;
  if (!finished) {
    const { language, prompt, answers } = data.items[item];
    at("language").textContent = data.languages[language];
    put(at("prompt"), prompt, language);
    put(at("answer-0"), answers[left(item)], language);
    put(at("answer-1"), answers[1 - left(item)], language);
    window.scrollTo(0, 0);
  }
  at("status").textContent = `${said} ${at("count").textContent}.`;
  at(finished ? "thanks" : "heading").focus({ preventScroll: true });
  shown = performance.now();
}

function exportRatings() {
  const ratings = mine().ratings.map(({ item, ...rest }) => ({ id: data.items[item].id, language: data.items[item].language, ...rest }));
  const content = { format: "mlcalib ratings 1", fingerprint: data.fingerprint, rater: state.rater, languages: mine().languages, items: order.length, ratings };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `ratings-${state.rater.replace(/[^\p{L}\p{N}]+/gu, "-")}-${data.fingerprint.slice(0, 8)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  at("status").textContent = `Exported ${ratings.length} ratings.`;
}

function begin(event) {
  event.preventDefault();
  const name = at("name").value.trim();
  const languages = [...document.querySelectorAll("#languages input:checked")].map((box) => box.value);
  at("problem").textContent = !name ? "Please say who you are." : !languages.length ? "Please choose a language." : "";
  if (!name || !languages.length) return;
  state.rater = name;
  state.raters[name] = { ratings: [], ...state.raters[name], languages };
  save();
  sort();
  render();
}

function pressed(event) {
  if (event.key === "Escape") document.activeElement.blur();
  const typing = event.target instanceof HTMLInputElement && event.target.type !== "checkbox";
  // A key that is held down is one rating, not many.
  if (typing || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (state.rater === null || !at("keys").checked) return;
  const choice = { 1: "0", ArrowLeft: "0", 2: "1", ArrowRight: "1", 0: "tie", "=": "tie", s: "skip" };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in choice && current() !== undefined) rate(choice[key]);
  else if (key === "u" || key === "Backspace") undo();
  else if (key === "e" && current() === undefined) exportRatings();
  else return;
  event.preventDefault();
}

for (const element of document.querySelectorAll(".question")) element.textContent = data.question;
document.title = data.question;
for (const [code, name] of Object.entries(data.languages)) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  const count = data.items.filter((item) => item.language === code).length;
  Object.assign(box, { type: "checkbox", value: code, checked: Object.keys(data.languages).length === 1 });
  label.append(box, ` ${name} (${count} ${count === 1 ? "prompt" : "prompts"})`);
  at("languages").append(label);
}
at("form").addEventListener("submit", begin);
document.addEventListener("keydown", pressed);
for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => rate(button.dataset.choice));
at("undo").addEventListener("click", undo);
at("export").addEventListener("click", exportRatings);
at("finish").addEventListener("click", exportRatings);
at("leave").addEventListener("click", () => { state.rater = null; save(); render(); });
// The page is open in another tab too: show what was rated there.
window.addEventListener("storage", (event) => { if (event.key === storageKey) { state = load(); resume(); } });

function resume() {
  if (state.rater !== null) sort();
  render();
}
save();
resume();
