"use strict";
(() => {
  let figures = [];
  const narrow = () => window.innerWidth < 760;
  const shown = (node) => node.offsetParent !== null;

  // Theme: figures name colours as var(--x) or var(--x)/opacity; plotly wants values.
  const token = /^var\((--[a-z0-9]+)\)(?:\/([0-9.]+))?$/;
  const painted = (value, style) => {
    if (Array.isArray(value)) return value.map((v) => painted(v, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, style)]));
    const match = typeof value === "string" && token.exec(value);
    if (!match) return value;
    const hex = style.getPropertyValue(match[1]).trim();
    const part = (i) => parseInt(hex.slice(i, i + 2), 16);
    return match[2] === undefined ? hex : `rgba(${part(1)},${part(3)},${part(5)},${match[2]})`;
  };

  const axis = (own, style) => ({
    gridcolor: style.line, linecolor: style.muted, zerolinecolor: style.line, automargin: true, ...own,
    title: { ...(own?.title ?? {}), font: { size: 12, color: style.muted }, standoff: 8 },
    tickfont: { size: 11, color: style.muted },
  });

  const layoutOf = (figure, css, height) => {
    const style = Object.fromEntries(["line", "muted", "fg", "bg"].map((k) => [k, css.getPropertyValue(`--${k}`).trim()]));
    const small = narrow();
    const own = painted(figure.layout, css);
    const layout = {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: style.fg },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 50, r: 12, t: 34, b: 40 },
      legend: { orientation: "h", entrywidth: small ? 0.48 : 0, entrywidthmode: small ? "fraction" : "pixels", traceorder: "normal", x: 0, y: small ? -0.28 : -0.2, yanchor: "top", font: { size: 11 } },
      hoverlabel: { bgcolor: style.bg, bordercolor: style.muted, font: { color: style.fg, size: 12 }, align: "left", namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: style.muted, activecolor: style.fg },
      dragmode: small ? false : "zoom",
      ...own,
    };
    for (const key of Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k))) layout[key] = axis(layout[key], style);
    if (layout.yaxis2) layout.legend.y = small ? -0.2 : -0.13;
    // names of points would cover each other on a phone: the hover has them
    layout.height ??= height;
    if (small && layout.annotations) layout.annotations = layout.annotations.filter((a) => a.name !== "point");
    return layout;
  };

  let drawn = false;
  const draw = (node) => {
    const figure = figures[Number(node.dataset.figure)];
    const css = getComputedStyle(document.documentElement);
    const config = { responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    // the page keeps the place of a picture from the start: nothing moves when it is drawn
    const layout = layoutOf(figure, css, parseFloat(getComputedStyle(node).minHeight));
    const data = painted(figure.data, css);
    if (narrow()) for (const trace of data) if (trace.yaxis === "y2") trace.textposition = "none";
    return Plotly.react(node, data, layout, config).then(() => {
      node.setAttribute("data-drawn", "");
      if (!drawn) { drawn = true; performance.mark("first-picture"); }
    });
  };

  // Draw what comes into view; what is out of sight costs nothing.
  let ready = false;
  const waiting = new IntersectionObserver((entries) => {
    for (const entry of entries)
      if (entry.isIntersecting && ready) { waiting.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "600px" });
  const watch = () => document.querySelectorAll(".plot:not([data-drawn])").forEach((n) => { waiting.unobserve(n); waiting.observe(n); });
  const redraw = () => document.querySelectorAll(".plot[data-drawn]").forEach((n) => shown(n) && draw(n));

  const unpack = async (id) => {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  const start = async () => {
    if (!document.getElementById("figures").textContent) return;
    if (typeof DecompressionStream === "undefined") {
      document.getElementById("old").hidden = false;
      document.querySelectorAll(".picture").forEach((n) => { n.hidden = true; });
      return;
    }
    const script = document.createElement("script");
    [script.textContent, figures] = await Promise.all([unpack("plotly"), unpack("figures").then(JSON.parse)]);
    document.head.append(script);
    ready = true;
    watch();
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    window.matchMedia("(max-width: 760px)").addEventListener("change", redraw);
  };

  // One of several variants is shown.
  for (const group of document.querySelectorAll(".variants")) {
    const select = group.querySelector(":scope > .choose select");
    if (!select) continue;
    const variants = group.querySelectorAll(":scope > .variant");
    const show = () => {
      variants.forEach((v, i) => { v.hidden = i !== Number(select.value); });
      variants[Number(select.value)].querySelectorAll(".plot[data-drawn]").forEach((n) => Plotly.Plots.resize(n));
    };
    select.addEventListener("change", show);
    show();
  }

  for (const box of document.querySelectorAll(".tabs")) {
    const buttons = [...box.querySelectorAll('[role="tab"]')];
    const panels = [...box.querySelectorAll('[role="tabpanel"]')];
    const open = (i) => {
      buttons.forEach((b, k) => { b.setAttribute("aria-selected", String(k === i)); b.tabIndex = k === i ? 0 : -1; });
      panels.forEach((p, k) => { p.hidden = k !== i; });
    };
    buttons.forEach((b, i) => {
      b.addEventListener("click", () => open(i));
      b.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) { const k = (i + step + buttons.length) % buttons.length; open(k); buttons[k].focus(); }
      });
    });
    open(0);
  }

  // Tables sort by a click on a heading: numbers by their value, largest first; text by its letters.
  const key = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent.trim();
  };
  const order = (a, b) => {
    const [x, y] = [typeof a === "number", typeof b === "number"];
    if (x && y) return a - b;
    return x !== y ? (x ? 1 : -1) : a.localeCompare(b, "en", { numeric: true });
  };
  for (const head of document.querySelectorAll("th button")) {
    head.addEventListener("click", () => {
      const th = head.parentElement, body = th.closest("table").tBodies[0];
      const was = th.getAttribute("aria-sort");
      const down = was === "none" ? th.classList.contains("n") : was === "ascending";
      for (const other of th.parentElement.children) other.setAttribute("aria-sort", "none");
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => order(key(a, th.cellIndex), key(b, th.cellIndex)) * (down ? -1 : 1));
      body.append(...rows);
    });
  }

  start();
})();
