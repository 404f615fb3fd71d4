"use strict";
// Keeps the page up to date: when the server says that something has changed, the page is read
// again, and the parts that differ are replaced. Without it the page works the same, but stays
// as it was loaded.
(() => {
  // A link from elsewhere comes without the session's cookie, which is SameSite=Strict, and leads
  // to the login page. A request of the page itself has it.
  if (location.pathname === "/login") {
    fetch(location.href).then((answer) => { if (answer.redirected) location.replace(answer.url); }, () => {});
  }
  if (!("live" in document.body.dataset)) return;
  const slowest = 30_000; // ages such as "3 min ago" go on
  let loading = false, again = false;

  // inUse reports whether somebody is filling in a form of the part, or has opened it.
  const inUse = (part) => part.querySelector("details[open]") || part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea");

  async function refresh() {
    if (document.hidden) return;
    if (loading) { again = true; return; }
    loading = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "error" });
      if (!answer.ok) return;
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("main section[id]")) {
        const fresh = next.getElementById(part.id);
        if (fresh && fresh.outerHTML !== part.outerHTML && !inUse(part)) replace(part, fresh);
      }
    } catch { /* the server is away; the stream connects again */ } finally {
      loading = false;
      if (again) { again = false; setTimeout(refresh, 1000); }
    }
  }

  // replace puts a part in place of another, with the images that are loaded already.
  function replace(part, fresh) {
    const loaded = new Map([...part.querySelectorAll("img")].map((img) => [img.getAttribute("src"), img]));
    for (const img of fresh.querySelectorAll("img")) {
      const old = loaded.get(img.getAttribute("src"));
      if (old && old.complete && old.alt === img.alt) img.replaceWith(old);
    }
    part.replaceWith(document.adoptNode(fresh));
  }

  const pulse = document.getElementById("pulse");
  const events = new EventSource("/events");
  events.addEventListener("open", () => { pulse.hidden = false; refresh(); });
  events.addEventListener("error", () => { pulse.hidden = true; });
  events.addEventListener("change", refresh);
  document.addEventListener("visibilitychange", refresh);
  addEventListener("pagehide", () => events.close());
  setInterval(refresh, slowest);
})();
