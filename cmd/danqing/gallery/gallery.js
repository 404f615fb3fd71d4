"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const texts = {
    en: {
      other: "中文", search: "Search prompts, IDs, parameters", states: "All states", marks: "All marks", none: "Not marked",
      keep: "Keep", reject: "Reject", redo: "Redo", size: "Size", close: "Close", image: "image", images: "images", line: "line", lines: "lines",
      found: (shown, all) => shown === all ? `${all} shown` : `${shown} of ${all} shown`,
      summary: (d) => `${d.images} images of ${d.lines} lines · ${d.simulated ? "simulated: nothing was charged" : d.yuan + " yuan"} · ${d.time}`,
      expires: (at) => ` · links to the images expire on ${at}`, gone: "The image is not there, or its link has expired.",
      exportKeep: (n) => `Export kept (${n})`, exportReject: (n) => `Export rejected (${n})`, exportRedo: (n) => `Export redo (${n})`,
      prompt: "prompt", id: "ID", state: "state", reason: "reason", cost: "cost of the line", yuan: "yuan", seed: "seed", pixels: "pixels", file: "file", actual: "prompt as rewritten", simulatedCost: "nothing (simulated)",
      queued: "waiting", scheduled: "scheduled", prepared: "waiting", submitting: "submitting", generating: "generating", storing: "storing", retrying: "trying again", held: "held", succeeded: "done", failed: "failed", canceled: "canceled",
      keys: "Keys", keyList: [["← → ↑ ↓", "go to another image"], ["Enter", "view"], ["k", "keep"], ["x", "reject"], ["r", "redo: make it again with another seed"], ["u", "remove the mark"], ["/", "search"], ["Esc", "close"]],
      previous: "Previous", next: "Next", view: "View",
    },
    zh: {
      other: "English", search: "搜索提示词、编号、参数", states: "全部状态", marks: "全部标记", none: "未标记",
      keep: "保留", reject: "弃用", redo: "重做", size: "大小", close: "关闭", image: "张图", images: "张图", line: "行", lines: "行",
      found: (shown, all) => shown === all ? `共 ${all} 项` : `显示 ${shown} 项,共 ${all} 项`,
      summary: (d) => `${d.lines} 行,${d.images} 张图 · ${d.simulated ? "模拟运行:没有产生费用" : d.yuan + " 元"} · ${d.time}`,
      expires: (at) => ` · 图片链接于 ${at} 失效`, gone: "图片不在此处,或者链接已失效。",
      exportKeep: (n) => `导出保留 (${n})`, exportReject: (n) => `导出弃用 (${n})`, exportRedo: (n) => `导出重做 (${n})`,
      prompt: "提示词", id: "编号", state: "状态", reason: "原因", cost: "本行费用", yuan: "元", seed: "种子", pixels: "像素", file: "文件", actual: "改写后的提示词", simulatedCost: "无(模拟)",
      queued: "等待中", scheduled: "已预约", prepared: "等待中", submitting: "提交中", generating: "生成中", storing: "保存中", retrying: "重试中", held: "待人工决定", succeeded: "完成", failed: "失败", canceled: "已取消",
      keys: "快捷键", keyList: [["← → ↑ ↓", "切换图片"], ["Enter", "查看"], ["k", "保留"], ["x", "弃用"], ["r", "重做:换一个种子重新生成"], ["u", "取消标记"], ["/", "搜索"], ["Esc", "关闭"]],
      previous: "上一张", next: "下一张", view: "查看",
    },
  };
  const marks = ["keep", "reject", "redo"];
  const byId = (id) => document.getElementById(id);
  const grid = byId("grid"), viewer = byId("viewer"), more = byId("more");

  // Settings and marks survive a reload. Some browsers have no storage for files.
  const store = {
    read(key) { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } },
    write(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* they last as long as the page */ } },
  };
  const marksKey = "danqing:marks:" + data.key;
  const marked = new Map(Object.entries(store.read(marksKey) || {}));
  let language = store.read("danqing:language") || (navigator.language.startsWith("zh") ? "zh" : "en");
  const t = (key) => texts[language][key];

  // One cell an image, and one for a line without images.
  const cells = [];
  for (const line of data.lines) {
    const asWritten = (_, value, at) => typeof value === "number" && at ? at.source : value; // large numbers too, where the browser can
    const own = Object.entries(JSON.parse(line.raw, asWritten)).filter(([name]) => !["prompt", "id", "danqing"].includes(name));
    const shared = { line, parameters: own.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]) };
    shared.words = [line.prompt, line.id, line.job, line.reason || "", ...shared.parameters.flat()].join("\n").toLowerCase();
    const images = line.images && line.images.length ? line.images : [null];
    for (const image of images) cells.push({ ...shared, image, key: line.job + "#" + (image ? image.n : 0) });
  }

  let view = [], drawn = 0, selected = -1;
  const chunk = 120;

  function element(name, className, text) {
    const e = document.createElement(name);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  }

  function reasonOf(cell) {
    if (cell.image && cell.image.reason) return cell.image.reason;
    return cell.line.reason || t(cell.line.state) || cell.line.state;
  }

  // picture returns the image, or why there is none. A source may be out of reach from where
  // the page lies; the next one is tried then.
  function picture(cell, lazy) {
    const sources = cell.image && !cell.image.reason ? cell.image.sources : [];
    if (!sources.length) return element("span", "reason", reasonOf(cell));
    const img = element("img");
    if (lazy) img.loading = "lazy";
    img.decoding = "async";
    img.alt = cell.line.prompt;
    let at = 0;
    img.addEventListener("error", () => {
      if (++at < sources.length) img.src = sources[at];
      else img.replaceWith(element("span", "reason", t("gone")));
    });
    img.src = sources[0];
    return img;
  }

  function markButtons(cell) {
    return marks.map((mark) => {
      const b = element("button", mark, t(mark));
      b.type = "button";
      b.dataset.mark = mark;
      b.setAttribute("aria-pressed", String(marked.get(cell.key) === mark));
      b.disabled = mark === "redo" && !cell.line.redo;
      return b;
    });
  }

  // factsOf returns state, ID and price of the image, and the line's other fields.
  function factsOf(cell) {
    const facts = element("p", "facts");
    facts.append(element("span", "state " + cell.line.state, t(cell.line.state) || cell.line.state));
    const parts = [cell.line.id];
    const made = (cell.line.images || []).filter((image) => !image.reason).length;
    if (!data.simulated && cell.line.cost && made) parts.push(`${Number((cell.line.cost / made).toFixed(4))} ${t("yuan")}`);
    facts.append(...parts.filter(Boolean).map((part) => " · " + part));
    return [facts, element("p", "facts", cell.parameters.map(([, value]) => value).join(" · "))];
  }

  function card(cell, i) {
    const li = element("li", "card " + (marked.get(cell.key) || ""));
    li.dataset.i = i;
    const thumb = element("button", "thumb");
    thumb.type = "button";
    thumb.setAttribute("aria-label", `${t("view")}: ${cell.line.prompt}`);
    thumb.append(picture(cell, true));
    const text = element("div", "text");
    text.append(element("p", "prompt", cell.line.prompt), ...factsOf(cell));
    const buttons = element("div", "marks");
    buttons.append(...markButtons(cell));
    li.append(thumb, text, buttons);
    return li;
  }

  function drawMore() {
    const until = Math.min(drawn + chunk, view.length), part = document.createDocumentFragment();
    for (; drawn < until; drawn++) part.append(card(view[drawn], drawn));
    grid.append(part);
    more.hidden = drawn >= view.length;
  }

  function draw() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const state = byId("state").value, mark = byId("mark").value;
    view = cells.filter((cell) => (!state || cell.line.state === state) &&
      (!mark || (marked.get(cell.key) || "none") === mark) && words.every((w) => cell.words.includes(w)));
    grid.replaceChildren();
    drawn = 0;
    selected = -1;
    drawMore();
    byId("found").textContent = t("found")(view.length, cells.length);
  }

  function select(i) {
    if (i < 0 || i >= view.length) return;
    while (drawn <= i) drawMore();
    if (selected >= 0) grid.children[selected]?.classList.remove("selected");
    selected = i;
    const li = grid.children[i];
    li.classList.add("selected");
    li.scrollIntoView({ block: "nearest" });
    if (viewer.open) show();
    else li.querySelector(".thumb").focus({ preventScroll: true });
  }

  // setMark marks a cell, or removes the mark if it has it already.
  function setMark(i, mark) {
    const cell = view[i];
    if (!cell || mark === "redo" && !cell.line.redo) return;
    if (!mark || marked.get(cell.key) === mark) marked.delete(cell.key);
    else marked.set(cell.key, mark);
    store.write(marksKey, Object.fromEntries(marked));
    const li = grid.children[i];
    li.className = "card " + (marked.get(cell.key) || "") + (i === selected ? " selected" : "");
    li.querySelector(".marks").replaceChildren(...markButtons(cell));
    if (viewer.open) byId("viewer-marks").replaceChildren(...markButtons(cell));
    countMarks();
  }

  function chosen(mark) {
    return cells.filter((cell) => marked.get(cell.key) === mark);
  }

  function countMarks() {
    for (const mark of marks) {
      const n = chosen(mark).length, name = mark[0].toUpperCase() + mark.slice(1), b = byId("export-" + mark);
      b.textContent = t("export" + name)(n);
      b.disabled = n === 0;
    }
  }

  // linesOf returns the lines of marked images: as they were written, or, to make them again,
  // as many images of each as are marked.
  function linesOf(mark) {
    const byLine = new Map();
    for (const cell of chosen(mark)) byLine.set(cell.line, (byLine.get(cell.line) || 0) + 1);
    return [...byLine].map(([line, n]) => {
      if (mark !== "redo") return line.raw;
      return n < (line.images || []).length ? JSON.stringify({ ...JSON.parse(line.redo), n }) : line.redo;
    });
  }

  function download(mark) {
    const text = linesOf(mark).map((line) => line + "\n").join("");
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
    link.download = `${data.file}.${mark}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  function show() {
    const cell = view[selected], list = element("dl");
    if (!cell) return;
    byId("picture").replaceChildren(picture(cell, false));
    byId("viewer-marks").replaceChildren(...markButtons(cell));
    const rows = [[t("prompt"), cell.line.prompt], [t("id"), cell.line.id || cell.line.job], [t("state"), t(cell.line.state) || cell.line.state]];
    if (cell.line.reason || cell.image && cell.image.reason) rows.push([t("reason"), reasonOf(cell)]);
    rows.push([t("cost"), data.simulated ? t("simulatedCost") : `${cell.line.cost || 0} ${t("yuan")}`]);
    if (cell.image && cell.image.width) rows.push([t("pixels"), `${cell.image.width} × ${cell.image.height}`]);
    if (cell.image && cell.image.seed !== undefined) rows.push([t("seed"), cell.image.seed]);
    if (cell.image && cell.image.actual) rows.push([t("actual"), cell.image.actual]);
    if (cell.image && cell.image.name) rows.push([t("file"), cell.image.name]);
    for (const [name, value] of [...rows, ...cell.parameters]) list.append(element("dt", "", name), element("dd", "", value));
    byId("details").replaceChildren(list);
    byId("previous").disabled = selected === 0;
    byId("next").disabled = selected === view.length - 1;
  }

  function open(i) {
    select(i);
    if (selected < 0) return;
    if (!viewer.open) viewer.showModal();
    show();
  }

  function options(select, first, values) {
    const value = select.value;
    select.replaceChildren(...[["", first], ...values].map(([v, text]) => {
      const o = element("option", "", text);
      o.value = v;
      return o;
    }));
    select.value = value;
    select.setAttribute("aria-label", first);
  }

  function translate() {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    const images = cells.filter((c) => c.image && !c.image.reason).length;
    const when = (text) => new Date(text).toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
    byId("summary").textContent = t("summary")({ images, lines: data.lines.length, simulated: data.simulated, yuan: data.yuan, time: when(data.time) }) +
      (data.expires ? t("expires")(when(data.expires)) : "");
    byId("language").textContent = t("other");
    byId("search").placeholder = t("search");
    byId("search").setAttribute("aria-label", t("search"));
    byId("size-label").textContent = t("size");
    byId("close").textContent = byId("keys-close").textContent = t("close");
    byId("help").setAttribute("aria-label", t("keys"));
    byId("previous").setAttribute("aria-label", t("previous"));
    byId("next").setAttribute("aria-label", t("next"));
    byId("keys-title").textContent = t("keys");
    byId("keys-list").replaceChildren(...t("keyList").flatMap(([key, what]) => {
      const dt = element("dt");
      dt.append(element("kbd", "", key));
      return [dt, element("dd", "", what)];
    }));
    const states = [...new Set(data.lines.map((line) => line.state))];
    options(byId("state"), t("states"), states.map((s) => [s, t(s) || s]));
    options(byId("mark"), t("marks"), [...marks.map((m) => [m, t(m)]), ["none", t("none")]]);
    countMarks();
    draw();
  }

  // columns returns how many cards are in a row.
  function columns() {
    return getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  }

  grid.addEventListener("click", (event) => {
    const li = event.target.closest(".card"), b = event.target.closest("button");
    if (!li || !b) return;
    const i = Number(li.dataset.i);
    if (b.dataset.mark) { setMark(i, b.dataset.mark); } else open(i);
  });
  byId("viewer-marks").addEventListener("click", (event) => {
    const b = event.target.closest("button");
    if (b) setMark(selected, b.dataset.mark);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    if (event.target.matches("input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const step = viewer.open ? { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 } : { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
    const mark = { k: "keep", x: "reject", r: "redo", u: "" }[event.key];
    if (event.key in step) select(selected < 0 ? 0 : selected + step[event.key]);
    else if (mark !== undefined && selected >= 0) setMark(selected, mark);
    else if (event.key === "Enter" && event.target === document.body && selected >= 0) open(selected);
    else if (event.key === "/") byId("search").focus();
    else if (event.key === "?") byId("keys").showModal();
    else return;
    event.preventDefault();
  });
  byId("previous").addEventListener("click", () => select(selected - 1));
  byId("next").addEventListener("click", () => select(selected + 1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => grid.children[selected]?.querySelector(".thumb").focus());
  byId("help").addEventListener("click", () => byId("keys").showModal());
  let typing;
  byId("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(draw, 120); });
  byId("state").addEventListener("change", draw);
  byId("mark").addEventListener("change", draw);
  byId("size").addEventListener("input", (event) => document.documentElement.style.setProperty("--cell", event.target.value + "px"));
  byId("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    store.write("danqing:language", language);
    translate();
  });
  for (const mark of marks) byId("export-" + mark).addEventListener("click", () => download(mark));
  new IntersectionObserver((entries) => { if (entries.some((e) => e.isIntersecting) && drawn < view.length) drawMore(); }, { rootMargin: "800px" }).observe(more);
  translate();
})();
