"use strict";
// Filters all parts of the page alike, and fills the table of images, a part at a time.
(() => {
  const PART = 200; // rows
  const images = JSON.parse(document.getElementById("data").textContent);
  const body = document.querySelector("#images tbody");
  const heads = [...document.querySelectorAll("#images th")];
  const more = document.getElementById("more");
  const fields = [...document.querySelectorAll("form.filter [name]")];
  const text = new Intl.Collator(undefined, { numeric: true });
  let shown = PART;
  let sorted = { key: "rank", down: false };

  function matches(row, wanted) {
    return (
      (!wanted.class || row.class === wanted.class) &&
      (!wanted.kind || row.kind === wanted.kind) &&
      (!wanted.result || row.result === wanted.result) &&
      (!wanted.name || row.image.toLowerCase().includes(wanted.name))
    );
  }

  function compare(one, other) {
    const [a, b] = [one[sorted.key], other[sorted.key]];
    if (a === b) return one.rank - other.rank;
    if (a === null || b === null) return a === null ? 1 : -1; // what is not known comes last
    const order = typeof a === "string" ? text.compare(a, b) : a - b;
    return sorted.down ? -order : order;
  }

  function cell(head, row) {
    const made = document.createElement("td");
    const value = row[head.dataset.key];
    made.className = head.className;
    if (head.dataset.key === "image" && row.shown) {
      const link = document.createElement("a");
      link.href = `#image-${row.number}`;
      link.textContent = value;
      made.append(link);
    } else if (value === null) {
      made.textContent = "-";
    } else {
      made.textContent = typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : value;
    }
    if (head.dataset.key === "result") made.classList.add(row.result.replace(" ", "-"));
    return made;
  }

  function show() {
    const wanted = Object.fromEntries(fields.map((field) => [field.name, field.value]));
    wanted.name = wanted.name.trim().toLowerCase();
    const rows = images.filter((row) => matches(row, wanted)).sort(compare);
    body.replaceChildren(
      ...rows.slice(0, shown).map((row) => {
        const line = document.createElement("tr");
        line.append(...heads.map((head) => cell(head, row)));
        return line;
      }),
    );
    more.hidden = rows.length <= shown;
    more.textContent = `Show more (${shown} of ${rows.length})`;
    document.getElementById("number").textContent = `${rows.length} of ${images.length} images`;
    const kept = new Set(rows.map((row) => row.number));
    for (const section of document.querySelectorAll("section.cases")) {
      let left = 0;
      for (const each of section.querySelectorAll(".case")) {
        each.hidden = !kept.has(Number(each.dataset.number));
        left += !each.hidden;
      }
      section.hidden = section.querySelector(".case") !== null && left === 0;
      const link = document.querySelector(`nav a[href="#${section.querySelector("h2").id}"]`);
      link.parentElement.hidden = section.hidden;
    }
    for (const each of document.querySelectorAll("[data-class]")) {
      each.hidden = Boolean(wanted.class) && each.dataset.class !== wanted.class;
    }
  }

  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const { key } = head.dataset;
      sorted = { key, down: sorted.key === key && !sorted.down };
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      show();
    });
  }
  for (const field of fields) {
    field.addEventListener("input", () => {
      shown = PART;
      show();
    });
  }
  document.querySelector("form.filter").addEventListener("submit", (event) => event.preventDefault());
  document.querySelector("form.filter").addEventListener("reset", () => setTimeout(show));
  more.addEventListener("click", () => {
    shown += 5 * PART;
    show();
  });
  show();
})();
