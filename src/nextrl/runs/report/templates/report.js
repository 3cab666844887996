const data = JSON.parse(document.getElementById("data").textContent);
const chosen = new Set(data.arms.filter((arm) => arm.key).map((arm) => arm.name));
let measure = "accuracy";
const charts = [];

const whole = (v) => Math.round(v).toLocaleString("en").replace(/,/g, "\u202f");
const short = (v) => (Math.abs(v) >= 1e6 ? `${+(v / 1e6).toPrecision(3)}M` : Math.abs(v) >= 1e4 ? `${+(v / 1e3).toPrecision(3)}k` : whole(v));
const rate = (v) => { const [m, e] = v.toExponential(1).split("e"); return `${+m}e${+e}`; };
const plainNumber = (v) => `${+v.toPrecision(4)}`.replace("-", "−");
const known = (v) => v !== null && v !== undefined;
const front = (arm) => ({ auto: 3, plain: 2, tuned: 1 })[arm.role] || 0;
const width = (arm) => ({ auto: 3, plain: 2.4, tuned: 2.2 })[arm.role] || 1.7;
// Labels say more than a margin holds: "plain, lr 5e-5 (as configured)" becomes "plain", "next, one leap at 200" "next".
const brief = (arm) => {
  if (arm.role === "plain" || arm.role === "auto") return arm.name;
  const label = arm.label.replace(/^plain, /, "").replace(/,.*$| around .*$/, "") + (arm.role === "tuned" ? " (tuned)" : "");
  return label.length <= 23 ? label : `${arm.name.slice(0, 22)}${arm.name.length > 22 ? "…" : ""}`;
};

function armTip(arm, i) {
  const rows = [["step", whole(arm.steps[i])]];
  const accuracy = (v, e) => v.toFixed(3) + (known(e) ? ` ± ${e.toFixed(3)}` : "");
  if (known(arm.accuracy[i])) rows.push(["sampled", accuracy(arm.accuracy[i], arm.se[i])]);
  if (known(arm.greedy[i])) rows.push(["greedy", accuracy(arm.greedy[i], arm.greedy_se[i])]);
  if (known(arm.completions[i])) rows.push(["completions", whole(arm.completions[i])]);
  if (known(arm.seconds[i])) rows.push(["seconds", arm.seconds[i].toFixed(1)]);
  if (known(arm.learning_rate[i])) rows.push(["learning rate", rate(arm.learning_rate[i])]);
  return { title: arm.label, rows };
}

function accuracyChart(axis, label, format, big) {
  return (w) => {
    const curves = data.arms.map((arm) => ({
      name: arm.name, role: arm.role, dash: arm.dash, width: width(arm), front: front(arm), faint: !chosen.has(arm.name), end: brief(arm),
      marker: arm.steps.length < 8 ? arm.marker : null,
      points: arm.steps.map((_, i) => ({ x: arm[axis][i], y: arm[measure][i], e: (measure === "accuracy" ? arm.se : arm.greedy_se)[i], tip: () => armTip(arm, i) })),
    }));
    const points = curves.flatMap((c) => c.points.filter((p) => known(p.x) && known(p.y)));
    const base = measure === "accuracy" ? data.base_greedy : null;
    const [low, high] = extent([...points.flatMap((p) => [p.y - (p.e || 0), p.y + (p.e || 0)]), data.target, base], 0.03);
    // One arm that trained a hundred times longer must not squeeze the rest: the axis ends with the chosen arms.
    const shown = curves.filter((c) => !c.faint).flatMap((c) => c.points).concat(chosen.size ? [] : points);
    const last = Math.max(1, ...shown.map((p) => p.x || 0));
    const lines = known(data.target) ? [{ y: data.target, dash: "5 4", end: `target ${data.target.toFixed(3)}` }] : [];
    if (known(base)) lines.push({ y: base, dash: "1 3", width: 1, [w > 640 ? "end" : "label"]: `base, greedy ${base.toFixed(3)}` });
    for (const c of curves) c.points = c.points.filter((p) => !known(p.x) || p.x <= last * 1.001);
    return {
      title: `${measure === "accuracy" ? "Sampled" : "Greedy"} accuracy against ${axis}`,
      height: big ? (w > 600 ? 440 : 340) : w > 600 ? 380 : 330, labels: w > 640 ? 150 : 0,
      x: { domain: [0, last], label, format }, y: { domain: [Math.max(0, low), Math.min(1.005, high)], format: plainNumber, label: `${measure === "accuracy" ? "sampled" : "greedy"} accuracy` },
      curves, lines, drops: measure === "accuracy" ? drops(axis, w) : [],
    };
  };
}

function drops(axis, w) {
  const unit = { steps: "steps", completions: "", seconds: "s" }[axis];
  return ["auto", "plain", "tuned"].flatMap((role) => data.arms.filter((a) => a.role === role && chosen.has(a.name))).flatMap((arm) => {
    const at = data.reach[arm.name];
    if (!at || !known(at[axis])) return [];
    const i = arm[axis].findIndex((v) => known(v) && v >= at[axis] - 1e-9);
    if (i < 0 || !known(arm.accuracy[i])) return [];
    const value = `${short(at[axis])} ${unit}`.trim();
    return [{ x: at[axis], y: arm.accuracy[i], role: arm.role, text: w > 520 ? `${arm.role} ${value}` : value }];
  });
}

function ratesChart(w) {
  // A learning-rate-free optimizer is given a factor (1 for Prodigy) that is no rate and would squeeze the axis.
  const own = (arm) => arm.role === "free" && new Set(arm.learning_rate.filter(known)).size < 2;
  const arms = data.arms.filter((arm) => arm.learning_rate.some((v) => known(v) && v > 0) && !own(arm));
  const curves = arms.map((arm) => ({
    name: arm.name, role: arm.role, dash: arm.dash, width: width(arm), front: front(arm), faint: !chosen.has(arm.name), stepped: true, end: brief(arm),
    points: arm.rate_path.map(([x, y]) => ({ x, y, tip: () => ({ title: arm.label, rows: [["from step", whole(x)], ["learning rate", rate(y)]] }) })),
  }));
  const marks = arms.flatMap((arm) => (data.leaps[arm.name] || []).filter((l) => l.shape && l.learning_rate > 0).map((leap) => ({
    name: arm.name, x: leap.step, y: leap.learning_rate, shape: leap.shape, size: arm.role === "auto" ? 6 : 4, role: arm.role, faint: !chosen.has(arm.name), tip: () => leapTip(arm, leap),
  })));
  const values = curves.flatMap((c) => c.points.map((p) => p.y)).concat(marks.map((m) => m.y)).filter((v) => v > 0);
  return {
    title: "Learning rate against steps", height: w > 600 ? 320 : 290, labels: w > 640 ? 150 : 0,
    x: stepAxis(), y: { domain: values.length ? [Math.min(...values) / 1.5, Math.max(...values) * 1.5] : [1e-5, 1e-3], log: true, format: rate, left: 50, label: "learning rate" }, curves, marks,
  };
}

function stepAxis() {
  const shown = data.arms.filter((arm) => chosen.has(arm.name) || !chosen.size);
  return { domain: [0, Math.max(1, ...shown.flatMap((arm) => arm.steps))], label: "optimizer steps", format: short };
}

function leapTip(arm, leap) {
  const rows = [["step", whole(leap.step)], ["done", leap.done]];
  if (known(leap.horizon)) rows.push(["horizon", whole(leap.horizon)]);
  if (known(leap.learning_rate)) rows.push(["learning rate after", rate(leap.learning_rate)]);
  if (known(leap.divergence)) rows.push(["moved, nats per token", `${+leap.divergence.toPrecision(2)}`]);
  for (const [alpha, score] of leap.scores) rows.push([`score at alpha ${alpha}`, known(score) ? score.toFixed(3) : "–"]);
  return { title: arm.label, rows, text: leap.reason };
}

// The number beside a decision's mark: the alpha of a leap, or what the learning rate was multiplied by.
function beside(leap) {
  if (leap.shape === "circle") return known(leap.alpha) ? plainNumber(leap.alpha) : null;
  return leap.shape && known(leap.rate_factor) && leap.rate_factor !== 1 ? `×${+leap.rate_factor.toPrecision(2)}` : null;
}

function leapsChart(w) {
  const arms = data.arms.filter((arm) => data.leaps[arm.name]), n = arms.length;
  const marks = arms.flatMap((arm, row) => data.leaps[arm.name].map((leap) => ({
    name: arm.name, x: leap.step, y: n - row, shape: leap.shape || "circle", size: leap.shape ? 5 : 4, hollow: !leap.shape, role: arm.role,
    text: beside(leap), tip: () => leapTip(arm, leap),
  })));
  return {
    title: "Decisions against steps", height: 62 + 34 * n, labels: 0,
    x: stepAxis(),
    y: { domain: [0.6, n + 0.75], rows: arms.map((arm, row) => [n - row, arm.name]), left: Math.min(w / 3, 18 + 7 * Math.max(...arms.map((a) => a.name.length))) }, marks,
  };
}

function windowsChart(series, title, domain, guides) {
  return (w) => {
    const curves = series.map((s, i) => ({
      name: s.window, role: `m${i % 7}`, width: 2, faint: false, points: s.points.map(([x, y]) => ({ x, y, tip: () => ({ title: `window of ${s.window} steps`, rows: [["step", whole(x)], [title.toLowerCase(), plainNumber(+y.toFixed(3))]].concat(title === "Persistence" && known(s.zero) ? [["zero point", s.zero.toFixed(3)]] : []) }) })),
      marker: s.points.length < 3 ? "circle" : null,
    }));
    const lines = guides.concat(title === "Persistence" ? series.flatMap((s, i) => (known(s.zero) ? [{ y: s.zero, role: `m${i % 7}`, dash: "5 4" }] : [])) : []);
    const values = series.flatMap((s) => s.points.map((p) => p[1])).concat(lines.map((l) => l.y), domain);
    return {
      title: `${title} against steps`, height: w > 600 ? 320 : 280, labels: 0,
      x: { domain: [0, Math.max(...series.flatMap((s) => s.points.map((p) => p[0])))], label: "optimizer steps", format: short },
      y: { domain: extent(values, 0.03), format: plainNumber, label: title === "Persistence" ? "cosine of successive windows" : "excess over Adam's memory" }, curves, lines,
    };
  };
}

function sigmaChart(w) {
  const many = data.sigma.modules.length > 40;
  const curves = data.sigma.modules.map((m) => ({
    name: m.name, role: m.role, width: many ? 1 : 1.6, faint: false, dash: layerDash(m.name),
    points: m.points.map(([x, y]) => ({ x, y, tip: () => ({ title: m.name, rows: [["step", whole(x)], ["sigma", plainNumber(y)]] }) })),
  }));
  const all = curves.flatMap((c) => c.points);
  return {
    title: "Top singular value by module", height: w > 600 ? 380 : 320, labels: 0,
    x: { domain: [0, Math.max(...all.map((p) => p.x))], label: "optimizer steps", format: short }, y: { domain: [0, extent(all.map((p) => p.y), 0.03)[1]], format: plainNumber, label: "top singular value" }, curves,
  };
}
// Up to four layers are told apart by dashes; deeper models by pointing.
const layers = [...new Set(data.sigma.modules.map((m) => (m.name.match(/\.(\d+)\./) || [])[1]))];
const layerDash = (name) => (layers.length > 4 ? "" : ["", "6 3", "2 3", "9 3 2 3"][layers.indexOf((name.match(/\.(\d+)\./) || [])[1])] || "");

// entries: [label, role or null, dashes]
function key(id, entries) {
  const box = document.getElementById(id);
  if (box) for (const [label, role, dash] of entries) {
    const item = html("span", "", null, box), swatch = make("svg", { viewBox: "0 0 30 8", "aria-hidden": "true" }, item);
    make("path", { d: "M0,4H30", "stroke-dasharray": dash || null, style: `stroke:${role ? hue(role) : "var(--soft)"};stroke-width:2` }, swatch);
    item.append(label);
  }
}

function segments(parent, title, options, pick) {
  const field = html("fieldset", "", null, parent), buttons = [];
  html("legend", "", title, field);
  const bar = html("div", "segments", null, field);
  options.forEach(([label, value], i) => {
    const button = html("button", "", label, bar);
    button.type = "button"; button.setAttribute("aria-pressed", String(i === 0)); buttons.push(button);
    button.addEventListener("click", () => { buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button))); pick(value); });
  });
  return (value) => buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(options[i][1] === value)));
}

function legend() {
  const box = document.getElementById("legend"), chips = new Map();
  const refresh = () => { for (const [name, chip] of chips) chip.setAttribute("aria-pressed", String(chosen.has(name))); charts.forEach((c) => c.draw()); };
  const choose = (names) => { chosen.clear(); names.forEach((n) => chosen.add(n)); refresh(); };
  if (data.arms.some((arm) => arm.greedy.some(known))) segments(box, "Accuracy", [["sampled", "accuracy"], ["greedy", "greedy"]], (v) => { measure = v; refresh(); });
  const sets = { key: (a) => a.key, all: () => true };
  const show = data.arms.length < 2 ? () => {} : segments(box, "Arms in full", [["key", "key"], ["all", "all"]], (v) => choose(data.arms.filter(sets[v]).map((a) => a.name)));
  for (const [group, title] of Object.entries(data.groups)) {
    const members = data.arms.filter((arm) => arm.group === group);
    const head = html("button", "group", title, box);
    head.type = "button"; head.title = "choose or leave the whole group";
    head.addEventListener("click", () => { const on = members.every((a) => chosen.has(a.name)); members.forEach((a) => (on ? chosen.delete(a.name) : chosen.add(a.name))); show(null); refresh(); });
    const row = html("div", "chips", null, box);
    for (const arm of members) {
      const chip = html("button", `chip ${arm.role}`, null, row);
      chip.type = "button";
      const swatch = make("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" }, chip);
      make("path", { d: "M0,6H30", "stroke-dasharray": arm.dash || null, style: `stroke:${hue(arm.role)};stroke-width:${width(arm)}` }, swatch);
      if (arm.steps.length < 8) mark(swatch, arm.marker, 15, 6, 3, arm.role, false);
      chip.append(arm.label);
      chip.addEventListener("click", () => { if (!chosen.delete(arm.name)) chosen.add(arm.name); show(null); refresh(); });
      for (const [on, name] of [["pointerenter", arm.name], ["pointerleave", null], ["focus", arm.name], ["blur", null]]) chip.addEventListener(on, () => charts.forEach((c) => c.heat(name)));
      chips.set(arm.name, chip);
    }
  }
  refresh();
}

charts.push(
  new Chart("by-steps", accuracyChart("steps", "optimizer steps", short, true)),
  new Chart("by-completions", accuracyChart("completions", "completions", short, false)),
  new Chart("by-seconds", accuracyChart("seconds", "seconds", short, false)),
  new Chart("rates", ratesChart),
  new Chart("leaps", leapsChart),
);
new Chart("persistence", windowsChart(data.persistence, "Persistence", [1], []));
new Chart("excess", windowsChart(data.excess, "Excess", [1], [{ y: 0, width: 1.6 }].concat(data.guides.map((y) => ({ y, width: 0.8, dash: "2 3" })))));
new Chart("sigma", sigmaChart);
key("persistence-key", data.persistence.map((s, i) => [`window ${s.window}`, `m${i % 7}`]).concat([["zero point of each window", null, "5 4"]]));
key("excess-key", data.excess.map((s, i) => [`window ${s.window}`, `m${i % 7}`]));
const named = layers.length > 1 && layers.length <= 4 ? layers.filter(known).map((layer) => [`layer ${layer}`, null, layerDash(`.${layer}.`)]) : [];
key("sigma-key", data.sigma.kinds.concat(named));
// What is folded away on a screen is read on paper.
let opened = [];
addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; opened.forEach((d) => { d.open = true; }); });
addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));
legend();
