// <wsgi-admission-status>: a row for each call that waits in the line, with its message, progress and a way to cancel it.
(() => {
  "use strict";
  const NAME = "wsgi-admission-status";
  if (customElements.get(NAME)) return;
  const sheet = new CSSStyleSheet(); // a policy without inline styles lets it be
  sheet.replaceSync(
    ":host { display: block } p { margin: 0 }" +
      "[part=row] { display: flex; flex-wrap: wrap; gap: 0.5em; align-items: center }",
  );

  class Status extends HTMLElement {
    constructor() {
      super();
      const root = this.attachShadow({ mode: "open" });
      root.adoptedStyleSheets = [sheet];
      this.rows = new Map();
      this.box = root.appendChild(make("div", "box"));
      this.box.setAttribute("aria-live", "polite");
    }

    connectedCallback() {
      for (const name of ["queued", "update", "done"]) document.addEventListener(`wsgi-admission:${name}`, this);
      this.handleEvent();
    }

    disconnectedCallback() {
      for (const name of ["queued", "update", "done"]) document.removeEventListener(`wsgi-admission:${name}`, this);
    }

    handleEvent() {
      const tickets = window.WSGIAdmission ? window.WSGIAdmission.tickets() : [];
      for (const ticket of tickets) this.show(ticket);
      for (const [id, row] of this.rows) {
        if (tickets.some((ticket) => ticket.id === id)) continue;
        row.remove();
        this.rows.delete(id);
      }
    }

    show(ticket) {
      let row = this.rows.get(ticket.id);
      if (!row) {
        row = make("div", "row");
        row.append(make("p", "message"), make("progress", "progress"), make("button", "cancel"));
        row.lastChild.type = "button";
        row.lastChild.textContent = this.getAttribute("cancel-label") || "Cancel";
        this.rows.set(ticket.id, row);
        this.box.append(row);
      }
      const [message, progress, cancel] = row.children;
      const text = [ticket.message, ticket.note].filter(Boolean).join(" ");
      // The same words anew would be read out anew.
      if (message.textContent !== text) message.textContent = text;
      progress.hidden = ticket.status !== "processing";
      progress.setAttribute("aria-label", text);
      if (typeof ticket.progress === "number") progress.value = ticket.progress;
      cancel.setAttribute("aria-description", text);
      cancel.onclick = ticket.cancel;
    }
  }

  function make(tag, part) {
    const element = document.createElement(tag);
    element.setAttribute("part", part);
    return element;
  }

  customElements.define(NAME, Status);
})();
