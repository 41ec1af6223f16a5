"use strict";
// The page is whole without any of this: it adds sorting, quick tooltips and a copy button.

function sorter(table) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const pinned = given.filter((row) => "pinned" in row.dataset);
  const value = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim().toLowerCase();
  };
  const unknown = (value) => value === "–" || value === "";
  const order = (column, sign) => (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    // What is not known comes last in both directions.
    if (unknown(x) || unknown(y)) return unknown(x) - unknown(y);
    return sign * (typeof x === typeof y && typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
  };
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      const state = next[header.getAttribute("aria-sort") || "none"];
      [...table.tHead.rows[0].cells].forEach((other) => other.removeAttribute("aria-sort"));
      if (state !== "none") header.setAttribute("aria-sort", state);
      const rest = given.filter((row) => !pinned.includes(row));
      if (state !== "none") rest.sort(order(column, state === "ascending" ? 1 : -1));
      body.append(...pinned, ...rest);
    });
  });
}

function tooltip(tip, mark) {
  const text = mark.getAttribute("aria-label");
  mark.querySelector("title").remove(); // the browser's own would come up as a second one
  const show = () => {
    const at = mark.getBoundingClientRect();
    tip.textContent = text;
    tip.hidden = false;
    const left = Math.min(Math.max(at.left + at.width / 2 - tip.offsetWidth / 2, 8), innerWidth - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 6;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 0 ? above : at.bottom + 6) + scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("focus", show);
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("blur", hide);
}

function copier(box) {
  if (!navigator.clipboard) return;
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(box.querySelector("code").textContent);
    button.textContent = "Copied";
  });
  box.append(button);
}

document.querySelectorAll("table[data-sortable]").forEach(sorter);
document.querySelectorAll("a.mark").forEach((mark) => tooltip(document.getElementById("tip"), mark));
document.querySelectorAll(".command").forEach(copier);
