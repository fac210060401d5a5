// A browser has six connections to a host, for all its pages together.  So the pages of a site that are seen hold two
// streams of events among them; where they cannot know of each other (plain http) each may hold one.  All others ask.
let alone = false;

// Return what gives the right to a stream back, or nothing if there is none to be had.
async function seat() {
  const { locks } = navigator;
  if (document.hidden || !globalThis.EventSource || alone) return;
  if (!locks) {
    alone = true;
    return () => (alone = false);
  }
  for (const name of ["wsgi-admission-1", "wsgi-admission-2"]) {
    const free = await new Promise((got) => {
      const hold = (lock) => (lock ? new Promise((free) => got(free)) : got());
      locks.request(name, { ifAvailable: true }, hold).catch(() => got());
    });
    if (free) return free;
  }
}

// Tell the events of a ticket until `stop` is aborted.  Return nothing if that cannot be now, or while the page is hidden,
// and true if it was ended otherwise.
async function stream(url, withCredentials, stop, tell) {
  const free = await seat();
  if (!free) return;
  const source = new EventSource(url, { withCredentials });
  const { signal } = stop;
  try {
    return await new Promise((end) => {
      signal.addEventListener("abort", () => end(true));
      if (signal.aborted) end(true);
      document.addEventListener("visibilitychange", () => end(), { signal });
      addEventListener("pagehide", () => end(), { signal });
      source.addEventListener("status", (event) => tell(JSON.parse(event.data)));
      source.onerror = () => source.readyState === 2 && end(true);
    });
  } finally {
    stop.abort();
    source.close();
    free();
  }
}
