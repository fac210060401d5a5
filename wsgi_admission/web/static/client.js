// Calls that the line has queued (202 with Admission-Status) give the app's own answer in the end, as if it were quick.
(() => {
  "use strict";
  if (!self.document || self.WSGIAdmission) return;
  const ask = fetch,
    live = new Set(),
    PENDING = /^(queued|processing)$/;

  self.WSGIAdmission = { tickets: () => [...live].map((t) => t.told) };
  const aborted = (signal, run) => (signal?.aborted ? run() : signal?.addEventListener("abort", run));

  // Return the ticket that an answer tells of, if it is one of ours, or where the app wants the call to be sent `again`
  // (307, 308); `how` is the caller's request.
  function ticketOf(status, header, url, how) {
    const state = header("Admission-Status"),
      again = state === "redirect";
    if (!again && (status !== 202 || !PENDING.test(state))) return;
    const headers = new Headers(how.headers);
    const { href, origin } = new URL(header("Location"), url);
    // The caller's headers go to no other host; and who asks for the 202 gets it.
    if (origin !== new URL(how.url, document.baseURI).origin || /respond-async/i.test(headers.get("Prefer"))) return;
    // As browsers do it, so often at most.
    if (again) return how.hops++ < 20 && { again: href };
    for (const name of [...headers.keys()])
      if (/^(content-|if-|range|prefer|idemp)/.test(name)) headers.delete(name);
    headers.set("Accept", "application/json");
    const beside = (call) => href.replace(/result(?=\/[^/]*$)/, call);
    const { credentials, redirect } = how,
      stop = new AbortController();
    const t = {
      id: href.split("/").pop(),
      // A script is not told of redirects that are followed.
      result: /manual|error/.test(redirect) ? href : href + "?redirect=manual",
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
    const { status, message, progress, progress_note: note, queue_info: place = data } = data,
      { position_in_queue: position, estimated_wait_time: wait } = place;
    t.state = status;
    t.told = { id: t.id, status, message, position, wait, progress, note, cancel: () => t.stop.abort() };
    live[name === "done" ? "delete" : "add"](t);
    document.dispatchEvent(new CustomEvent("wsgi-admission:" + name, { bubbles: true, detail: t.told }));
  }

  const waits = (t) => PENDING.test(t.state);

  // Return what is aborted with the ticket, after so many seconds, and when the page is shown or hidden.
  function span(t, seconds) {
    const stop = new AbortController();
    const end = () => stop.abort();
    setTimeout(end, seconds * 1000);
    aborted(t.signal, end);
    document.addEventListener("visibilitychange", end, stop); // as long as its signal says
    return stop;
  }

  const pause = (t) => new Promise((go) => aborted(span(t, t.wait).signal, go));

  // Listen until the ticket is final, if that can be, and return whether anything was heard.
  async function listen(t) {
    if (!t.listens) return;
    // A connection may be dead without a sign.
    const stop = span(t, 60);
    const { stream } = await import("./static/streams.js");
    let heard;
    const ended = await stream(t.events, t.how.credentials === "include", stop.signal, (data) => {
      heard = true;
      tell(t, data);
      if (!waits(t)) stop.abort();
    });
    if (ended && !document.hidden) t.listens = heard;
    return ended && heard;
  }

  // Wait until there is a result to ask for.
  async function settle(t) {
    for (let lost = 0; waits(t); ) {
      if (!(await listen(t).catch(() => {}))) await pause(t);
      t.signal.throwIfAborted();
      if (!waits(t)) return;
      try {
        const answer = await ask(t.status, { ...t.how, signal: t.signal });
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

  // Let an answer look as if it had come from another address; so are its clones.
  const seem = (answer, url, redirected) =>
    Object.defineProperties(answer, {
      url: { value: url },
      redirected: { value: redirected },
      clone: { value: () => seem(Response.prototype.clone.call(answer), url, redirected) },
    });

  async function follow(answer, how) {
    const t = ticketOf(answer.status, (name) => answer.headers.get(name), answer.url, how);
    if (!t) return answer;
    if (t.again) return how.again(t.again).then((result) => follow(seem(result, result.url, true), how));
    const { signal } = how;
    const leave = () => t.stop.abort(signal.reason);
    aborted(signal, leave);
    let result;
    try {
      tell(t, await answer.json().catch(() => ({ status: t.state })));
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
    return follow(result.redirected ? result : seem(result, answer.url, answer.redirected), how);
  }

  window.fetch = async function fetch(input, init) {
    // The body of a request can be read once only.
    const copy = init?.body || input?.clone?.();
    const answer = await ask.apply(this, arguments);
    const how = { url: input.url || input, hops: 0 };
    for (const name of ["method", "headers", "credentials", "redirect", "signal"])
      how[name] = init?.[name] ?? input[name];
    how.again = async (url) => {
      const body = await (copy?.blob?.() ?? copy);
      return ask(url, { ...how, body: body?.size === 0 ? null : body });
    };
    return follow(answer, how);
  };

  const stop = (event) => event.stopImmediatePropagation();

  // The caller's XMLHttpRequest itself asks for the result; no event of it is let through in between.  Browsers differ in
  // what comes first of an object's listeners, so ours is there before any other.
  window.XMLHttpRequest = class XMLHttpRequest extends window.XMLHttpRequest {
    #how;
    #held;
    #sent;
    #mute = (event) => this.#sent && stop(event);

    constructor() {
      super();
      for (const type of "readystatechange loadstart progress abort error load timeout loadend".split(" "))
        this.addEventListener(type, (event) => this.#gate(event), true);
    }

    get upload() {
      const upload = super.upload;
      for (const type of ["abort", "loadend"]) upload.addEventListener(type, this.#mute, true);
      return upload;
    }

    open(method, url, background) {
      this.#held?.stop?.abort();
      this.#held = null;
      this.#how = (background || arguments.length < 3) && { method, url, headers: [], hops: 0 };
      super.open(...arguments);
    }

    setRequestHeader(name, value) {
      super.setRequestHeader(name, value);
      this.#how?.headers?.push([name, value]);
    }

    send(body) {
      if (this.#held) throw new DOMException("It is sent.", "InvalidStateError");
      if (this.#how) this.#how.body = body;
      super.send(body);
    }

    abort() {
      const stop = this.#held?.stop;
      if (stop) return stop.abort();
      this.#held = null;
      super.abort();
    }

    #gate(event) {
      const how = this.#how;
      if (how && this.readyState === 2 && !this.#held) {
        how.credentials = this.withCredentials ? "include" : "same-origin";
        const t = (this.#held = ticketOf(this.status, (name) => this.getResponseHeader(name), this.responseURL, how));
        aborted(t?.signal, () => {
          if (this.#held !== t) return;
          // Only what was sent can be aborted, and the caller has heard of the end of the upload.
          if (this.readyState === 1) super.send();
          this.#held = null;
          this.#sent = true;
          super.abort();
          this.#sent = false;
        });
      }
      if (!this.#held) return;
      stop(event);
      if (event.type === "loadend") this.#hold(this.#held);
    }

    #ask(url, { method = "GET", headers, body }) {
      super.open(method, url);
      for (const [name, value] of headers) super.setRequestHeader(name, value);
      super.send(body);
      this.#held = null;
    }

    async #hold(t) {
      if (t.again) return this.#ask(t.again, this.#how);
      // What the answer said is seldom to be read in the type that the caller wants: it is asked for at once.
      t.wait = 0;
      super.open("GET", t.result);
      await settle(t).catch(() => {});
      done(t);
      if (this.#held === t) this.#ask(t.result, t.how);
    }
  };
})();
