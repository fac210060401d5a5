// Calls that the line has queued (202 with Admission-Status) give the app's own answer in the end, as if it were quick.
(() => {
  "use strict";
  if (window.WSGIAdmission) return;
  const ask = window.fetch;
  const { open, send, abort, setRequestHeader } = XMLHttpRequest.prototype;
  const PENDING = /^(queued|processing)$/;
  // By id, what was told last; by XMLHttpRequest, what its caller asked.
  const live = new Map();
  const calls = new WeakMap();
  let streams = 0;

  window.WSGIAdmission = { tickets: () => [...live.values()] };
  const aborted = (signal, run) => signal?.addEventListener("abort", run);

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
    const t = { id: href.split("/").pop(), result: href, status: beside("status"), events: beside("events") };
    t.how = { headers, credentials, redirect };
    t.state = "queued";
    t.wait = header("Retry-After") || 1;
    t.listens = credentials !== "omit";
    t.stop = new AbortController();
    t.signal = t.stop.signal;
    aborted(t.signal, () => ask(t.status, { ...t.how, method: "DELETE", keepalive: true }).catch(() => {}));
    return t;
  }

  function tell(t, data, name = t.told ? "update" : "queued") {
    const { status, message, progress, progress_note: note, queue_info: place = data } = data;
    t.state = status;
    const { position_in_queue: position, estimated_wait_time: wait } = place;
    t.told = { id: t.id, status, message, position, wait, progress, note, cancel: () => t.stop.abort() };
    live.set(t.id, t.told);
    if (name === "done") live.delete(t.id);
    document.dispatchEvent(new CustomEvent("wsgi-admission:" + name, { bubbles: true, detail: t.told }));
  }

  const pause = (t) =>
    new Promise((go) => {
      setTimeout(go, t.wait * 1000);
      aborted(t.signal, go);
    });

  // Listen until the ticket is final, if that can be: two at most, as a browser has six connections to a host.
  const listen = (t) =>
    t.listens &&
    streams < 2 &&
    new Promise((end) => {
      const source = new EventSource(t.events, { withCredentials: t.how.credentials === "include" });
      const close = () => {
        if (!timer) return;
        timer = clearTimeout(timer);
        streams--;
        source.close();
        end(t.listens);
      };
      // A connection may be dead without a sign.
      let timer = setTimeout(close, Math.max(30, 2 * t.wait) * 1000);
      streams++;
      t.listens = false;
      source.addEventListener("status", (event) => {
        t.listens = true;
        tell(t, JSON.parse(event.data));
        if (!PENDING.test(t.state)) close();
      });
      source.onerror = () => source.readyState === 2 && close();
      aborted(t.signal, close);
    });

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
    if (signal?.aborted) leave();
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
  function gate(event) {
    const call = calls.get(this);
    if (!call) return;
    if (this.readyState === 2 && !call.ticket) {
      const header = (name) => this.getResponseHeader(name);
      const credentials = this.withCredentials ? "include" : "same-origin";
      const t = (call.ticket = ticketOf(this.status, header, this.responseURL, { ...call, credentials }));
      aborted(t?.signal, () => {
        if (call.ticket !== t) return;
        // Only what was sent can be aborted.
        if (this.readyState === 1) send.call(this);
        call.ticket = null;
        abort.call(this);
      });
    }
    if (!call.ticket) return;
    event.stopImmediatePropagation();
    if (event.type === "loadend") hold(this, call);
  }

  async function hold(xhr, call) {
    const t = call.ticket;
    // What the answer said is seldom to be read in the type that the caller wants: it is asked for at once.
    t.wait = 0;
    open.call(xhr, "GET", t.result);
    t.how.headers.forEach((value, name) => setRequestHeader.call(xhr, name, value));
    await settle(t).catch(() => {});
    done(t);
    if (call.ticket !== t) return;
    send.call(xhr);
    call.ticket = null;
  }

  window.XMLHttpRequest = new Proxy(XMLHttpRequest, {
    construct(...made) {
      const xhr = Reflect.construct(...made);
      for (const type of "readystatechange loadstart progress abort error load timeout loadend".split(" "))
        xhr.addEventListener(type, gate, true);
      return xhr;
    },
  });

  Object.assign(XMLHttpRequest.prototype, {
    open(method, url, background) {
      calls.get(this)?.ticket?.stop.abort();
      calls.set(this, (background || arguments.length < 3) && { url, headers: [] });
      return open.apply(this, arguments);
    },
    setRequestHeader(name, value) {
      setRequestHeader.apply(this, arguments);
      calls.get(this)?.headers?.push([name, value]);
    },
    abort() {
      const t = calls.get(this)?.ticket;
      t ? t.stop.abort() : abort.call(this);
    },
  });
})();
