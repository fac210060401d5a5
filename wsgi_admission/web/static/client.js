// Calls that the line has queued (202 with Admission-Status) give the app's own answer in the end, as if it were quick.
(() => {
  "use strict";
  if (window.WSGIAdmission) return;
  const ask = window.fetch;
  const PENDING = /^(queued|processing)$/;
  const live = new Set();

  // include streams.js

  window.WSGIAdmission = { tickets: () => [...live].map((t) => t.told) };
  const aborted = (signal, run) => (signal?.aborted ? run() : signal?.addEventListener("abort", run));

  // Return the ticket that an answer tells of, if it is one of ours; `how` is the caller's request.
  function ticketOf(status, header, url, how) {
    if (status !== 202 || !PENDING.test(header("Admission-Status"))) return;
    const headers = new Headers(how.headers);
    const { href, origin } = new URL(header("Location"), url);
    // The caller's headers go to no other host; and who asks for the 202 gets it.
    if (origin !== new URL(how.url, document.baseURI).origin || /respond-async/i.test(headers.get("Prefer"))) return;
    for (const name of [...headers.keys()])
      if (/^(content-|if-|range|prefer|idemp)/.test(name)) headers.delete(name);
    const beside = (call) => href.replace(/result(?=\/[^/]*$)/, call);
    const { credentials, redirect } = how;
    const stop = new AbortController();
    const t = {
      id: href.split("/").pop(),
      result: href,
      status: beside("status"),
      events: beside("events"),
      how: { headers, credentials, redirect },
      state: "queued",
      wait: header("Retry-After") || 1,
      listens: credentials !== "omit",
      stop,
      signal: stop.signal,
    };
    aborted(t.signal, () => ask(t.status, { ...t.how, method: "DELETE", keepalive: true }).catch(() => {}));
    return t;
  }

  function tell(t, data, name = t.told ? "update" : "queued") {
    const { status, message, progress, progress_note: note, queue_info: place = data } = data;
    t.state = status;
    const { position_in_queue: position, estimated_wait_time: wait } = place;
    t.told = { id: t.id, status, message, position, wait, progress, note, cancel: () => t.stop.abort() };
    live[name === "done" ? "delete" : "add"](t);
    document.dispatchEvent(new CustomEvent("wsgi-admission:" + name, { bubbles: true, detail: t.told }));
  }

  // Return what is aborted with the ticket, and after so many seconds.
  function span(t, seconds) {
    const stop = new AbortController();
    const end = () => stop.abort();
    setTimeout(end, seconds * 1000);
    aborted(t.signal, end);
    return stop;
  }

  function pause(t) {
    const { signal } = span(t, t.wait);
    return new Promise((go) => {
      aborted(signal, go);
      document.addEventListener("visibilitychange", go, { signal });
    });
  }

  // Listen until the ticket is final, if that can be, and return whether anything was heard.
  async function listen(t) {
    if (!t.listens) return;
    // A connection may be dead without a sign.
    const stop = span(t, Math.max(30, 2 * t.wait));
    let heard = false;
    const ended = await stream(t.events, t.how.credentials === "include", stop, (data) => {
      heard = true;
      tell(t, data);
      if (!PENDING.test(t.state)) stop.abort();
    });
    if (ended) t.listens = heard;
    return ended && heard;
  }

  // Wait until there is a result to ask for.
  async function settle(t) {
    for (let lost = 0; PENDING.test(t.state); ) {
      if (!(await listen(t))) await pause(t);
      t.signal.throwIfAborted();
      if (!PENDING.test(t.state)) return;
      try {
        const headers = new Headers(t.how.headers);
        headers.set("Accept", "application/json");
        const answer = await ask(t.status, { ...t.how, headers, signal: t.signal });
        if (answer.status > 499 || answer.status === 429) throw answer;
        if (answer.ok) tell(t, await answer.json());
        else t.state = "gone";
        t.wait = answer.headers.get("Retry-After") || 1;
        lost = 0;
      } catch {
        t.wait = Math.min(30, 2 ** lost++) * (0.5 + Math.random());
      }
    }
  }

  const done = (t) => tell(t, { status: t.signal.aborted ? "cancelled" : t.state }, "done");

  async function follow(answer, how) {
    const t = ticketOf(answer.status, (name) => answer.headers.get(name), answer.url, how);
    if (!t) return answer;
    const { signal } = how;
    const leave = () => t.stop.abort(signal.reason);
    aborted(signal, leave);
    let result;
    try {
      await answer.json().then((data) => tell(t, data), () => {});
      for (let tries = 1; !result; tries *= 2) {
        await settle(t);
        t.signal.throwIfAborted();
        result = await ask(t.result, { ...t.how, signal }).catch((error) => {
          if (signal?.aborted || tries > 4) throw error;
        });
        // A gateway's answer, for the app's was no 5xx; or none.
        if (tries < 8 && (!result || (t.state === "completed" && result.status > 501))) {
          result = null;
          t.state = "queued";
          t.wait = tries;
        }
      }
    } finally {
      signal?.removeEventListener("abort", leave);
      done(t);
    }
    if (!result.redirected)
      for (const name of ["url", "redirected"]) Object.defineProperty(result, name, { value: answer[name] });
    return follow(result, how);
  }

  window.fetch = async function fetch(input, init) {
    const answer = await ask.apply(this, arguments);
    const how = { url: input.url || input };
    for (const name of ["headers", "credentials", "redirect", "signal"]) how[name] = init?.[name] ?? input[name];
    return follow(answer, how);
  };

  // The caller's XMLHttpRequest itself asks for the result; no event of it is let through in between.  Browsers differ in
  // what comes first of an object's listeners, so ours is there before any other.
  window.XMLHttpRequest = class XMLHttpRequest extends window.XMLHttpRequest {
    #how;
    #held;

    constructor() {
      super();
      for (const type of "readystatechange loadstart progress abort error load timeout loadend".split(" "))
        this.addEventListener(type, (event) => this.#gate(event), true);
    }

    open(method, url, background) {
      this.#held?.stop.abort();
      this.#how = (background || arguments.length < 3) && { url, headers: [] };
      super.open(...arguments);
    }

    setRequestHeader(name, value) {
      super.setRequestHeader(name, value);
      this.#how?.headers?.push([name, value]);
    }

    abort() {
      const t = this.#held;
      t ? t.stop.abort() : super.abort();
    }

    #gate(event) {
      const how = this.#how;
      if (how && this.readyState === 2 && !this.#held) {
        how.credentials = this.withCredentials ? "include" : "same-origin";
        const t = (this.#held = ticketOf(this.status, (name) => this.getResponseHeader(name), this.responseURL, how));
        aborted(t?.signal, () => {
          if (this.#held !== t) return;
          // Only what was sent can be aborted.
          if (this.readyState === 1) super.send();
          this.#held = null;
          super.abort();
        });
      }
      if (!this.#held) return;
      event.stopImmediatePropagation();
      if (event.type === "loadend") this.#hold(this.#held);
    }

    async #hold(t) {
      // What the answer said is seldom to be read in the type that the caller wants: it is asked for at once.
      t.wait = 0;
      super.open("GET", t.result);
      t.how.headers.forEach((value, name) => super.setRequestHeader(name, value));
      await settle(t).catch(() => {});
      done(t);
      if (this.#held !== t) return;
      super.send();
      this.#held = null;
    }
  };
})();
