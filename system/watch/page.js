// The page of a run: asks for what is new every two seconds and draws what has changed.

import { brief, chart, comb, el, histogram, isComb, nested, spark, spread } from "./figures.js";

const EVERY_MS = 2000;
const SMALL_PX = 128;
const STATES = {
  waiting: "waiting for the first step", running: "running", finished: "finished",
  silent: "no news: stopped, or a step takes very long",
};
const $ = (id) => document.getElementById(id);
const page = { run: null, step: null, follow: true, detail: null, task: null, trunk: 0, history: null, heldout: "" };

async function ask(path) {
  const answer = await fetch(path);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

/** Ask, and null where nothing is there yet. */
async function askIfThere(path) {
  const answer = await fetch(path);
  if (answer.status === 404) return null;
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

async function look() {
  try {
    const found = await ask(page.run ? `/api/run?revision=${page.run.revision}` : "/api/run");
    if (found.panels) {
      page.run = found;
      drawState();
      drawRun();
      await showStep();
      await showHeldout();
      page.history = null;
    } else {
      page.run.state = found.state;
      drawState();
    }
    if (page.history === null || page.history.read < page.history.of) {
      page.history = await ask("/api/prompts");
      drawPrompts();
    }
    trouble(null);
  } catch (error) {
    trouble(error instanceof TypeError ? "tempflow watch does not answer. Is it still running?" : error.message);
  }
  document.body.dataset.ready = "yes";
}

function trouble(sentence) {
  $("trouble").hidden = sentence === null;
  $("trouble").textContent = sentence ?? "";
}

function show(id, wanted) { $(id).hidden = !wanted; return wanted; }

function drawState() {
  const { state, recipe, name } = page.run;
  document.title = `${name} · tempflow watch`;
  $("name").textContent = name;
  $("state").textContent = STATES[state.kind];
  $("state").className = `pill ${state.kind}`;
  const model = recipe.model ? `on ${recipe.model}` : "";
  const rewards = recipe.rewards.length ? `for ${recipe.rewards.join(" + ")}` : "";
  $("recipe").textContent = [recipe.method, model, rewards].filter(Boolean).join(" ");
  $("progress").hidden = state.steps === null;
  if (state.steps !== null) Object.assign($("progress"), { max: state.steps, value: state.step ?? 0 });
  const whole = (value) => (value === null ? null : Math.round(value).toLocaleString("en"));
  const steps = state.step === null ? null : `${whole(state.step)}${state.steps === null ? "" : ` of ${whole(state.steps)}`}`;
  const facts = {
    steps, NFE: whole(state.nfe), images: whole(state.decodes), scores: whole(state.scores),
    "time of the steps": duration(state.elapsed_s), left: state.left_s === null ? null : `about ${duration(state.left_s)}`,
    "last line": state.kind === "finished" || state.age_s === null ? null : `${duration(state.age_s)} ago`,
    "steps without a line": page.run.missing,
  };
  $("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== null).map(
    ([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))));
  show("empty", state.step === null);
}

function duration(seconds) {
  if (seconds === null) return null;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function drawRun() {
  const { panels, warnings, roles, seconds } = page.run;
  if (show("warnings", warnings.length > 0)) {
    $("warnings").querySelector("ul").replaceChildren(...warnings.map((warned) => {
      const when = new Date(warned.time * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
      const where = warned.step === null ? when : `${when} · step ${warned.step}`;
      return el("li", {}, el("span", { class: "when" }, where), warned.message);
    }));
  }
  for (const id of ["scores", "roles", "health"]) {
    const chosen = panels.filter((panel) => panel.place === id);
    if (show(id, chosen.length > 0)) {
      $(id).querySelector(".panels").replaceChildren(...chosen.map((panel) => chart(panel, page.step, choose)));
    }
  }
  const idle = Object.entries(roles).filter(([, share]) => share !== null);
  const bars = (title, rows, most, unit) => [el("h3", {}, title), el("div", { class: "bars" }, ...rows.flatMap(([name, value]) => [
    el("span", {}, name), el("meter", { min: 0, max: most, value, "aria-label": `${name} ${unit(value)}` }), el("b", {}, unit(value)),
  ]))];
  const share = (value) => `${Math.round(value * 100)} %`;
  $("idle").replaceChildren(...bars("Idle in the last step", idle, 1, share));
  const stages = Object.entries(seconds).filter(([, value]) => value !== null);
  show("stages", stages.length > 0);
  const most = Math.max(1e-9, ...stages.map(([, value]) => value));
  $("stages").replaceChildren(...bars("Seconds of the stages, the last time", stages, most, (value) => `${brief(value)} s`));
}

/** Choose the step with images nearest to a step. */
function choose(step) {
  const kept = keptSteps();
  if (!kept.length) return;
  page.follow = false;
  page.step = kept.reduce((best, at) => (Math.abs(at - step) < Math.abs(best - step) ? at : best));
  location.hash = `step=${page.step}`;
  redraw();
}

async function redraw() {
  try {
    await showStep();
    drawRun();
  } catch (error) { trouble(error.message); }
}

/** The steps that can be chosen: those with pictures, or without any the newest one. */
function keptSteps() {
  const { pictures, experience } = page.run.steps;
  return pictures.length ? pictures : experience.slice(-1);
}

async function showStep() {
  const kept = keptSteps();
  if (page.follow || !kept.includes(page.step)) page.step = page.follow ? kept.at(-1) ?? null : nearestTo(kept, page.step);
  $("follow").checked = page.follow;
  $("step").replaceChildren(...kept.map((step) => el("option", { value: step, selected: step === page.step }, String(step))));
  $("before").disabled = kept.indexOf(page.step) <= 0;
  $("after").disabled = kept.indexOf(page.step) >= kept.length - 1;
  page.detail = page.step === null ? null : await askIfThere(`/api/step?step=${page.step}`);
  const there = page.detail !== null;
  for (const id of ["images", "tree", "groups"]) show(id, there);
  if (!there) return;
  drawGroups();
  await showTask(page.detail.row);
}

const nearestTo = (steps, step) => steps.reduce((best, at) => (best === null || Math.abs(at - step) < Math.abs(best - step) ? at : best), null);

async function showTask(row) {
  page.task = await askIfThere(`/api/task?step=${page.step}&row=${row}`);
  if (page.task === null) return;
  page.trunk = Math.min(page.trunk, Math.max(0, page.task.trunks.length - 1));
  if (row === page.detail.row) drawImages();
  drawTree();
}

const address = (task, leaf) => `/picture?step=${task.step}&row=${task.row}&leaf=${leaf}`;

/** An image that shows its pixels where it is small. */
function picture(src, alt) {
  return el("img", { src, alt, loading: "lazy", onload: (event) => {
    if (event.target.naturalWidth <= SMALL_PX) event.target.classList.add("small");
  } });
}

function drawImages() {
  const task = page.task, kept = new Set(task.pictures);
  const leaves = task.leaves.filter((leaf) => kept.has(leaf.leaf)).sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
  $("caption").textContent = task.prompt;
  const kind = leaves.length < task.leaves.length ? `${leaves.length} of the ${task.leaves.length} images` : `all ${leaves.length} images`;
  $("images-note").textContent = leaves.length
    ? `Of step ${task.step}, ${kind} of the first prompt, the best reward first. A is the advantage.`
    : `No image of step ${task.step} is kept (log.train_images_every). The numbers of the step are below.`;
  $("images").querySelector(".gallery").replaceChildren(...leaves.map((leaf) => {
    const scores = task.scorers.length > 1 ? task.scorers.map((name) => el("p", {}, `${name} ${brief(leaf.scores[name])}`)) : [];
    const reward = leaf.reward === null ? el("span", { class: "hole" }, "no reward") : brief(leaf.reward);
    const known = leaf.advantages.length === 1 ? leaf.advantages[0] : 0;
    return el("figure", { class: "shot" }, picture(address(task, leaf.leaf), `${task.prompt}: reward ${brief(leaf.reward)}`),
      el("p", { class: "score" }, reward), el("p", { class: known > 0 ? "up" : known < 0 ? "down" : "" }, spread(leaf.advantages)), ...scores);
  }));
}

function drawTree() {
  const task = page.task;
  $("tree-caption").textContent = task.prompt;
  const combs = task.trunks.length > 0 && task.trunks.every(isComb);
  $("trunks").replaceChildren(...(combs ? task.trunks : []).map((trunk, i) => el("button", {
    type: "button", "aria-pressed": String(i === page.trunk), onclick: () => { page.trunk = i; drawTree(); },
  }, `trunk ${trunk.seed}`)));
  $("tree-note").textContent = combs
    ? "A deterministic trunk from one noise. At each branch step actions are drawn from the same state and completed without noise, so siblings differ by the action alone. s is the noise level of the step."
    : "Sampling steps from left to right. Each point is a state at which the policy drew an action; colours show the advantage.";
  $("tree").querySelector(".drawing").replaceChildren(
    combs ? comb(task, task.trunks[page.trunk], page.detail.by_step, address) : nested(task, address));
  for (const image of $("tree").querySelectorAll("image")) {
    const probe = new Image();
    probe.onload = () => { if (probe.naturalWidth <= SMALL_PX) image.classList.add("small"); };
    probe.src = image.getAttribute("href");
  }
}

function drawGroups() {
  const { groups, step } = page.detail;
  const flat = groups.flat ? ` ${groups.flat} have no spread and teach nothing.` : " All have a spread.";
  $("groups-note").textContent = `Step ${step} has ${counted(groups.count, "group")} of actions that are compared with each other.${flat}`;
  $("histogram").replaceChildren(el("h3", {}, "Groups by the spread (std) of their rewards"), histogram(groups.histogram, groups.flat));
  const half = groups.count > groups.ends.length ? groups.ends.length / 2 : groups.ends.length;
  const rows = groups.ends.flatMap((group, i) => {
    const choose = () => { page.trunk = Math.max(0, group.seed ?? 0); showTask(group.row).then(() => $("tree").scrollIntoView({ behavior: "smooth" })); };
    const cells = [group.seed ?? "all", group.step ?? "all", group.actions, brief(group.mean), brief(group.spread)];
    const row = el("tr", { tabindex: 0, onclick: choose, onkeydown: (event) => { if (event.key === "Enter") choose(); } },
      caption(group.prompt), ...cells.map((cell) => el("td", {}, String(cell))));
    return i === half ? [el("tr", { class: "gap" }, el("td", { colspan: 6 }, "⋮")), row] : [row];
  });
  $("ends").replaceChildren(head("prompt", "trunk", "step", "actions", "mean", "spread"), el("tbody", {}, ...rows));
}

/** A cell with at most two lines of a prompt; the rest shows under the pointer. */
const caption = (text) => el("td", { class: "text", title: text }, el("div", {}, text));

/** A count with its noun. */
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const head = (...names) => el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))));

function drawPrompts() {
  const { prompts, read, of, count } = page.history;
  if (!show("prompts", prompts.length > 0)) return;
  const wanted = $("search").value.toLowerCase();
  const shown = prompts.filter((prompt) => prompt.prompt.toLowerCase().includes(wanted));
  const part = read < of ? ` (${read} of ${of} steps are read so far)` : "";
  const newest = count > prompts.length ? `the ${prompts.length} of ${count.toLocaleString("en")} prompts that were used last` : counted(count, "prompt");
  $("prompts-note").textContent = `Mean reward of ${newest} each time they were used${part}.`;
  $("history").replaceChildren(head("prompt", "times", "first", "last", "change", ""), el("tbody", {}, ...shown.map((prompt) => {
    const known = prompt.means.filter((mean) => mean !== null), first = known[0] ?? null, last = known.at(-1) ?? null;
    const change = known.length > 1 ? brief(last - first, true) : "";
    return el("tr", {}, caption(prompt.prompt), el("td", {}, String(prompt.steps.length)), el("td", {}, brief(first)),
      el("td", {}, brief(last)), el("td", {}, change), el("td", {}, spark(prompt.means)));
  })));
}

async function showHeldout() {
  const steps = page.run.steps.samples, ends = [...new Set([steps[0], steps.at(-1)])].filter((step) => step !== undefined);
  if (!show("heldout", ends.length > 0) || page.heldout === ends.join()) return;
  const found = await Promise.all(ends.map((step) => ask(`/api/samples?step=${step}`)));
  page.heldout = ends.join();
  const count = Math.min(...found.map((at) => at.pictures.length));
  $("heldout-note").textContent = ends.length > 1 ? `The first held-out prompts from the same noise, at step ${ends[0]} and at step ${ends[1]}.` : `The first held-out prompts at step ${ends[0]}.`;
  $("heldout").querySelector(".grid").replaceChildren(...Array.from({ length: count }, (_, i) => {
    const cells = (make) => el("tr", {}, ...found.map((at) => el("td", {}, make(at, at.pictures[i]))));
    const images = cells((at, shown) => picture(`/sample?step=${at.step}&index=${shown.index}`, `step ${at.step}: ${shown.prompt}`));
    images.className = "images";
    const names = Object.keys(found.at(-1).pictures[i].scores);
    return el("div", { class: "card pair" }, el("table", {}, el("tbody", {},
      images, el("tr", { class: "prompt" }, el("td", { colspan: found.length }, found[0].pictures[i].prompt)),
      ...names.map((name) => cells((_at, shown) => el("span", {}, el("span", { class: "name" }, `${name} `), brief(shown.scores[name] ?? null)))))));
  }));
}

function fromHash() {
  const found = /^#step=(\d{1,9})$/.exec(location.hash);
  if (!found || Number(found[1]) === page.step) return;
  page.follow = false;
  page.step = Number(found[1]);
  if (page.run) redraw();
}

function move(by) {
  const kept = keptSteps(), next = kept[kept.indexOf(page.step) + by];
  if (next !== undefined) choose(next);
}

$("step").addEventListener("change", (event) => choose(Number(event.target.value)));
$("before").addEventListener("click", () => move(-1));
$("after").addEventListener("click", () => move(1));
$("follow").addEventListener("change", (event) => { page.follow = event.target.checked; if (page.follow) history.replaceState(null, "", location.pathname); redraw(); });
$("search").addEventListener("input", drawPrompts);
window.addEventListener("hashchange", fromHash);
fromHash();

async function go() {
  if (!document.hidden || !page.run) await look();
  setTimeout(go, EVERY_MS);
}
go();
