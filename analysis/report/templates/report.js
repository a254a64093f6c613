"use strict";
// Draws a figure when it comes into view, and redraws its colours when the theme changes.
const root = document.documentElement;
const drawn = new Set();

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

function draw(element) {
  if (drawn.has(element)) return;
  drawn.add(element);
  const source = document.querySelector(`script[data-figure="${element.id}"]`);
  const figure = JSON.parse(source.textContent);
  Plotly.newPlot(element, figure.data, figure.layout, { responsive: true, displayModeBar: false })
    .then(() => Plotly.relayout(element, themed(element.layout)))
    .then(() => { element.dataset.drawn = "yes"; });
}

function retheme() {
  for (const element of drawn) Plotly.relayout(element, themed(element.layout));
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, { rootMargin: "400px" });
document.querySelectorAll(".figure").forEach((element) => watcher.observe(element));

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  retheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", retheme);

// a link to a folded section opens it
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();
