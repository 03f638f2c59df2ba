// Figures as SVG: curves, a histogram, the tree of a task. All text is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties, attributes and children. Children are elements or texts; null is left out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number in at most about six characters, with a typographic minus; a dash for a hole. */
export function brief(value, sign = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (size === 0) text = "0";
  else if (size >= 1e5) text = value.toExponential(1).replace("e+", "e");
  else if (size >= 1000) text = value.toFixed(0);
  else if (size >= 0.001) text = String(Number(value.toPrecision(size >= 1 ? 4 : 3)));
  else text = value.toExponential(1);
  return (sign && value > 0 ? "+" : "") + text.replaceAll("-", "−");
}

/** About `count` round numbers from low to high. */
export function ticks(low, high, count) {
  const raw = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= raw * (1 - 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0);
  return found;
}

const W = 460, H = 226, LEFT = 52, RIGHT = 12, TOP = 8, BOTTOM = 40;
const LETTER = 6.4; // The width of a digit, in the units of W.

/** Curves over training steps. `choose` is called with the step that is clicked; `chosen` is marked. */
export function chart(panel, chosen, choose) {
  const every = panel.series.flatMap((s) => (s.low.length ? [...s.low, ...s.high] : s.values));
  const steps = panel.series.flatMap((s) => s.steps);
  const [first, last] = extent(steps);
  let [x0, x1] = [first, last], [y0, y1] = extent(every);
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  if (y0 === y1) [y0, y1] = y0 === 0 ? [0, 1] : [y0 - Math.abs(y0) * 0.1, y1 + Math.abs(y1) * 0.1];
  else [y0, y1] = [y0 >= 0 && y0 < (y1 - y0) * 0.3 ? 0 : y0 - (y1 - y0) * 0.06, y1 + (y1 - y0) * 0.06];
  const x = (v) => LEFT + ((v - x0) / (x1 - x0)) * (W - LEFT - RIGHT);
  const y = (v) => H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": alt(panel) });
  for (const v of ticks(y0, y1, 5)) {
    drawing.append(svg("line", { class: "rule", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) }));
    drawing.append(svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, brief(v)));
  }
  for (const v of ticks(x0, x1, 5).filter((v) => Number.isInteger(v) && v >= first && v <= last)) {
    const text = v.toLocaleString("en");
    const inside = Math.min(x(v), W - (text.length * LETTER) / 2);
    drawing.append(svg("text", { x: inside, y: H - BOTTOM + 17, "text-anchor": "middle" }, text));
  }
  drawing.append(axisLabel("training step"));
  if (chosen !== null && chosen >= x0 && chosen <= x1) {
    drawing.append(svg("line", { class: "chosen", x1: x(chosen), x2: x(chosen), y1: TOP, y2: H - BOTTOM }));
  }
  panel.series.forEach((s, i) => {
    const points = s.steps.map((step, j) => [x(step), y(s.values[j])]);
    const group = svg("g", { class: `c${i % 6}` });
    if (s.low.length) {
      const up = s.steps.map((step, j) => [x(step), y(s.high[j])]);
      const down = s.steps.map((step, j) => [x(step), y(s.low[j])]).reverse();
      group.append(svg("path", { class: "band", d: `${line([...up, ...down])}Z` }));
    }
    group.append(svg("path", { d: line(points) }));
    if (points.length <= 40) group.append(...points.map(([cx, cy]) => svg("circle", { cx, cy, r: 2.2 })));
    drawing.append(group);
  });
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  drawing.append(cursor);
  const legend = el("ul", { class: "legend" });
  const said = el("span");
  const show = (at) => {
    legend.replaceChildren(...panel.series.map((s, i) => {
      const j = at === null ? s.steps.length - 1 : nearest(s.steps, at);
      return el("li", { class: `c${i % 6}` }, `${s.label} `, el("b", {}, brief(s.values[j])));
    }));
    said.textContent = at === null ? (panel.note ? ` · ${panel.note}` : "") : ` · step ${at.toLocaleString("en")}`;
    cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at !== null) for (const side of ["x1", "x2"]) cursor.setAttribute(side, x(at));
  };
  const sorted = [...new Set(steps)].sort((a, b) => a - b);
  const under = (event) => {
    const box = drawing.getBoundingClientRect();
    const v = x0 + (((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT) * (x1 - x0);
    return sorted[nearest(sorted, v)];
  };
  drawing.addEventListener("pointermove", (event) => show(under(event)));
  drawing.addEventListener("pointerleave", () => show(null));
  drawing.addEventListener("click", (event) => choose(under(event)));
  show(null);
  return el("figure", {}, el("h3", {}, panel.title, said), legend, drawing);
}

function axisLabel(text) {
  return svg("text", { x: (LEFT + W - RIGHT) / 2, y: H - 5, "text-anchor": "middle" }, text);
}

function alt(panel) {
  return `${panel.title}: ${panel.series.map((s) => `${s.label} ${brief(s.values.at(-1))} at step ${s.steps.at(-1)}`).join("; ")}`;
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
}

function nearest(sorted, value) {
  let best = 0;
  sorted.forEach((step, i) => { if (Math.abs(step - value) < Math.abs(sorted[best] - value)) best = i; });
  return best;
}

const line = (points) => points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");

/** A few values as a small line. */
export function spark(values) {
  const known = values.map((v, i) => [i, v]).filter(([, v]) => v !== null);
  const drawing = svg("svg", { class: "spark", viewBox: "0 0 112 24", "aria-hidden": "true" });
  if (!known.length) return drawing;
  const [low, high] = extent(known.map(([, v]) => v));
  const points = known.map(([i, v]) => [
    3 + (values.length > 1 ? i / (values.length - 1) : 0.5) * 106, high > low ? 21 - ((v - low) / (high - low)) * 18 : 12,
  ]);
  drawing.append(svg("path", { d: line(points) }));
  drawing.append(svg("circle", { cx: points.at(-1)[0], cy: points.at(-1)[1], r: 2 }));
  return drawing;
}

/** How many groups have which spread. The first bar is marked where it holds groups without any. */
export function histogram(found, flat) {
  const { counts, edges } = found, most = Math.max(1, ...counts), width = (W - LEFT - RIGHT) / counts.length;
  const label = `${counts.reduce((a, b) => a + b, 0)} groups with a spread from 0 to ${brief(edges.at(-1))}`;
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "histogram", role: "img", "aria-label": label });
  counts.forEach((count, i) => {
    const height = (count / most) * (H - TOP - BOTTOM - 12);
    const bar = { x: LEFT + i * width + 1, y: H - BOTTOM - height, width: width - 2, height, class: i === 0 && flat ? "flat" : "" };
    drawing.append(svg("rect", bar, svg("title", {}, `${count} groups: ${brief(edges[i])} to ${brief(edges[i + 1])}`)));
  });
  drawing.append(svg("text", { x: LEFT - 6, y: TOP + 16, "text-anchor": "end" }, String(most)));
  drawing.append(svg("text", { x: LEFT - 6, y: TOP + 30, "text-anchor": "end" }, most === 1 ? "group" : "groups"));
  drawing.append(axisLabel("std of the rewards in a group"));
  [0, 0.5, 1].forEach((part) => drawing.append(svg("text", {
    x: LEFT + part * (W - LEFT - RIGHT), y: H - BOTTOM + 17, "text-anchor": part === 1 ? "end" : part ? "middle" : "start",
  }, brief(edges.at(-1) * part))));
  return drawing;
}

const side = (advantage) => (advantage > 0 ? "gain" : advantage < 0 ? "loss" : "");
const set = (decision) => decision.actions.flatMap((action) => action.leaves);

/** Whether each decision of a trunk has leaves of its own, as in a trunk with forks. */
export function isComb(trunk) {
  const every = trunk.decisions.flatMap(set);
  return new Set(every).size === every.length && trunk.decisions.some((d) => d.actions.length > 1);
}

/** A trunk with its forks: a column for each branch step, the best action on top. */
export function comb(task, trunk, byStep, address) {
  const forks = new Map(trunk.decisions.map((decision) => [decision.step, decision]));
  const count = Math.max(task.num_steps ?? 0, ...[...forks.keys()].map((step) => step + 1));
  const most = Math.max(...trunk.decisions.map((decision) => decision.actions.length));
  const SIZE = forks.size > 6 ? 64 : 96, GAP = 22, ROW = SIZE + 38, Y = 46, REST = 26;
  const xs = [];
  let at = 46;
  for (let i = 0; i < count; i++) { xs.push(at); at += forks.has(i) ? SIZE + GAP : REST; }
  const width = at + 40, height = Y + 40 + most * ROW;
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `trunk ${trunk.seed} with forks at ${forks.size} of ${count} sampling steps` });
  drawing.append(svg("line", { class: "trunk", x1: 16, x2: width - 34, y1: Y, y2: Y }));
  drawing.append(svg("circle", { class: "noise", cx: 16, cy: Y, r: 6 }, svg("title", {}, "initial noise")));
  drawing.append(svg("text", { x: 2, y: Y - 16 }, "noise"), svg("text", { x: width - 30, y: Y + 4 }, "x₀"));
  for (let i = 0; i < count; i++) {
    const decision = forks.get(i);
    if (!decision) { drawing.append(svg("circle", { class: "rest", cx: xs[i], cy: Y, r: 4 }, svg("title", {}, `sampling step ${i}: no fork`))); continue; }
    const x = xs[i], left = x + 6;
    const noise = byStep?.noise_level?.[i], weight = byStep?.weight?.[i];
    drawing.append(svg("text", { class: "strong", x: left, y: Y - 28 }, `step ${i}`));
    if (noise !== undefined) drawing.append(svg("text", { x: left, y: Y - 14 }, `s ${brief(noise)}`, svg("title", {}, `noise level ${brief(noise)}, loss weight ${brief(weight)}`)));
    const order = [...decision.actions].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
    order.forEach((action, k) => {
      const top = Y + 24 + k * ROW;
      drawing.append(svg("path", { class: `branch ${side(action.advantage)}`, d: `M${x} ${Y}V${top + SIZE / 2 - 5}q0 5 5 5H${left}` }));
      drawing.append(tile(task, action, left, top, SIZE, address));
    });
    drawing.append(svg("circle", { class: "node", cx: x, cy: Y, r: 5.5 }));
  }
  return drawing;
}

function tile(task, action, x, y, size, address) {
  const leaf = action.leaves[0], kept = task.pictures.includes(leaf);
  const group = svg("g", {});
  group.append(svg("rect", { class: "blank", x, y, width: size, height: size }));
  if (kept) group.append(svg("image", { href: address(task, leaf), x, y, width: size, height: size }));
  else group.append(svg("text", { x: x + size / 2, y: y + size / 2 + 4, "text-anchor": "middle" }, "not kept"));
  group.append(svg("rect", { class: `frame ${side(action.advantage)}`, x, y, width: size, height: size }));
  group.append(svg("text", { class: "strong", x, y: y + size + 13 }, action.reward === null ? "no reward" : brief(action.reward)));
  group.append(svg("text", { class: side(action.advantage), x, y: y + size + 26 }, `A ${brief(action.advantage, true)}`));
  const more = action.leaves.length > 1 ? `; the mean of ${action.leaves.length} images` : "";
  group.append(svg("title", {}, `reward ${brief(action.reward)}, advantage ${brief(action.advantage, true)}${more}`));
  return group;
}

/** Chains and nested trees: time from left to right, the images at the right end. */
export function nested(task, address) {
  const SIZE = 46, ROW = SIZE + 8, X = 60;
  const rows = [];
  for (const trunk of task.trunks) {
    const decisions = [...trunk.decisions].sort((a, b) => a.step - b.step);
    const path = (leaf) => decisions.map((d) => d.actions.findIndex((a) => a.leaves.includes(leaf))).filter((k) => k >= 0);
    const leaves = [...new Set(decisions.flatMap(set))].sort((a, b) => compare(path(a), path(b)));
    rows.push({ trunk, decisions, leaves });
  }
  const steps = Math.max(task.num_steps ?? 0, ...rows.flatMap((r) => r.decisions.map((d) => d.step + 1)));
  const pitch = Math.max(22, Math.min(60, 620 / steps)), end = X + steps * pitch + 10;
  const total = rows.reduce((sum, r) => sum + r.leaves.length, 0);
  const width = end + SIZE + 190, height = 30 + total * ROW;
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${task.trunks.length} trunks with ${total} images` });
  for (let i = 0; i < steps; i += Math.ceil(steps / 12)) drawing.append(svg("text", { x: X + i * pitch, y: 14, "text-anchor": "middle" }, String(i)));
  const byLeaf = new Map(task.leaves.map((leaf) => [leaf.leaf, leaf]));
  let first = 0;
  for (const { trunk, decisions, leaves } of rows) {
    const y = new Map(leaves.map((leaf, i) => [leaf, 30 + (first + i) * ROW + SIZE / 2]));
    const place = (d) => { const owned = [...new Set(set(d))]; return [X + d.step * pitch, owned.reduce((s, l) => s + y.get(l), 0) / owned.length]; };
    const root = 30 + (first + (leaves.length - 1) / 2) * ROW + SIZE / 2;
    const edge = (x1, y1, x2, y2, advantage) => drawing.append(svg("path", {
      class: `branch ${side(advantage)}`, d: `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`,
    }, svg("title", {}, `advantage ${brief(advantage, true)}`)));
    const starts = decisions.filter((d) => !decisions.some((e) => e.step < d.step && e.actions.some((a) => within(d, a))));
    for (const d of starts) edge(20, root, ...place(d), 0);
    for (const d of decisions) {
      for (const action of d.actions) {
        const next = decisions.find((e) => e.step > d.step && within(e, action));
        if (next) edge(...place(d), ...place(next), action.advantage);
        else for (const leaf of action.leaves) edge(...place(d), end, y.get(leaf), action.advantage);
      }
      const [cx, cy] = place(d);
      drawing.append(svg("circle", { class: "node", cx, cy, r: 3.5 }));
    }
    drawing.append(svg("circle", { class: "noise", cx: 20, cy: root, r: 6 }, svg("title", {}, `initial noise ${trunk.seed}`)));
    for (const number of leaves) {
      const leaf = byLeaf.get(number), top = y.get(number) - SIZE / 2, kept = task.pictures.includes(number);
      const advantage = leaf.advantages.length === 1 ? leaf.advantages[0] : null;
      drawing.append(svg("rect", { class: "blank", x: end, y: top, width: SIZE, height: SIZE }));
      if (kept) drawing.append(svg("image", { href: address(task, number), x: end, y: top, width: SIZE, height: SIZE }));
      drawing.append(svg("rect", { class: `frame ${side(advantage)}`, x: end, y: top, width: SIZE, height: SIZE }));
      drawing.append(svg("text", { class: "strong", x: end + SIZE + 10, y: top + 20 }, leaf.reward === null ? "no reward" : brief(leaf.reward)));
      drawing.append(svg("text", { class: side(advantage), x: end + SIZE + 10, y: top + 36 }, spread(leaf.advantages)));
    }
    first += leaves.length;
  }
  return drawing;
}

const within = (decision, action) => set(decision).every((leaf) => action.leaves.includes(leaf));

function compare(a, b) {
  for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return a[i] - b[i];
  return 0;
}

/** One advantage, or the range of several. */
export function spread(advantages) {
  const known = advantages.filter((a) => a !== null);
  if (!known.length) return "A –";
  const [low, high] = extent(known);
  return low === high ? `A ${brief(low, true)}` : `A ${brief(low, true)} to ${brief(high, true)}`;
}
