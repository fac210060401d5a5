// The dashboard's pictures.  Everything is made of elements and text: nothing that the server says becomes markup.
(function () {
  "use strict";
  const body = document.body, base = body.dataset.base, INTERVAL = 2000, SVG = "http://www.w3.org/2000/svg";
  const SHOWN = 5; // parts of a picture with colours of their own; the rest is one part
  let by = "tier", lost = false, last = null, read = Date.now();
  const id = (name) => document.getElementById(name);

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  function shape(name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function drawing(width, height, label) {
    return shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" });
  }
  function wide(name) { return Math.max(200, id(name).clientWidth); } // so that a text is as large as any other
  function seconds(value) {
    if (value === null || value === undefined) return "?";
    if (value < 90) return `${Math.round(value)} s`;
    if (value < 5400) return `${Math.round(value / 60)} min`;
    return `${(value / 3600).toFixed(1)} h`;
  }
  function none(text) { return element("p", { class: "none" }, text); }
  function clock(minute) {
    return new Date(minute * 60000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  }
  function top(values) { // the end of an axis: 1, 2 or 5 times a power of ten
    const most = Math.max(1, ...values), power = 10 ** Math.floor(Math.log10(most));
    return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= most);
  }
  function axes(svg, width, height, left, end, first, count) {
    for (const share of [0, 0.5, 1]) {
      const y = height * (1 - share) + 8;
      svg.append(shape("line", { x1: left, x2: width, y1: y, y2: y, class: share ? "grid" : "axis" }));
      if (share === 0 || end * share >= 1) {
        svg.append(shape("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, String(end * share)));
      }
    }
    for (let minute = 0; minute < count; minute += width < 400 ? 30 : 15) {
      const x = left + ((width - left) * minute) / (count - 1);
      svg.append(shape("text", { x, y: height + 24, "text-anchor": minute ? "middle" : "start" }, clock(first + minute)));
    }
    svg.append(shape("text", { x: width, y: height + 24, "text-anchor": "end" }, "now"));
  }

  function parts(data) { // name -> numbers of each minute, the better tiers first
    const sums = new Map();
    if (by === "tier") for (const tier of data.tiers) sums.set(tier.name, null);
    for (const one of data.history.line) {
      const name = one[by], known = sums.get(name);
      sums.set(name, known ? known.map((n, i) => n + one.numbers[i]) : one.numbers);
    }
    const all = [...sums].filter(([, numbers]) => numbers);
    const rest = all.splice(SHOWN);
    if (rest.length) all.push(["others", rest[0][1].map((_, i) => rest.reduce((sum, [, n]) => sum + n[i], 0))]);
    return all;
  }
  function line(data) {
    const width = wide("line"), height = 190, left = 40, all = parts(data), count = data.history.arrivals.length;
    const total = Array.from({ length: count }, (_, i) => all.reduce((sum, [, numbers]) => sum + numbers[i], 0));
    const end = top(total), now = total[count - 1];
    const summary = `${now} in the line now, at most ${Math.max(...total)} within the hour: ` +
      (all.map(([name, numbers]) => `${name} ${numbers[count - 1]}`).join(", ") || "nobody");
    const svg = drawing(width, height + 30, summary);
    axes(svg, width, height, left, end, data.history.first_minute, count);
    const below = new Array(count).fill(0);
    const x = (i) => left + ((width - left) * i) / (count - 1), y = (n) => 8 + height * (1 - n / end);
    all.forEach(([, numbers], part) => {
      const under = below.map((n, i) => `${x(i)},${y(n)}`).reverse();
      numbers.forEach((n, i) => { below[i] += n; });
      const over = below.map((n, i) => `${x(i)},${y(n)}`);
      svg.append(shape("polygon", { points: [...over, ...under].join(" "), class: `f${part}` }));
    });
    id("line").replaceChildren(svg);
    id("line-key").replaceChildren(...all.map(([name, numbers], part) =>
      element("li", { class: `c${part}` }, `${name}: ${numbers[count - 1]}`)));
  }
  function flow(data) {
    const width = wide("flow"), height = 150, left = 34, history = data.history, count = history.arrivals.length;
    const completed = history.completions.map((n, i) => n - history.failures[i]);
    const ended = history.completions.map((n, i) => n + history.cancellations[i]);
    const end = top([...history.arrivals, ...ended]), each = (width - left) / count;
    const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
    const svg = drawing(width, height + 30, `In the last hour ${sum(history.arrivals)} came, ${sum(completed)} were ` +
      `completed, ${sum(history.failures)} failed and ${sum(history.cancellations)} were cancelled`);
    axes(svg, width, height, left, end, history.first_minute, count);
    const bar = (i, from, number, shift, kind) => number && svg.append(shape("rect", {
      x: left + i * each + shift, width: each * 0.42, y: 8 + height * (1 - (from + number) / end),
      height: (height * number) / end, class: `f-${kind}`,
    }));
    for (let i = 0; i < count; i++) {
      bar(i, 0, history.arrivals[i], 0, "arrivals");
      bar(i, 0, completed[i], each * 0.48, "completions");
      bar(i, completed[i], history.failures[i], each * 0.48, "failures");
      bar(i, history.completions[i], history.cancellations[i], each * 0.48, "cancellations");
    }
    id("flow").replaceChildren(svg);
  }
  function bar(name, note, svg, text) {
    const label = element("span", {}, name);
    if (note) label.append(element("small", { title: note }, note));
    return element("div", { class: "bar" }, label, svg, element("span", {}, text));
  }
  function load(data) {
    id("load").replaceChildren(...data.sensors.map((sensor) => {
      const share = sensor.reading, percent = share === null ? "no reading" : `${Math.round(share * 100)} %`;
      const over = share !== null && share >= sensor.threshold, limit = `threshold ${Math.round(sensor.threshold * 100)} %`;
      const svg = drawing(300, 22, `${sensor.name}: ${percent}, ${limit}`);
      svg.append(shape("rect", { x: 0, y: 6, width: 300, height: 10, rx: 5, class: "track" }));
      svg.append(shape("rect", { x: 0, y: 6, width: 300 * (share || 0), height: 10, rx: 5, class: over ? "value over" : "value" }));
      svg.append(shape("rect", { x: Math.min(298, 300 * sensor.threshold - 1), y: 1, width: 2, height: 20, class: "mark" }));
      const slots = sensor.name === "slots" ? `${data.slots.in_use} of ${data.slots.limit}` : limit;
      return bar(sensor.name, sensor.failing ? "the sensor fails" : slots, svg, percent);
    }));
  }
  function waits(data) {
    const known = data.line.filter((row) => row.estimated_wait_time !== null);
    const end = Math.max(1, ...known.map((row) => row.estimated_wait_p90));
    id("waits").replaceChildren(...(data.line.length ? data.line : []).map((row) => {
      const from = row.estimated_wait_time, to = row.estimated_wait_p90;
      const text = from === null ? "not known" : `${seconds(from)} to ${seconds(to)}`;
      const svg = drawing(300, 22, `${row.tier}, ${row.route}: ${text}`);
      svg.append(shape("rect", { x: 0, y: 8, width: 300, height: 6, rx: 3, class: "track" }));
      if (from !== null) {
        const x = Math.min(294, (300 * from) / end), width = Math.max(6, (300 * (to - from)) / end);
        svg.append(shape("rect", { x, y: 5, width: Math.min(width, 300 - x), height: 12, rx: 6, class: "span" }));
      }
      return bar(row.tier, `${row.route}, ${row.queued} wait`, svg, text);
    }));
    if (!data.line.length) id("waits").append(none("Nobody waits: a newcomer runs at once."));
  }
  function table(heads, rows) {
    const head = element("tr", {}, ...heads.map((text) => text ? element("th", { scope: "col" }, text) : element("td")));
    return element("div", { class: "scroll", tabindex: "0" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }
  function running(data) {
    const rows = data.running.slice(0, 100).map((one) => {
      const progress = element("progress", { max: 1, "aria-label": `Progress of ${one.request_id.slice(0, 8)}` });
      if (one.progress !== null) progress.value = one.progress;
      const told = element("td", {}, progress);
      if (one.progress_note) told.append(element("small", {}, one.progress_note));
      const button = element("button", { type: "button", "aria-label": `Cancel ${one.request_id.slice(0, 8)}` }, one.cancelling ? "Cancelling" : "Cancel");
      button.disabled = one.cancelling;
      button.addEventListener("click", () => { button.disabled = true; act("cancel", { id: one.request_id }); });
      return element("tr", {}, element("td", {}, element("code", {}, one.request_id.slice(0, 8))), element("td", {}, one.route),
        element("td", {}, one.tier), element("td", {}, seconds(one.age)), told, element("td", { class: "end" }, button));
    });
    const focused = document.activeElement && document.activeElement.getAttribute("aria-label");
    id("running").replaceChildren(rows.length ? table(["ticket", "route", "tier", "for", "progress", ""], rows) : none("Nothing runs."));
    if (focused) { // what is drawn anew under somebody's hands must not take the focus away
      const again = [...id("running").querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === focused);
      if (again) again.focus();
    }
  }
  function workers(data) {
    const rows = data.workers.map((one) => {
      const threads = element("span", { class: "threads", role: "img", "aria-label": `${one.threads} threads` },
        ...Array.from({ length: Math.min(one.threads, 64) }, () => element("i")));
      return element("tr", {}, element("td", {}, one.host), element("td", {}, String(one.pid)), element("td", {}, threads),
        element("td", {}, one.report_age === null ? "?" : `${seconds(one.report_age)} ago`));
    });
    id("workers").replaceChildren(rows.length ? table(["host", "process", "threads", "reported"], rows) : none("No process replays: what waits does not move."));
  }
  function failures(data) {
    const rows = data.failures.map((one) => element("tr", {}, element("td", {}, element("code", {}, one.request_id.slice(0, 8)), element("small", {}, one.route)),
      element("td", { class: "why" }, one.error), element("td", { class: "end" }, `${seconds(one.age)} ago`)));
    id("failures").replaceChildren(rows.length ? table(["ticket", "why", ""], rows) : none("None."));
  }
  function show(data) {
    last = data;
    read = Date.now();
    for (const name of ["queued", "processing", "completed", "failed", "cancelled", "throughput"]) {
      if (id(name).textContent !== String(data[name])) id(name).textContent = data[name];
    }
    id("failed").classList.toggle("bad", data.failed > 0);
    const state = data.paused ? "Paused" : "Running";
    if (id("state").textContent !== state) id("state").textContent = state;
    id("state").classList.toggle("paused", data.paused);
    id("when-running").hidden = data.paused;
    id("when-paused").hidden = !data.paused;
    id("pictures").hidden = false;
    for (const draw of [line, flow, load, waits, running, workers, failures]) draw(data);
  }
  function fault(text) {
    id("fault").hidden = !text;
    if (id("fault").textContent !== text) id("fault").textContent = text;
  }

  async function look() {
    try {
      const answer = await fetch(`${base}/dashboard/data`, { headers: { Accept: "application/json" } });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
      show(await answer.json());
      if (lost) fault("");
      lost = false;
    } catch (error) {
      lost = true;
      fault(`The line could not be read: ${error.message}`);
    }
  }
  async function act(action, fields) {
    fault("");
    const form = new URLSearchParams({ form_token: body.dataset.formToken, ...fields });
    try {
      const answer = await fetch(`${base}/dashboard/${action}`, { method: "POST", body: form, headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error((await answer.json()).detail || `The server answered ${answer.status}.`);
    } catch (error) {
      fault(error.message);
      return;
    }
    look();
  }

  for (const form of document.querySelectorAll("form[data-action]")) {
    if (form.dataset.action === "sign-out") continue;
    form.addEventListener("submit", (event) => { event.preventDefault(); act(form.dataset.action, {}); });
  }
  for (const button of document.querySelectorAll("[data-by]")) {
    button.addEventListener("click", () => {
      by = button.dataset.by;
      for (const one of document.querySelectorAll("[data-by]")) one.setAttribute("aria-pressed", String(one === button));
      if (last) line(last);
    });
  }
  async function live() {
    if (!document.hidden) await look();
    setTimeout(live, INTERVAL);
  }
  setInterval(() => {
    const age = Math.round((Date.now() - read) / 1000);
    id("read").textContent = age < 5 ? "just now" : `${age} s ago`;
  }, 1000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  addEventListener("resize", () => { if (last) { line(last); flow(last); } });
  live();
})();
