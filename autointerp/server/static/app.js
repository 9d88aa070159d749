// Pages work without this; it saves steps: keys, live progress, pictures that come later, a copied link.
"use strict";

const isTyping = (target) => target.closest("input, textarea, select, [contenteditable]") !== null;

// Parts are pages of this server, escaped by it; scripts in them would not run, and the policy allows none.
async function fetchPart(url) {
  const answer = await fetch(url, { headers: { Accept: "text/html" }, credentials: "same-origin" });
  if (!answer.ok) {
    await answer.body?.cancel();
    throw new Error(`${answer.status}`);
  }
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

async function followProgress() {
  const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
  let pause = 2;
  for (;;) {
    await wait(pause);
    const shown = document.querySelector("[data-live]");
    const url = shown?.dataset.live;
    if (!url) return;
    if (document.hidden) continue;
    try {
      const fresh = (await fetchPart(url)).querySelector("[data-live]");
      if (!fresh) return;
      shown.replaceWith(document.adoptNode(fresh));
      pause = 2;
      if (!fresh.dataset.live) location.reload(); // it has ended: the rest of the page has something to show now
    } catch {
      pause = Math.min(pause * 2, 30);
    }
  }
}

async function fillParts() {
  for (const place of document.querySelectorAll("[data-part]")) {
    try {
      const part = await fetchPart(place.dataset.part);
      place.replaceChildren(...[...part.body.children].map((node) => document.adoptNode(node)));
    } catch {
      place.textContent = "could not be drawn";
    }
  }
}

function moveInTable(step) {
  const rows = [...document.querySelectorAll("[data-rows] tbody tr")];
  if (!rows.length) return false;
  const now = rows.findIndex((row) => row.classList.contains("current"));
  const next = Math.min(Math.max(now + step, 0), rows.length - 1);
  rows[now]?.classList.remove("current");
  rows[next].classList.add("current");
  rows[next].querySelector("a").focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) search.focus();
    else return;
  } else if ((event.key === "j" || event.key === "k") && moveInTable(event.key === "j" ? 1 : -1)) {
    // moved
  } else {
    const found = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
    if (!found) return;
    found.click();
    if (found.matches("summary")) found.parentElement.querySelector("textarea")?.focus();
  }
  event.preventDefault();
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy it from the address bar";
  }
  setTimeout(() => (button.textContent = before), 1500);
});

// an empty field is no filter: links stay short
for (const form of document.querySelectorAll("form[method=get]")) {
  form.addEventListener("submit", () => {
    for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
  });
}
addEventListener("pageshow", () => document.querySelectorAll("form[method=get] [disabled]").forEach((field) => (field.disabled = false)));

try {
  const name = document.querySelector("[data-review] input[name=by]");
  if (name) {
    name.value ||= localStorage.getItem("reviewer") ?? "";
    name.form.addEventListener("submit", () => localStorage.setItem("reviewer", name.value));
  }
} catch {
  // storage is off: the name is typed each time
}

followProgress();
fillParts();

// a search may have to load a language model first: say so, and do not ask twice
for (const form of document.querySelectorAll("form[data-slow]")) {
  form.addEventListener("submit", () => {
    const button = form.querySelector("button");
    button.disabled = true;
    button.textContent = "The subject is reading…";
    form.setAttribute("aria-busy", "true");
  });
}
addEventListener("pageshow", (event) => event.persisted && location.reload());
