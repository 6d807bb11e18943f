// The drawn panels: each draws its figures whenever app.js has fetched them.
"use strict";

const STAR = "path://M12 2l3 7h7l-5.5 4.5 2 7.5L12 16.5 5.5 21l2-7.5L2 9h7z";
const ROW = 52; // pixels, the most that a line of the heat map is high
const MINUS = "\u2212", DASH = "\u2013";
const drawn = new Map(), figures = new Map();
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const three = (value) => (value === null || value === undefined ? DASH : value.toFixed(3).replace("-", MINUS));
const signed = (value) => (value > 0 ? "+" : "") + three(value);

// What is said below a chart, or with another place beside it.
const note = (text, place = {}) => ({ text, left: "center", bottom: 0, textStyle: { color: css("--soft"), fontSize: 11, fontWeight: "normal" }, ...place });

function frame(axes = {}) {
  return {
    animation: false,
    backgroundColor: "transparent",
    textStyle: { color: css("--text"), fontFamily: "inherit" },
    aria: { enabled: true },
    grid: { left: 52, right: 18, top: 34, bottom: 40, ...axes },
    legend: { top: 0, textStyle: { color: css("--text") }, itemWidth: 22 },
    tooltip: { renderMode: "richText", confine: true, backgroundColor: css("--panel"), textStyle: { color: css("--text") } },
  };
}

function axis(name, more = {}) {
  const line = { lineStyle: { color: css("--line") } };
  return {
    name, type: "value", nameLocation: "middle", nameGap: 26, axisLine: line, splitLine: line,
    axisLabel: { color: css("--soft"), hideOverlap: true }, nameTextStyle: { color: css("--soft") }, ...more,
  };
}

// Room around what is shown, at least a few hundredths: one candidate alone has no spread.
function around(values) {
  const low = Math.min(...values), high = Math.max(...values), room = Math.max(0.04, (high - low) * 0.15);
  return { min: Math.floor((low - room) * 50) / 50, max: Math.ceil((high + room) * 50) / 50 };
}

// Heights of labels that would lie on each other, moved apart by as little as it takes; between two ends, pixels from the top.
function apart(wanted, gap, low, high) {
  const order = wanted.map((_, at) => at).sort((a, b) => wanted[a] - wanted[b]), placed = [];
  order.forEach((at, rank) => { placed[at] = Math.max(wanted[at], rank ? placed[order[rank - 1]] + gap : low); });
  [...order].reverse().forEach((at, rank, all) => {
    placed[at] = Math.min(placed[at], rank ? placed[all[rank - 1]] - gap : high);
  });
  return placed;
}

// The colours of a diverging scale at −1, 0 and 1, between which it is linear in sRGB.
const WORSE = [0xb2, 0x18, 0x2b], EVEN = [0xf7, 0xf7, 0xf7], BETTER = [0x21, 0x66, 0xac];

function diverging(share) {
  const end = share < 0 ? WORSE : BETTER, part = Math.min(1, Math.abs(share));
  return EVEN.map((even, at) => Math.round(even + part * (end[at] - even)));
}

// Black or white, whichever is read better on a colour (WCAG 2.1: at least 4.58:1 on any).
function inkOn(rgb) {
  const [r, g, b] = rgb.map((part) => (part <= 10 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.1791 ? "#000" : "#fff";
}

const kinds = {
  // C: a line per score, by round; what retraining reaches as a dotted line with its value beside.
  curve(told, width, height) {
    const marks = { forget: "●", retain: "■", "held-out": "▲", "membership AUC": "◆" };
    const styles = {
      forget: { color: css("--forget"), symbol: "circle", lineStyle: { type: "dashed", width: 2 } },
      retain: { color: css("--retain"), symbol: "rect", lineStyle: { width: 2 } },
      "held-out": { color: css("--third"), symbol: "triangle", lineStyle: { type: "dotted", width: 2 } },
      "membership AUC": { color: css("--fourth"), symbol: "diamond", lineStyle: { type: [8, 3, 2, 3], width: 2 } },
    };
    const points = told.lines.flatMap((line) => line.points.map(([, value]) => value)).filter((value) => value !== null);
    const known = told.lines.filter((line) => line.retrained !== null);
    const grid = { top: 34, bottom: told.note ? 70 : 40, right: known.length ? 62 : 18 };
    const low = Math.min(0, ...points), high = 1, inner = height - grid.top - grid.bottom;
    const wanted = known.map((line) => grid.top + inner * (1 - (line.retrained - low) / (high - low)));
    const placed = apart(wanted, 13, grid.top + 12, height - grid.bottom);
    const moved = (line) => placed[known.indexOf(line)] - wanted[known.indexOf(line)];
    const lines = told.lines.map((line) => ({
      name: line.name, type: "line", symbolSize: 7, connectNulls: false, data: line.points,
      itemStyle: { color: styles[line.name].color }, ...styles[line.name],
      markLine: line.retrained === null ? undefined : {
        symbol: "none", silent: true, lineStyle: { color: styles[line.name].color, type: "dotted" },
        label: {
          position: "end", distance: 5, offset: [0, moved(line)], formatter: `{mark|${marks[line.name]}} ${three(line.retrained)}`, color: css("--text"), fontSize: 11,
          rich: { mark: { color: styles[line.name].color, fontSize: 10 } },
        },
        data: [{ yAxis: line.retrained }],
      },
    }));
    const head = note("retrained", { left: undefined, right: 4, top: grid.top - 14, bottom: undefined });
    return {
      ...frame(grid), series: lines, title: known.length ? [note(told.note), head] : note(told.note),
      tooltip: { ...frame().tooltip, trigger: "axis", valueFormatter: three },
      xAxis: axis("round", { minInterval: 1, min: 0, max: Math.max(1, told.rounds ?? 1) }),
      yAxis: axis("", { min: low, max: high }),
    };
  },

  // D: what was tried; the front is joined, the chosen one has a star.
  pareto(told) {
    const dots = (name, some, style) => ({
      name, type: "scatter", symbolSize: 11, data: some.map((one) => ({ name: one.name, value: [one.x, one.y] })), ...style,
    });
    const known = told.candidates.filter((one) => one.x !== null && one.y !== null);
    const all = told.original ? [...known, told.original] : known;
    const labelled = (fits) => ({
      axisLabel: { color: css("--soft"), hideOverlap: true, formatter: (value) => (fits(value) ? value.toFixed(2).replace("-", MINUS) : "") },
    });
    const [x, y] = [around(all.map((one) => one.x)), around(all.map((one) => one.y))];
    if (x.min < 0) x.min = -0.1 * x.max; // a gap is never below 0, and an accuracy never above 1: there is only room for symbols
    if (y.max > 1) y.max = 1 + 0.16 * (1 - y.min);
    const front = known.filter((one) => one.on_front).sort((a, b) => a.x - b.x);
    const shown = [
      dots("dominated", known.filter((one) => !one.on_front && !one.chosen), { itemStyle: { color: css("--soft") }, symbol: "rect" }),
      { ...dots("front", front, { symbol: "diamond" }), type: "line", itemStyle: { color: css("--retain") }, lineStyle: { width: 1 } },
      dots("chosen", known.filter((one) => one.chosen), { symbol: STAR, symbolSize: 20, itemStyle: { color: css("--forget") } }),
      dots("deployed", told.original ? [{ name: "the deployed model", ...told.original }] : [],
        { symbol: "circle", itemStyle: { color: "transparent", borderColor: css("--text"), borderWidth: 2 } }),
    ].filter((one) => one.data.length);
    return {
      ...frame({ left: 60 }),
      legend: { ...frame().legend, itemWidth: 14, itemHeight: 14, data: shown.map((one) => ({ name: one.name, icon: one.symbol })) },
      tooltip: { ...frame().tooltip, formatter: ({ data }) => `${data.name}: ${three(data.value[0])}, ${three(data.value[1])}` },
      xAxis: axis(told.x, { ...x, ...labelled((value) => value > -1e-9) }),
      yAxis: axis(told.y, { ...y, ...labelled((value) => value < 1 + 1e-9), nameGap: 42 }),
      series: shown,
    };
  },

  // E: change after − before, site by metric; colour tells better or worse, the sign the direction.
  heat(told, width, height) {
    const cells = told.cells.map(([column, row, value, better, below]) => {
      const text = below === null ? signed(value) : `< ${below}`, rgb = better === null ? null : diverging(better);
      return {
        value: [column, row, better ?? 0], shown: text,
        label: { show: true, formatter: text, color: rgb ? inkOn(rgb) : css("--text") },
        itemStyle: { color: rgb ? `rgb(${rgb.join(", ")})` : css("--line") },
      };
    });
    const foot = told.note ? 22 : 6, room = height - 46 - foot;
    const rows = Math.min(room, ROW * told.sites.length); // few sites do not fill the height
    const names = (data) => ({
      type: "category", data, axisLine: { show: false }, axisTick: { show: false }, splitArea: { show: false },
      axisLabel: { color: css("--text"), interval: 0, overflow: "break", fontSize: 11 },
    });
    const column = (width - 104) / told.metrics.length - 4;
    const above = names(told.metrics);
    return {
      ...frame({ left: 86, top: 46, bottom: foot + room - rows }), legend: undefined,
      title: note(told.note),
      tooltip: {
        ...frame().tooltip,
        formatter: ({ data }) => `${told.sites[data.value[1]]}, ${told.metrics[data.value[0]]}: ${data.shown}`,
      },
      xAxis: { ...above, position: "top", axisLabel: { ...above.axisLabel, width: column, lineHeight: 13 } }, yAxis: { ...names(told.sites), inverse: true },
      visualMap: { show: false, min: -1, max: 1, dimension: 2, inRange: { color: [WORSE, EVEN, BETTER].map((rgb) => `rgb(${rgb.join(", ")})`) } },
      series: [{ type: "heatmap", data: cells, itemStyle: { borderColor: css("--panel"), borderWidth: 2 } }],
    };
  },

  // F: every point before and after, in the same projection.
  embedding(told, width, height) {
    const styles = {
      forget: { color: css("--forget"), symbol: "triangle" },
      retain: { color: css("--retain"), symbol: "circle" },
      reference: { color: css("--third"), symbol: "rect" },
    };
    const series = told.groups.flatMap((group) => ["before", "after"].map((when, side) => ({
      name: group.name, type: "scatter", xAxisIndex: side, yAxisIndex: side, symbolSize: 5, symbol: styles[group.name].symbol,
      itemStyle: { color: styles[group.name].color, opacity: 0.65 }, large: true, largeThreshold: 2000, data: group[when],
    })));
    // Beside each other, or above each other where they are larger so; both axes have one scale, so that distances are seen as they are.
    const top = 34, foot = 26, edge = 12, spans = told.high.map((end, at) => Math.max(end - told.low[at], 1e-9));
    const unitOf = (size) => Math.max(spans[0] / size.width, spans[1] / size.height); // of the data, a pixel
    const [beside, above] = [
      { width: (width - 3 * edge) / 2, height: height - top - foot }, { width: width - 2 * edge, height: (height - top - 2 * foot) / 2 },
    ];
    const stacked = unitOf(beside) > 1.15 * unitOf(above), size = stacked ? above : beside, unit = unitOf(size);
    const places = [0, 1].map((side) => ({
      ...size, left: stacked ? edge : edge + side * (size.width + edge), top: stacked ? top + side * (size.height + foot) : top,
    }));
    const bounds = [size.width, size.height].map((pixels, at) => {
      const middle = (told.low[at] + told.high[at]) / 2, half = unit * pixels / 2;
      return { min: middle - half, max: middle + half };
    });
    const small = { axisLabel: { show: false }, axisTick: { show: false }, nameGap: 8 };
    const x = (index, name) => axis(name, { gridIndex: index, ...bounds[0], ...small });
    const y = (index) => axis("", { gridIndex: index, ...bounds[1], ...small });
    return {
      ...frame(), tooltip: undefined, grid: places, xAxis: [x(0, "before"), x(1, "after")], yAxis: [y(0), y(1)], series,
    };
  },
};

function draw(element, told) {
  figures.set(element, told);
  element.querySelector(".missing")?.remove();
  const chart = drawn.get(element);
  if (told.missing) {
    chart?.dispose();
    drawn.delete(element);
    const note = document.createElement("p");
    note.className = "missing";
    note.textContent = `${DASH} ${told.missing}`;
    element.replaceChildren(note);
    return;
  }
  const made = chart ?? echarts.init(element);
  drawn.set(element, made);
  made.setOption(kinds[element.dataset.part.slice(6)](told, element.clientWidth, element.clientHeight), { notMerge: true });
  element.dataset.drawn = String(Number(element.dataset.drawn ?? 0) + 1);
}

document.addEventListener("excise:part", ({ target, detail }) => draw(target, detail));
document.addEventListener("excise:theme", () => figures.forEach((told, element) => draw(element, told)));
addEventListener("resize", () => drawn.forEach((chart, element) => {
  chart.resize();
  draw(element, figures.get(element)); // what is placed by pixels has another place
}));
