"use strict";
// A small chart: axes, curves with error bars, marks, reference lines, a tooltip for the nearest point. It is drawn
// anew at the width its box has, so that type keeps its size on a phone; colours are CSS variables, so that the dark
// mode needs no drawing.
const SVG = document.getElementById("svg-space").namespaceURI;
const tip = document.getElementById("tip");

function make(tag, attributes, parent) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) node.setAttribute(key, value);
  if (parent) parent.appendChild(node);
  return node;
}
function html(tag, className, content, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== null && content !== undefined) node.textContent = content;
  if (parent) parent.appendChild(node);
  return node;
}
const hue = (role) => `var(--c-${role})`;

function niceTicks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= raw * 0.999) || 10 * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}
function logTicks(low, high) {
  const ticks = [], many = Math.log10(high / low) > 3;
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const f of many ? [1] : [1, 2, 5]) { const t = +`${f}e${e}`; if (t >= low * 0.999 && t <= high * 1.001) ticks.push(t); }
  return ticks;
}
function scale(domain, range, log) {
  const f = log ? Math.log10 : (v) => v, [a, b] = domain.map(f), width = b - a || 1;
  return (v) => range[0] + ((f(v) - a) / width) * (range[1] - range[0]);
}
function extent(values, pad) {
  const known = values.filter((v) => v !== null && v !== undefined && Number.isFinite(v));
  if (!known.length) return [0, 1];
  let low = Math.min(...known), high = Math.max(...known);
  if (low === high) { const d = Math.abs(low) * 0.1 || 1; low -= d; high += d; }
  return [low - pad * (high - low), high + pad * (high - low)];
}

const SHAPES = {
  circle: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
  square: (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  triangle: (r) => `M0,${-1.2 * r}L${1.15 * r},${0.9 * r}H${-1.15 * r}z`,
  down: (r) => `M0,${1.2 * r}L${1.15 * r},${-0.9 * r}H${-1.15 * r}z`,
  diamond: (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
  cross: (r) => `M${-r},${-r}L${r},${r}M${-r},${r}L${r},${-r}`,
  plus: (r) => `M0,${-1.25 * r}V${1.25 * r}M${-1.25 * r},0H${1.25 * r}`,
};
function mark(parent, shape, x, y, r, role, hollow) {
  const open = shape === "cross" || shape === "plus";
  return make("path", { d: SHAPES[shape](r), transform: `translate(${x},${y})`,
    style: `stroke:${hue(role)};stroke-width:${open || hollow ? 1.6 : 1};fill:${open ? "none" : hollow ? "var(--card)" : hue(role)}` }, parent);
}

class Chart {
  // build(width) returns {height, x, y, curves, marks, lines, drops}: see report.js for each.
  constructor(id, build) {
    this.box = document.getElementById(id);
    this.build = build;
    if (!this.box) return;
    new ResizeObserver(() => { if (Math.abs(this.box.clientWidth - this.width) > 1) this.draw(); }).observe(this.box);
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerdown", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => this.leave());
    this.draw();
  }

  draw() {
    if (!this.box) return;
    this.width = this.box.clientWidth;
    const spec = this.build(this.width), { x, y } = spec, height = spec.height;
    const labels = spec.labels || 0;
    const left = (y.left || 46) + (y.label ? 16 : 0), right = this.width - (labels || 12), top = spec.drops ? 24 : 10, bottom = height - 40;
    this.sx = scale(x.domain, [left, right], false);
    this.sy = scale(y.domain, [bottom, top], y.log);
    this.spots = [];
    this.captions = [];
    this.svg = make("svg", { viewBox: `0 0 ${this.width} ${height}`, height, role: "img", "aria-label": spec.title });
    this.axes(spec, left, right, top, bottom);
    for (const line of spec.lines || []) this.line(line, left, right);
    this.layers = new Map();
    const order = [...(spec.curves || [])].sort((a, b) => (b.faint - a.faint) || ((a.front || 0) - (b.front || 0)));
    for (const curve of order) this.curve(curve);
    for (const m of spec.marks || []) this.mark(m);
    for (const drop of this.apart(spec.drops || [], left, right)) this.drop(drop, top);
    if (labels) this.ends(spec, right, top, bottom);
    this.halo = make("circle", { r: 6, style: "fill:none;stroke:var(--ink);stroke-width:1.5;visibility:hidden" }, this.svg);
    this.box.replaceChildren(this.svg);
  }

  axes({ x, y }, left, right, top, bottom) {
    const g = make("g", {}, this.svg);
    const rows = y.rows || (y.log ? logTicks(...y.domain) : niceTicks(...y.domain, (bottom - top) / 52)).map((v) => [v, y.format(v)]);
    for (const [v, label] of rows) {
      const at = this.sy(v);
      make("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }, g);
      make("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, g).textContent = label;
    }
    make("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }, g);
    const ticks = niceTicks(...x.domain, (right - left) / 64), whole = ticks.filter(Number.isInteger);
    for (const v of whole.length > 1 ? whole : ticks) {  // steps are whole: no half of one in a short run
      make("line", { class: "axis", x1: this.sx(v), x2: this.sx(v), y1: bottom, y2: bottom + 4 }, g);
      make("text", { x: this.sx(v), y: bottom + 17, "text-anchor": "middle" }, g).textContent = x.format(v);
    }
    make("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, g).textContent = x.label;
    const middle = (top + bottom) / 2;
    if (y.label) make("text", { x: 11, y: middle, transform: `rotate(-90 11 ${middle})`, "text-anchor": "middle" }, g).textContent = y.label;
  }

  line({ y, role, dash, width, label }, left, right) {
    const at = this.sy(y);
    make("line", { x1: left, x2: right, y1: at, y2: at, "stroke-dasharray": dash, style: `stroke:${role ? hue(role) : "var(--soft)"};stroke-width:${width || 1.3}` }, this.svg);
    if (label) make("text", { x: right, y: at - 5, "text-anchor": "end" }, this.svg).textContent = label;
  }

  curve(c) {
    const g = make("g", { class: c.faint ? "faint" : "" }, this.svg);
    this.layers.set(c.name, g);
    const points = c.points.filter((p) => p.x !== null && p.y !== null);
    let d = "";
    points.forEach((p, i) => {
      const px = this.sx(p.x), py = this.sy(p.y);
      d += i === 0 ? `M${px.toFixed(1)},${py.toFixed(1)}` : c.stepped ? `H${px.toFixed(1)}V${py.toFixed(1)}` : `L${px.toFixed(1)},${py.toFixed(1)}`;
      if (p.e) make("line", { class: "error", x1: px, x2: px, y1: this.sy(p.y - p.e), y2: this.sy(p.y + p.e), style: `stroke:${hue(c.role)};stroke-width:1.4` }, g);
      this.spots.push({ x: px, y: py, tip: p.tip, name: c.name, faint: c.faint });
    });
    if (points.length > 1) make("path", { class: "curve", d, "stroke-dasharray": c.dash || null, "stroke-linejoin": "round", style: `stroke:${hue(c.role)};stroke-width:${c.width || 1.8}px` }, g);
    if (c.marker) for (const p of points) mark(g, c.marker, this.sx(p.x), this.sy(p.y), c.faint ? 2 : c.size || 2.8, c.role, false);
  }

  mark(m) {
    const px = this.sx(m.x), py = this.sy(m.y), g = make("g", { class: m.faint ? "faint" : "" }, this.svg);
    mark(g, m.shape, px, py, m.size, m.role, m.hollow);
    if (m.text) this.caption(m, px, py, g);
    this.spots.push({ x: px, y: py, tip: m.tip, name: m.name, faint: m.faint, bonus: 6 });
  }

  // A mark's text above it, below where a neighbour's is in the way, left to the tooltip where both are.
  caption(m, px, py, parent) {
    const half = m.text.length * 3.7 + 2;
    const at = [py - m.size - 5, py + m.size + 13].find((y) => this.captions.every((c) => Math.abs(c.y - y) > 9 || Math.abs(c.x - px) > c.half + half));
    if (at === undefined) return;
    this.captions.push({ x: px, y: at, half });
    make("text", { class: "strong", x: px, y: at, "text-anchor": "middle" }, parent).textContent = m.text;
  }

  // Drop lines to where an arm reached the target, labelled above the plot; the first listed wins where two would touch.
  apart(drops, left, right) {
    const taken = [];
    return drops.map((d) => {
      const at = this.sx(d.x), half = d.text.length * 3.3 + 5, centre = Math.min(Math.max(at, left + half - 8), right - half + 8);
      const free = taken.every(([a, b]) => centre + half < a || centre - half > b);
      if (free) taken.push([centre - half, centre + half]);
      return { ...d, at, centre, text: free ? d.text : null };
    });
  }

  drop(d, top) {
    make("line", { x1: d.at, x2: d.at, y1: top - 6, y2: this.sy(d.y), "stroke-dasharray": "1 3", style: `stroke:${hue(d.role)};stroke-width:1.5` }, this.svg);
    make("circle", { cx: d.at, cy: this.sy(d.y), r: 4.5, style: `fill:var(--card);stroke:${hue(d.role)};stroke-width:2` }, this.svg);
    if (d.text) make("text", { x: d.centre, y: top - 11, "text-anchor": "middle", style: `fill:${hue(d.role)};font-weight:600` }, this.svg).textContent = d.text;
  }

  // Names of the curves in the right margin, moved apart, each tied to its last point by a thin line.
  ends({ curves, lines }, right, top, bottom) {
    const wanted = curves.filter((c) => !c.faint && c.end).map((c) => {
      const p = c.points.filter((q) => q.x !== null && q.y !== null).at(-1);
      return p && { text: c.end, role: c.role, x: this.sx(p.x), at: this.sy(p.y), strong: c.front > 1 };
    }).filter(Boolean);
    for (const line of lines || []) if (line.end) wanted.push({ text: line.end, role: null, x: right, at: this.sy(line.y) });
    wanted.sort((a, b) => a.at - b.at);
    const gap = 16;
    wanted.forEach((w, i) => { w.y = Math.max(w.at, i ? wanted[i - 1].y + gap : top); });
    for (let i = wanted.length - 1, floor = bottom; i >= 0; i--, floor -= gap) wanted[i].y = Math.min(wanted[i].y, floor, i + 1 < wanted.length ? wanted[i + 1].y - gap : floor);
    for (const w of wanted) {
      const colour = w.role ? hue(w.role) : "var(--soft)";
      make("path", { d: `M${w.x + 4},${w.at}L${right},${w.at}L${right + 10},${w.y}`, style: `stroke:${colour};stroke-width:1;opacity:.45`, "stroke-dasharray": "1 3" }, this.svg);
      make("text", { x: right + 13, y: w.y + 4, style: `fill:${colour};font-weight:${w.strong ? 700 : 500}` }, this.svg).textContent = w.text;
    }
  }

  point(event) {
    const frame = this.svg.getBoundingClientRect(), px = event.clientX - frame.left, py = event.clientY - frame.top;
    let best = null, least = event.pointerType === "touch" ? 40 : 28;
    for (const s of this.spots) {
      const d = Math.hypot(s.x - px, s.y - py) + (s.faint ? 7 : 0) - (s.bonus || 0);
      if (d < least) { least = d; best = s; }
    }
    if (!best) return this.leave();
    this.heat(best.name);
    this.halo.setAttribute("cx", best.x); this.halo.setAttribute("cy", best.y); this.halo.style.visibility = "visible";
    showTip(best.tip(), frame.left + best.x, frame.top + best.y);
  }

  heat(name) {
    for (const [key, layer] of this.layers || []) layer.classList.toggle("hot", key === name);
  }

  leave() {
    this.heat(null);
    if (this.halo) this.halo.style.visibility = "hidden";
    tip.hidden = true;
  }
}

// tip: {title, rows: [[name, value]], text}
function showTip(content, x, y) {
  tip.replaceChildren();
  html("b", "", content.title, tip);
  const table = html("table", "", null, tip);
  for (const [name, value] of content.rows) { const row = html("tr", "", null, table); html("td", "", name, row); html("td", "", value, row); }
  if (content.text) html("div", "", content.text, tip);
  tip.hidden = false;
  const w = tip.offsetWidth, h = tip.offsetHeight, wide = document.documentElement.clientWidth;
  const left = x + 14 + w < wide - 6 ? x + 14 : Math.max(6, x - w - 14);
  const above = y - h - 12 > 4 ? y - h - 12 : y + 16;
  tip.style.left = `${left + window.scrollX}px`; tip.style.top = `${above + window.scrollY}px`;
}
