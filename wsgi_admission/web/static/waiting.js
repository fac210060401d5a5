/* The waiting room, live.  What it writes is what rooms.py and durations.py write. */
"use strict";
(() => {
  const live = JSON.parse(document.getElementById("admission-live").textContent);
  const UNITS = [["second", 1, 55], ["minute", 60, 5400], ["hour", 3600, 172800], ["day", 86400, Infinity]];
  const opened = Date.now();
  const QUIET = 60000;  // a stream that says nothing for so long is asked about
  const CHATTER = 30000;  // a screen reader hears of a new place so often at most
  let state = live.state, cancelling = live.cancelling, following = null, pace = 1, timer = null, failures = 0, heard = Date.now(), said = 0, left = false;

  const t = (text, parts = {}) => live.texts[text].replace(/\{(\w+)\}/g, (all, name) => parts[name] ?? all);
  const count = (number, unit) => number === 1 ? t("1 " + unit) : t(`{number} ${unit}s`, {number});
  const each = (name, step) => document.querySelectorAll(`[data-live="${name}"]`).forEach(step);
  const write = (name, text) => each(name, (element) => {
    if (element.textContent !== String(text)) element.textContent = text;
  });

  function duration(seconds) {
    let rounded = 0;
    for (const [step, end] of [[1, 60], [60, 86400], [3600, Infinity]]) {
      rounded = Math.floor(seconds / step + 0.5) * step;
      if (rounded < end) break;
    }
    const parts = [];
    for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]]) {
      const number = Math.floor(rounded / size);
      rounded -= number * size;
      if (number) parts.push(count(number, unit));
    }
    return parts.join(" ") || t("a moment");
  }

  function waitRange(p50, p90) {
    if (p90 < 10) return t("a few seconds");
    const [unit, size] = UNITS.find(([, , end]) => p90 < end);
    const step = size === 1 ? 5 : 1;
    const low = Math.floor(p50 / size / step + 0.5) * step, high = Math.ceil(p90 / size / step) * step;
    if (low < 1) return t("up to {duration}", {duration: count(high, unit)});
    if (low >= high) return t("about {duration}", {duration: count(high, unit)});
    return t("about {low} to {high}", {low, high: count(high, unit)});
  }

  function line(ahead) {
    each("line", (element) => {
      const classes = ["gate", ...Array(Math.min(ahead, live.drawn)).fill("dot"), ...(ahead > live.drawn ? ["more"] : []), "dot me"];
      element.replaceChildren(...classes.map((name) => {
        const part = document.createElement("span");
        part.className = name;
        if (name === "more") part.textContent = "+" + (ahead - live.drawn);
        return part;
      }));
    });
  }

  function heading(position) {
    if (cancelling) return t("Your request is being cancelled");
    if (state === "processing") return t("Your request is being worked on");
    if (position === null) return t("You are in line");
    return position === 1 ? t("You are next in line") : t("You are number {position} in line", {position});
  }

  function say(text, always) {
    if (!always && Date.now() - said < CHATTER) return;
    said = Date.now();
    write("said", text);
  }

  function go(url) {
    left = true;
    close();
    if (url === live.result) ready();
    location.replace(url);
  }

  /* An answer that is a download, or none (204), leaves this page where it is. */
  function ready() {
    const title = t("Your answer is ready"), link = document.createElement("a");
    link.href = live.result;
    link.className = "button";
    link.textContent = t("Show the answer");
    document.querySelectorAll("[data-when], .facts, .pulse").forEach((element) => { element.hidden = true; });
    document.querySelectorAll(".actions").forEach((element) => element.replaceChildren(link));
    write("heading", title);
    write("doing", "");
    document.title = title + suffix;
    say(title, true);
  }

  /* Show a status, as the API tells it. */
  function show(data) {
    heard = Date.now();
    failures = 0;
    if (left) return;
    if (data.status === "completed") return go(live.result);
    if (data.status !== "queued" && data.status !== "processing") return go(live.status);
    const changed = data.status !== state || Boolean(data.cancelling) !== cancelling, position = data.position_in_queue, p50 = data.estimated_wait_time;
    state = data.status;
    cancelling = Boolean(data.cancelling);
    document.querySelectorAll('[data-unless="cancelling"]').forEach((element) => { element.hidden = cancelling; });
    document.querySelectorAll("[data-when]").forEach((element) => { element.hidden = element.dataset.when !== state; });
    const paused = state === "queued" && position !== null && p50 === null;
    const wait = p50 === null ? t("not known just now") : waitRange(p50, data.estimated_wait_p90 ?? p50);
    if (state === "queued" && position !== null) {
      write("position", position);
      write("ahead", position - 1);
      line(position - 1);
      write("wait", wait);
    }
    if (state === "processing") work(data.progress ?? null, data.progress_note);
    const doing = cancelling ? t("It may still run for a while. Its answer will be dropped.")
      : state === "processing" ? t("It runs right now. Its answer appears here as soon as it is there.")
      : paused ? t("The line is paused just now. You keep your place.") : usual;
    write("doing", doing);
    const title = heading(position);
    if (document.querySelector('[data-live="heading"]')?.textContent === title && !changed) return;
    write("heading", title);
    document.title = title + suffix;
    say(state === "queued" && p50 !== null ? `${title}, ${wait}` : title, changed || position === 1);
  }

  function work(progress, note) {
    each("progress", (bar) => progress === null ? bar.removeAttribute("value") : (bar.value = progress));
    write("percent", progress === null ? "" : t("{number}%", {number: Math.floor(progress * 100)}));
    if (note !== undefined) write("note", note);
  }

  function close() {
    clearTimeout(timer);
    const ending = following;
    following = null;
    ending?.abort();
  }

  function later(step, seconds) {
    clearTimeout(timer);
    timer = setTimeout(step, seconds * 1000 * (0.9 + 0.2 * Math.random()));
  }

  /* Listen, or if that cannot be, ask. */
  async function listen() {
    close();
    const mine = following = new AbortController();
    const told = (data) => {
      pace = 1;
      show(data);
    };
    await import("./streams.js").then(({stream}) => stream(live.events, false, mine.signal, told)).catch(() => {});
    if (following === mine) later(poll, pace);
  }

  async function poll() {
    close();
    try {
      const answer = await fetch(live.status, {headers: {Accept: "application/json"}, cache: "no-store"});
      if (answer.ok) {
        show(await answer.json());
        pace = Number(answer.headers.get("Retry-After")) || 5;
        if (!left) listen();
      } else if (answer.status === 404 || answer.status === 410) go(live.status);
      else throw Number(answer.headers.get("Retry-After")) || 0;
    } catch (after) {
      lost();
      failures += 1;
      later(poll, Math.max(typeof after === "number" ? after : 0, Math.min(30, 2 ** failures)));
    }
  }

  function lost() {
    if (left) return;
    const text = t("The connection is lost. You keep your place; this page tries again by itself.");
    write("doing", text);
    say(text, failures === 0);
  }

  const usual = state === "queued" ? document.querySelector('[data-live="doing"]')?.textContent ?? "" : "";
  const shown = document.querySelector('[data-live="heading"]')?.textContent ?? "";
  const suffix = shown && document.title.startsWith(shown) ? document.title.slice(shown.length) : "";

  function tick() {
    const seconds = live.waited + (Date.now() - opened) / 1000;
    write("waited", duration(seconds < 60 ? Math.floor(seconds / 5) * 5 : Math.floor(seconds / 60) * 60));
    if (!left && Date.now() - heard > QUIET) {
      heard = Date.now();
      poll();
    }
  }

  function begin() {
    stop();  // the refresh, which is for those without this script
    if (location.pathname !== live.status) history.replaceState(null, "", live.status);
    listen();
    setInterval(tick, 5000);
  }

  const again = () => { if (!left && !document.hidden) poll(); };
  addEventListener("online", again);
  document.addEventListener("visibilitychange", again);
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  document.addEventListener("submit", (event) => {
    // A second press would find the ticket cancelled.
    for (const button of event.target.querySelectorAll("button")) button.disabled = true;
  });
  if (document.readyState === "complete") begin(); else addEventListener("load", begin);
})();
