"use strict";
(() => {
  const PAGE = 40;
  const data = JSON.parse(document.getElementById("data").textContent);
  const groups = data.groups || [];
  const table = document.getElementById("table");
  const state = { sort: "step", descending: false, shown: PAGE };

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function format(value, whole) {
    if (value === null || value === undefined) return "–";
    return whole ? String(value) : value.toFixed(3);
  }

  function field(id) {
    return document.getElementById(id).value;
  }

  function searchable(group) {
    const texts = [group.prompt, group.id, ...group.references, ...group.answers.map((a) => a.text)];
    return texts.join("\n").toLowerCase();
  }

  function matches(group) {
    const words = field("search").trim().toLowerCase();
    const step = group.numbers.step;
    const first = field("first") === "" ? -Infinity : Number(field("first"));
    const last = field("last") === "" ? Infinity : Number(field("last"));
    return step >= first && step <= last && (words === "" || group.haystack.includes(words));
  }

  function compare(a, b) {
    const x = a.numbers[state.sort];
    const y = b.numbers[state.sort];
    if (x === y) return a.index - b.index;
    if (x === null) return 1;
    if (y === null) return -1;
    return state.descending ? y - x : x - y;
  }

  function sortBy(key) {
    state.descending = state.sort === key ? !state.descending : key !== "step";
    state.sort = key;
    draw();
  }

  function heading(column) {
    const th = element("th", "number");
    const button = element("button", "", column.label);
    th.scope = "col";
    button.type = "button";
    button.addEventListener("click", () => sortBy(column.key));
    if (state.sort === column.key) th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    th.append(button);
    return th;
  }

  function drawHead() {
    const row = element("tr");
    const prompt = element("th", "", "prompt");
    prompt.scope = "col";
    const [step, ...others] = data.columns;
    row.append(heading(step), prompt, ...others.map(heading));
    table.tHead.replaceChildren(row);
  }

  function groupRow(group) {
    const row = element("tr", "group");
    const [step, ...others] = data.columns;
    const cell = element("td", "prompt");
    const button = element("button", "", question(group.prompt) || group.id);
    button.type = "button";
    button.dir = "auto";
    button.setAttribute("aria-expanded", "false");
    cell.append(button);
    row.id = "group-" + group.index;
    row.append(number(group.numbers[step.key], true), cell, ...others.map((c) => number(group.numbers[c.key])));
    row.addEventListener("click", () => toggle(row, group));
    return row;
  }

  function question(prompt) {
    const lines = prompt.split("\n").map((line) => line.trim()).filter(Boolean);
    const asked = lines.filter((line) => line.includes("?")).pop();
    return (asked || lines.join(" ")).slice(0, 300);
  }

  function number(value, whole = false) {
    return element("td", "number", format(value, whole));
  }

  function toggle(row, group) {
    const open = row.classList.toggle("open");
    row.querySelector("button").setAttribute("aria-expanded", String(open));
    if (open) row.after(detail(group));
    else row.nextElementSibling.remove();
  }

  function detail(group) {
    const row = element("tr", "detail");
    const cell = element("td");
    cell.colSpan = data.columns.length + 1;
    cell.append(element("h3", "", "Prompt"), text("div", group.prompt, "text prompt"));
    if (group.references.length) {
      cell.append(element("h3", "", "Expected"), text("div", group.references.join("  |  "), "text"));
    }
    cell.append(element("h3", "", group.answers.length + " answers, best first"), answers(group));
    if (group.more) cell.append(element("p", "", group.more + " further answers are in the rollout file."));
    row.append(cell);
    return row;
  }

  function text(tag, content, className) {
    const made = element(tag, content.trim() ? className : className + " empty", content.trim() ? content : "(empty)");
    made.dir = "auto";
    return made;
  }

  function answers(group) {
    const made = element("table", "answers");
    const head = element("tr");
    head.append(element("th", "", "answer"));
    for (const name of ["reward", "cluster", "weight", "advantage", "tokens"]) head.append(element("th", "number", name));
    const body = element("tbody");
    const ordered = [...group.answers].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || 0);
    body.append(...ordered.map(answerRow));
    made.append(element("thead"), body);
    made.tHead.append(head);
    return made;
  }

  function answerRow(answer) {
    const row = element("tr");
    const cell = text("td", answer.text, "text");
    if (answer.answer) cell.append(element("span", "note", "read as: " + answer.answer));
    const reward = number(answer.reward);
    if (answer.correct !== null) {
      reward.prepend(element("span", answer.correct ? "yes" : "no", answer.correct ? "✓ " : "✗ "));
      reward.title = answer.correct ? "correct" : "not correct";
    }
    row.append(cell, reward, number(answer.cluster, true), number(answer.weight));
    row.append(number(answer.advantage), number(answer.num_tokens, true));
    return row;
  }

  function draw() {
    const found = groups.filter(matches).sort(compare);
    drawHead();
    table.tBodies[0].replaceChildren(...found.slice(0, state.shown).map(groupRow));
    document.getElementById("count").textContent = found.length + (found.length === 1 ? " group" : " groups");
    document.getElementById("more").hidden = found.length <= state.shown;
    document.documentElement.dataset.rows = table.tBodies[0].rows.length;
  }

  function openLinked() {
    const found = /^#group-(\d+)$/.exec(location.hash);
    if (!found) return;
    state.shown = Math.max(PAGE, Number(found[1]) + 1);
    draw();
    const row = document.getElementById(location.hash.slice(1));
    if (row) row.click();
  }

  function restart() {
    state.shown = PAGE;
    draw();
  }

  function start() {
    groups.forEach((group, index) => {
      group.index = index;
      group.haystack = searchable(group);
    });
    document.getElementById("filter").hidden = table.hidden = false;
    document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["search", "first", "last"]) document.getElementById(id).addEventListener("input", restart);
    document.getElementById("more").addEventListener("click", () => {
      state.shown += PAGE;
      draw();
    });
    draw();
    openLinked();
  }

  if (table) start();
  document.documentElement.dataset.calibrant = "ready";
})();
