// "My context, my load, my objective": looks a case up among those that were measured. It decides nothing and
// computes nothing; what was not measured, it says so. The case stands in the URL.
const ask = document.getElementById("ask");

function number(value) {
  return value.toLocaleString("en-US", { maximumFractionDigits: 3 });
}

function paragraph(text, kind) {
  const element = document.createElement("p");
  element.className = kind;
  element.textContent = text;
  return element;
}

function ascending(values) {
  return [...new Set(values)].sort((a, b) => a - b);
}

// Which of the measured values speak for one: itself, its two neighbours, or none.
function beside(value, measured) {
  if (measured.includes(value)) return [value];
  const above = measured.findIndex((each) => each > value);
  return above > 0 ? [measured[above - 1], measured[above]] : [];
}

function span(measured) {
  const [first, last] = [measured[0], measured[measured.length - 1]];
  return first === last ? number(first) : `${number(first)} to ${number(last)}`;
}

function unmeasured(value, measured, unit) {
  const near = beside(value, measured);
  if (near.length === 1) return null;
  if (near.length === 2) {
    return paragraph(`${number(value)} ${unit} is between measured points: not measured. What was measured at ` +
      `${number(near[0])} and ${number(near[1])} ${unit}:`, "unmeasured");
  }
  return paragraph(`Not measured: ${number(value)} ${unit}. Measured: ${span(measured)} ${unit}.`, "unmeasured");
}

function copyOf(id) {
  return document.getElementById(id).content.cloneNode(true);
}

function answered(known, wanted) {
  const same = known.families.map((family, id) => ({ ...family, id }))
    .filter((family) => family.task === wanted.task && family.unit === wanted.unit);
  if (!same.length) return [paragraph(`Not measured: ${wanted.task} with a load in ${wanted.unit}.`, "unmeasured")];
  const out = [];
  const levels = ascending(same.map((family) => family.level));
  out.push(unmeasured(wanted.level, levels, wanted.unit));
  const families = same.filter((family) => beside(wanted.level, levels).includes(family.level));
  for (const family of families) {
    const own = known.cases.map((each, id) => ({ ...each, id })).filter((each) => each.family === family.id);
    const contexts = ascending(own.map((each) => each.context));
    if (same.length > 1) out.push(paragraph(family.words, "whose"));
    out.push(unmeasured(wanted.context, contexts, "tokens"));
    const near = beside(wanted.context, contexts);
    for (const context of near) {
      const here = own.filter((each) => each.context === context && each.by === wanted.by);
      if (!here.length) {
        out.push(paragraph(`No candidate has a value of ${known.objectives[wanted.by]} at ${number(context)} tokens.`, "case"));
      }
      for (const each of here) {
        out.push(copyOf(`case-${each.id}`));
        if (near.length === 1 && each.pair !== null) out.push(copyOf(`pair-${each.pair}`));
      }
    }
    if (near.length === 2) {
      for (const each of known.crossings) {
        if (each.family === family.id && each.by === wanted.by) {
          out.push(paragraph(`${known.objectives[each.by]}: ${each.sentence}`, "case"));
        }
      }
    }
  }
  return out.filter((element) => element !== null);
}

function startAsking() {
  const known = JSON.parse(document.getElementById("cases").textContent);
  const field = (name) => ask.elements.namedItem(name);
  const options = (id, values) => document.getElementById(id).replaceChildren(...ascending(values).map((value) => {
    const element = document.createElement("option");
    element.value = String(value);
    return element;
  }));

  function show() {
    const wanted = Object.fromEntries(["unit", "task", "by"].map((name) => [name, field(name).value]));
    for (const name of ["context", "level"]) wanted[name] = field(name).valueAsNumber;
    const place = document.getElementById("case");
    if (!(wanted.context > 0) || !(wanted.level >= 0)) {
      place.replaceChildren(paragraph("Give a context in tokens and a load, as numbers.", "unmeasured"));
      return;
    }
    place.replaceChildren(...answered(known, wanted));
    const fits = (each) => {
      const family = known.families[each.family];
      return each.by === wanted.by && family.task === wanted.task && family.unit === wanted.unit;
    };
    const distance = (each) => Math.abs(known.families[each.family].level - wanted.level);
    const nearest = known.cases.filter((each) => fits(each) && each.figure)
      .sort((a, b) => distance(a) - distance(b))[0];
    const band = document.getElementById("band");
    if (band && nearest) {
      redraw(band, nearest.figure);
      document.getElementById("band-note").textContent = nearest.note;
    }
    suggest();
  }

  function suggest() {
    const families = known.families.filter((family) => family.task === field("task").value && family.unit === field("unit").value);
    options("levels", families.map((family) => family.level));
    options("contexts", known.cases.filter((each) => families.includes(known.families[each.family])).map((each) => each.context));
  }

  function write() {
    const state = new URLSearchParams(new FormData(ask));
    history.replaceState(null, "", `#${state}`);
  }

  function read() {
    const state = new URLSearchParams(location.hash.slice(1));
    if (!state.has("context")) return;
    for (const [name, value] of state) if (field(name)) field(name).value = value;
    show();
  }

  ask.addEventListener("input", () => { show(); write(); });
  ask.addEventListener("submit", (event) => { event.preventDefault(); show(); write(); });
  addEventListener("hashchange", read);
  suggest();
  read();
}

if (ask) startAsking();
