"use strict";

// Without this script every section is shown, one below the other; it makes tabs of them.
const tabs = [...document.querySelectorAll("[role=tab]")];
const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

function show(chosen) {
  for (const tab of tabs) {
    const panel = panelOf(tab);
    tab.setAttribute("aria-selected", String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1;
    panel.hidden = tab !== chosen;
    if (panel.hidden) panel.querySelectorAll("video").forEach((video) => video.pause());
  }
}

function onKey(event) {
  const at = tabs.indexOf(event.currentTarget);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = tabs[(to + tabs.length) % tabs.length];
  show(next);
  next.focus();
}

for (const tab of tabs) {
  const panel = panelOf(tab);
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", tab.id);
  panel.tabIndex = 0;
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", onKey);
}
document.querySelector("[role=tablist]").hidden = false;
show(tabs.find((tab) => "#" + tab.getAttribute("aria-controls") === location.hash) ?? tabs[0]);

// Some phones play a video from memory but not from a data address.
for (const video of document.querySelectorAll("video")) {
  const bytes = Uint8Array.from(atob(video.src.split(",")[1]), (letter) => letter.charCodeAt(0));
  video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
}

// On paper everything is shown.
addEventListener("beforeprint", () => tabs.forEach((tab) => (panelOf(tab).hidden = false)));
addEventListener("afterprint", () => show(tabs.find((tab) => tab.tabIndex === 0)));
