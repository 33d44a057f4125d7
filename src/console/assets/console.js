// Optional: every page works without this file. It adds live updates, buttons that copy, filtering while typing, Ctrl+K.
(() => {
  const fr = document.documentElement.lang === "fr";
  const say = document.createElement("p");
  say.className = "vh";
  say.setAttribute("role", "status");
  document.querySelector("main").append(say);

  const addCopyButtons = (root) => {
    for (const box of root.querySelectorAll(".cmd:not(:has(button))")) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = fr ? "Copier" : "Copy";
      button.setAttribute("aria-label", button.textContent + (fr ? " la commande" : " the command"));
      button.addEventListener("click", async () => {
        try { await navigator.clipboard.writeText(box.querySelector("code").textContent); }
        catch { getSelection().selectAllChildren(box.querySelector("code")); return; }
        say.textContent = fr ? "Commande copiée" : "Command copied";
        button.textContent = fr ? "Copié" : "Copied";
        setTimeout(() => { button.textContent = fr ? "Copier" : "Copy"; say.textContent = ""; }, 2000);
      });
      box.append(button);
    }
  };
  addCopyButtons(document);

  // One stream, closed while nobody sees the page. What has the focus, a pressed pointer or a selection in it is replaced later.
  const page = document.body.dataset.live;
  let stream = null;
  const waiting = new Map();
  let pressed = null;
  addEventListener("pointerdown", (event) => { pressed = event.target; }, true);
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => setTimeout(() => { pressed = null; }), true);
  const isBusy = (part) => part.contains(document.activeElement) || part.contains(pressed) ||
    (!getSelection().isCollapsed && part.contains(getSelection().anchorNode));
  const place = (id, html) => {
    const part = document.getElementById(id);
    if (!part) return;
    if (isBusy(part)) { waiting.set(id, html); return; }
    waiting.delete(id);
    part.outerHTML = html;
    addCopyButtons(document.getElementById(id) ?? document);
  };
  // Without a stream, the page shows an old state.
  const lost = document.createElement("p");
  lost.className = "note warn";
  lost.setAttribute("role", "status");
  const text = fr ? "Connexion à la console perdue. Cette page n’est plus actualisée." : "Connection to the console lost. This page is not updated.";
  const open = () => {
    if (!page || stream || document.hidden) return;
    stream = new EventSource("/events?page=" + encodeURIComponent(page));
    stream.addEventListener("error", () => { lost.textContent = text; document.querySelector("main").prepend(lost); });
    stream.addEventListener("open", () => lost.remove());
    stream.addEventListener("part", (event) => {
      const part = JSON.parse(event.data);
      place(part.id, part.html);
      for (const [id, html] of [...waiting]) place(id, html);
    });
  };
  const close = () => { stream?.close(); stream = null; };
  addEventListener("visibilitychange", () => { if (document.hidden) close(); else open(); });
  addEventListener("pagehide", close);
  open();

  const search = document.querySelector("input[type=search][data-filters]");
  if (!search) return;
  const rows = [...document.querySelectorAll("#" + search.dataset.filters + " tbody tr")];
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  addEventListener("keydown", (event) => {
    if (event.key === "k" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); search.focus(); search.select(); }
  });
})();
