// The drawn panels: each draws its figures whenever app.js has fetched them.
"use strict";

const MINUS = "\u2212", DASH = "\u2013";
const drawn = new Map(), figures = new Map();
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const three = (value) => (value === null || value === undefined ? DASH : value.toFixed(3).replace("-", MINUS));
const signed = (value) => (value > 0 ? "+" : "") + three(value);

// What is said below a chart.
const note = (text) => ({ text, left: "center", bottom: 0, textStyle: { color: css("--soft"), fontSize: 11, fontWeight: "normal" } });

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

const kinds = {
  // C: a line per score, by round; what retraining reaches as a dotted line.
  curve(told) {
    const styles = {
      forget: { color: css("--forget"), symbol: "circle", lineStyle: { type: "dashed", width: 2 } },
      retain: { color: css("--retain"), symbol: "rect", lineStyle: { width: 2 } },
      "held-out": { color: css("--third"), symbol: "triangle", lineStyle: { type: "dotted", width: 2 } },
      "membership AUC": { color: css("--fourth"), symbol: "diamond", lineStyle: { type: [8, 3, 2, 3], width: 2 } },
    };
    const lines = told.lines.map((line) => ({
      name: line.name, type: "line", symbolSize: 7, connectNulls: false, data: line.points,
      itemStyle: { color: styles[line.name].color }, ...styles[line.name],
      markLine: line.retrained === null ? undefined : {
        symbol: "none", silent: true, lineStyle: { color: styles[line.name].color, type: "dotted" },
        label: { show: line.name === "forget", formatter: "retrained", position: "insideEndBottom", color: css("--soft") }, data: [{ yAxis: line.retrained }],
      },
    }));
    const points = told.lines.flatMap((line) => line.points.map(([, value]) => value)).filter((value) => value !== null);
    return {
      ...frame({ bottom: told.note ? 70 : 40 }), series: lines, title: note(told.note),
      tooltip: { ...frame().tooltip, trigger: "axis", valueFormatter: three },
      xAxis: axis("round", { minInterval: 1, min: 0, max: Math.max(1, told.rounds ?? 1) }),
      yAxis: axis("", { min: Math.min(0, ...points), max: 1 }),
    };
  },

  // D: what was tried; the front is joined, the chosen one pinned.
  pareto(told) {
    const dots = (name, some, style) => ({
      name, type: "scatter", symbolSize: 11, data: some.map((one) => ({ name: one.name, value: [one.x, one.y] })), ...style,
    });
    const known = told.candidates.filter((one) => one.x !== null && one.y !== null);
    const all = told.original ? [...known, told.original] : known;
    const decimals = { axisLabel: { color: css("--soft"), hideOverlap: true, formatter: (value) => value.toFixed(2).replace("-", MINUS) } };
    const front = known.filter((one) => one.on_front).sort((a, b) => a.x - b.x);
    return {
      ...frame({ left: 60 }),
      tooltip: { ...frame().tooltip, formatter: ({ data }) => `${data.name}: ${three(data.value[0])}, ${three(data.value[1])}` },
      xAxis: axis(told.x, { ...around(all.map((one) => one.x)), ...decimals }),
      yAxis: axis(told.y, { ...around(all.map((one) => one.y)), ...decimals, nameGap: 42 }),
      series: [
        dots("dominated", known.filter((one) => !one.on_front && !one.chosen), { itemStyle: { color: css("--soft") }, symbol: "rect" }),
        { ...dots("front", front, { symbol: "diamond" }), type: "line", itemStyle: { color: css("--retain") }, lineStyle: { width: 1 } },
        dots("chosen", known.filter((one) => one.chosen), { symbol: "pin", symbolSize: 34, itemStyle: { color: css("--forget") } }),
        dots("deployed", told.original ? [{ name: "the deployed model", ...told.original }] : [],
          { symbol: "emptyCircle", itemStyle: { color: css("--text") } }),
      ],
    };
  },

  // E: change after − before, site by metric; colour tells better or worse, the sign the direction.
  heat(told, width) {
    const cells = told.cells.map(([column, row, value, better, below]) => ({
      value: [column, row, better === null ? 0 : better], shown: below === null ? signed(value) : `< ${below}`,
      label: { show: true, formatter: below === null ? signed(value) : `< ${below}`, color: Math.abs(better ?? 0) > 0.6 ? "#fff" : "#111" },
      itemStyle: better === null ? { color: css("--line") } : undefined,
    }));
    const names = (data) => ({
      type: "category", data, axisLine: { show: false }, axisTick: { show: false }, splitArea: { show: false },
      axisLabel: { color: css("--text"), interval: 0, overflow: "break", fontSize: 11 },
    });
    const column = (width - 104) / told.metrics.length - 4;
    const above = names(told.metrics);
    return {
      ...frame({ left: 86, top: 46, bottom: told.note ? 22 : 6 }), legend: undefined,
      title: note(told.note),
      tooltip: {
        ...frame().tooltip,
        formatter: ({ data }) => `${told.sites[data.value[1]]}, ${told.metrics[data.value[0]]}: ${data.shown}`,
      },
      xAxis: { ...above, position: "top", axisLabel: { ...above.axisLabel, width: column, lineHeight: 13 } }, yAxis: { ...names(told.sites), inverse: true },
      visualMap: { show: false, min: -1, max: 1, dimension: 2, inRange: { color: ["#B2182B", "#F7F7F7", "#2166AC"] } },
      series: [{ type: "heatmap", data: cells, itemStyle: { borderColor: css("--panel"), borderWidth: 2 } }],
    };
  },

  // F: every point before and after, in the same projection.
  embedding(told) {
    const styles = {
      forget: { color: css("--forget"), symbol: "triangle" },
      retain: { color: css("--retain"), symbol: "circle" },
      reference: { color: css("--third"), symbol: "rect" },
    };
    const series = told.groups.flatMap((group) => ["before", "after"].map((when, side) => ({
      name: group.name, type: "scatter", xAxisIndex: side, yAxisIndex: side, symbolSize: 5, symbol: styles[group.name].symbol,
      itemStyle: { color: styles[group.name].color, opacity: 0.65 }, large: true, largeThreshold: 2000, data: group[when],
    })));
    const bounds = { min: told.low, max: told.high };
    const small = { axisLabel: { show: false }, axisTick: { show: false }, nameGap: 8 };
    const x = (index, name) => axis(name, { gridIndex: index, min: bounds.min[0], max: bounds.max[0], ...small });
    const y = (index) => axis("", { gridIndex: index, min: bounds.min[1], max: bounds.max[1], ...small });
    return {
      ...frame(), tooltip: undefined,
      grid: [{ left: 12, right: "52%", top: 34, bottom: 26 }, { left: "52%", right: 12, top: 34, bottom: 26 }],
      xAxis: [x(0, "before"), x(1, "after")], yAxis: [y(0), y(1)], series,
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
  made.setOption(kinds[element.dataset.part.slice(6)](told, element.clientWidth), { notMerge: true });
  element.dataset.drawn = String(Number(element.dataset.drawn ?? 0) + 1);
}

document.addEventListener("excise:part", ({ target, detail }) => draw(target, detail));
document.addEventListener("excise:theme", () => figures.forEach((told, element) => draw(element, told)));
addEventListener("resize", () => drawn.forEach((chart) => chart.resize()));
