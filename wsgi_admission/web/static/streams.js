// A browser has six connections to a host, for all its pages together.  So the pages of a site that are seen hold two
// streams of events among them; where they cannot know of each other (plain http) each may hold one.  All others ask.
let alone = false;

/* Tell the events of a ticket until `signal` is aborted.  Return true when that has come to an end, and what is false if
   it could not begin just now, or the page was hidden. */
export async function stream(url, withCredentials, signal, tell) {
  const { locks } = navigator;
  if (document.hidden || alone) return;
  const listen = (lock) => lock && follow(url, withCredentials, signal, tell);
  if (!locks) {
    alone = true;
    return listen(true).finally(() => { alone = false; });
  }
  const free = (name) => locks.request(name, { ifAvailable: true }, listen);
  return (await free("wsgi-admission-1")) ?? free("wsgi-admission-2");
}

async function follow(url, withCredentials, signal, tell) {
  const source = new EventSource(url, { withCredentials });
  const over = new AbortController();
  const until = { signal: over.signal };
  try {
    return await new Promise((end) => {
      document.addEventListener("visibilitychange", () => end(false), until);
      addEventListener("pagehide", () => end(false), until);
      signal.addEventListener("abort", () => end(true), until);
      if (signal.aborted) end(true);
      source.addEventListener("status", (event) => tell(JSON.parse(event.data)));
      source.onerror = () => { if (source.readyState === EventSource.CLOSED) end(true); };
    });
  } finally {
    over.abort();
    source.close();
  }
}
