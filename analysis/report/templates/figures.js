// Draws a figure when it comes into view, and redraws its colours when the theme changes.
const root = document.documentElement;
const drawn = new Set();
let library = null;

// The library stands in the page as gzip in base64; the policy of the page knows its hash.
async function unpack() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const element = document.createElement("script");
  element.textContent = await new Response(plain).text();
  document.head.append(element);
}

function plotly() {
  library ??= typeof Plotly === "object" ? Promise.resolve() : unpack();
  return library;
}

function colours() {
  const style = getComputedStyle(root);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), faint: read("--faint"), line: read("--line"), panel: read("--panel") };
}

function themed(layout) {
  const c = colours();
  const change = { "font.color": c.ink, "hoverlabel.bgcolor": c.panel, "hoverlabel.font.color": c.ink };
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(key)) {
      change[key + ".gridcolor"] = c.line;
      change[key + ".linecolor"] = c.faint;
      change[key + ".zerolinecolor"] = c.line;
      change[key + ".tickcolor"] = c.faint;
    }
  }
  return change;
}

function figureOf(element) {
  const name = element.dataset.source || element.id;
  return JSON.parse(document.querySelector(`script[data-figure="${name}"]`).textContent);
}

// Where they have no room beside the title, the names of candidates lie below the figure, one under the other.
function fitted(element, layout) {
  if (!layout.legend) return layout;
  const names = figureNames(element).map((trace) => 45 + 6.5 * trace.name.length);
  const title = 7.5 * (layout.title?.text ?? "").length;
  const room = Math.max(560, title + names.reduce((sum, width) => sum + width, 0));
  if (element.clientWidth >= room) return layout;
  const legend = { ...layout.legend, x: 0, xanchor: "left", xref: "container", y: 0, yanchor: "bottom", yref: "container" };
  const lines = 20 * names.length;
  return { ...layout, legend, height: layout.height + lines, margin: { ...layout.margin, t: 40, b: layout.margin.b + lines } };
}

function figureNames(element) {
  return figureOf(element).data.filter((trace) => trace.name && trace.showlegend !== false);
}

async function draw(element) {
  if (drawn.has(element)) return;
  drawn.add(element);
  try {
    await plotly();
  } catch {
    element.textContent = "This browser is too old to draw the figures. The tables have the numbers.";
    return;
  }
  const figure = figureOf(element);
  await Plotly.newPlot(element, figure.data, fitted(element, figure.layout), { responsive: true, displayModeBar: false });
  element.on("plotly_click", openPoint);
  await Plotly.relayout(element, themed(element.layout));
  element.dataset.drawn = "yes";
}

// Another figure in the place of one that may be drawn already.
async function redraw(element, source) {
  if (element.dataset.source === source) return;
  element.dataset.source = source;
  if (!element.dataset.drawn) return;
  const figure = figureOf(element);
  await Plotly.react(element, figure.data, fitted(element, figure.layout));
  await Plotly.relayout(element, themed(element.layout));
}

function openPoint(event) {
  const { data, pointNumber } = event.points[0];
  const id = Array.isArray(data.meta) && data.meta[pointNumber];
  if (id) location.hash = id;
}

function retheme() {
  for (const element of drawn) if (element.dataset.drawn) Plotly.relayout(element, themed(element.layout));
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, { rootMargin: "400px" });
document.querySelectorAll(".figure").forEach((element) => watcher.observe(element));
