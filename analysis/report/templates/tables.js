// Each table as CSV and JSON: the text of its cells, the small lines after semicolons.
function cellText(cell) {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("br").forEach((each) => each.replaceWith("; "));
  copy.querySelectorAll(".sub, .tag, .disqualified, a + a, code + code").forEach((each) => each.prepend("; "));
  return copy.textContent.replace(/\s+/g, " ").replace(/\s*;(\s*;)*\s*/g, "; ").replace(/^; |; $/g, "").trim();
}

function rowText(row) {
  return [...row.cells].flatMap((cell) => [cellText(cell), ...Array(cell.colSpan - 1).fill("")]);
}

function tableRows(table) {
  return [rowText(table.tHead.rows[0]), ...[...table.tBodies[0].rows].map(rowText)];
}

// A spreadsheet takes a text that begins like a formula for one; an apostrophe before it makes it a text.
function csvField(text) {
  const safe = /^[=+\-@\t\r]/.test(text) && !/^[+-]?[\d.]/.test(text) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function asCsv(table) {
  return tableRows(table).map((row) => row.map(csvField).join(",") + "\r\n").join("");
}

function asJson(table) {
  const [names, ...rows] = tableRows(table);
  return JSON.stringify(rows.map((row) => Object.fromEntries(row.map((text, i) => [names[i] || `column ${i + 1}`, text]))), null, 1);
}

function offer(table, number) {
  const section = table.closest("section");
  const about = `${section.id}-${number + 1}`;
  const line = document.createElement("p");
  line.className = "get";
  for (const [kind, type, made] of [["CSV", "text/csv", asCsv], ["JSON", "application/json", asJson]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = kind;
    button.setAttribute("aria-label", `${kind} of this table`);
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([made(table)], { type }));
      link.download = `${about}.${kind.toLowerCase()}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    });
    line.append(button, " ");
  }
  (table.closest(".scroll") || table).after(line);
}

for (const section of document.querySelectorAll("main section")) section.querySelectorAll("table").forEach(offer);
