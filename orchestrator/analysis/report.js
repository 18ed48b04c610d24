"use strict";
(() => {
  const PAGE = window.matchMedia("(max-width: 40rem)").matches ? 20 : 100;
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const measured = new Intl.NumberFormat("en", { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
  const byKey = (a, b) => (a === null) - (b === null) || (a < b ? -1 : a > b ? 1 : 0);
  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  const linked = (text, address) => {
    const link = make("a", text);
    link.href = address;
    link.target = "_blank";
    link.rel = "noreferrer";
    return link;
  };

  /* Tables of the page: a click on a heading sorts the rows; long tables have a filter box. */
  const valueOf = (text) => {
    const plain = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "").trim();
    const parsed = parseFloat(plain);
    return plain === "" ? null : Number.isNaN(parsed) ? plain.toLowerCase() : parsed;
  };
  const setOrder = (head, cell) => {
    const down = cell.getAttribute("aria-sort") === "ascending";
    for (const other of head.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    return down ? -1 : 1;
  };
  const onHeading = (head, sort) => {
    [...head.children].forEach((cell, place) => {
      cell.tabIndex = 0;
      cell.setAttribute("role", "button");
      const go = () => sort(place, setOrder(head, cell));
      cell.addEventListener("click", go);
      cell.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
    });
  };
  const box = (label, change) => {
    const input = make("input");
    input.type = "search";
    input.placeholder = label;
    input.setAttribute("aria-label", label);
    input.addEventListener("input", () => change(input.value));
    return input;
  };
  for (const table of document.querySelectorAll("table.plain")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    onHeading(table.tHead.rows[0], (place, sign) => {
      rows.sort((a, b) => sign * byKey(valueOf(a.cells[place].textContent), valueOf(b.cells[place].textContent)));
      body.append(...rows);
    });
    if (rows.length > 8) {
      table.parentElement.before(box("filter rows", (text) => {
        const words = text.toLowerCase().split(/\s+/);
        for (const row of rows) {
          const line = row.textContent.toLowerCase();
          row.hidden = !words.every((word) => line.includes(word));
        }
      }));
    }
  }

  /* The table of trials shows one page of rows at a time, so that 10,000 trials load quickly. */
  const place = document.getElementById("trial-table");
  const data = JSON.parse(document.getElementById("trial-data").textContent);
  if (place && data.rows.length) {
    /* A column of whole numbers shows whole numbers; any other column shows four digits. */
    const formats = data.header.map((_, column) =>
      data.rows.every((row) => typeof row[column] !== "number" || Number.isInteger(row[column])) ? whole : measured);
    const lines = data.rows.map((row) => row.join(" ").toLowerCase());
    let order = data.rows.map((_, index) => index);
    let shown = order;
    let page = 0;
    const head = make("tr");
    data.header.forEach((name, column) => head.append(make("th", name, data.numeric[column] ? "number" : "")));
    const table = make("table");
    const body = make("tbody");
    table.append(make("thead"), body);
    table.tHead.append(head);
    const count = make("span", "", "soft");
    const back = make("button", "‹");
    const on = make("button", "›");
    back.setAttribute("aria-label", "earlier trials");
    on.setAttribute("aria-label", "further trials");
    const draw = () => {
      const part = shown.slice(page * PAGE, (page + 1) * PAGE);
      body.replaceChildren(...part.map((index) => {
        const line = make("tr");
        data.rows[index].forEach((value, column) => {
          const isNumber = typeof value === "number";
          const text = value === null ? "" : isNumber ? formats[column].format(value).replace("-", "−") : value;
          const isTrial = column === data.header.length - 1;
          const cell = make("td", undefined, data.numeric[column] ? "number" : isTrial ? "row" : "");
          cell.dataset.head = data.header[column];
          const run = isTrial ? data.runs[index] : undefined;
          if (run) cell.append(linked(text, data.pages + run));
          else cell.textContent = text;
          line.append(cell);
        });
        return line;
      }));
      const last = Math.min((page + 1) * PAGE, shown.length);
      count.textContent = shown.length ? `${page * PAGE + 1}–${last} of ${shown.length}` : "none";
      back.disabled = page === 0;
      on.disabled = last >= shown.length;
    };
    const apply = () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      shown = order.filter((index) => words.every((word) => lines[index].includes(word)));
      page = 0;
      draw();
    };
    const filter = box("filter trials, e.g. small_cnn digits", apply);
    back.addEventListener("click", () => { page -= 1; draw(); });
    on.addEventListener("click", () => { page += 1; draw(); });
    onHeading(head, (column, sign) => {
      const rows = data.rows;
      order = [...order].sort((a, b) => sign * byKey(rows[a][column], rows[b][column]) || a - b);
      apply();
    });
    const bar = make("div", undefined, "bar");
    bar.append(filter, back, on, count);
    const scroll = make("div", undefined, "scroll");
    scroll.append(table);
    place.replaceChildren(bar, scroll);
    draw();
    window.showTrials = (text) => { filter.value = text; apply(); place.scrollIntoView({ block: "start" }); };
  }

  /* Figures: a point shows its name and links to its trials; a click elsewhere enlarges the figure. */
  const tip = make("div", "", "tip");
  tip.hidden = true;
  document.body.append(tip);
  const XLINK = "http://www.w3.org/1999/xlink";
  const pointAt = (target) => {
    const link = target.closest ? target.closest("a") : null;
    const address = link && (link.getAttributeNS(XLINK, "href") || "");
    return address && address.startsWith("#point:") ? decodeURIComponent(address.slice(7)) : null;
  };
  for (const drawing of document.querySelectorAll("figure svg")) {
    drawing.addEventListener("mousemove", (event) => {
      const text = pointAt(event.target);
      tip.hidden = text === null;
      if (text === null) return;
      tip.textContent = text.replace("|", " · ");
      tip.style.left = `${Math.min(event.pageX + 12, document.documentElement.scrollWidth - tip.offsetWidth - 4)}px`;
      tip.style.top = `${event.pageY + 12}px`;
    });
    drawing.addEventListener("mouseleave", () => { tip.hidden = true; });
    drawing.addEventListener("click", (event) => {
      const text = pointAt(event.target);
      event.preventDefault();
      if (text === null) drawing.closest("figure").classList.toggle("large");
      else if (window.showTrials) window.showTrials(text.split("|")[0]);
    });
  }
  const points = JSON.parse(document.getElementById("point-data").textContent);
  for (const button of document.querySelectorAll("button.data")) {
    button.addEventListener("click", () => {
      const quote = (value) => (value === null ? "" : /[",\n]/.test(value) ? `"${String(value).replace(/"/g, '""')}"` : value);
      const text = [points.columns, ...points.data].map((row) => row.map(quote).join(",")).join("\n");
      const link = make("a");
      link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "text/csv" }));
      link.download = `${button.dataset.name.split(".")[0]}.csv`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
})();
