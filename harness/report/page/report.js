"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const read = (id) => ($("#" + id) ? JSON.parse($("#" + id).textContent) : null);

  // Tables: sorted by a click on the head of a column, filtered by what is typed; a row is shown if nothing hides it.
  const value = (row, column, numeric) => {
    const text = row.cells[column].dataset.value;
    return numeric ? (text === "" || isNaN(text) ? NaN : Number(text)) : text || row.cells[column].textContent.trim();
  };
  const compare = (numeric, sign) => (a, b) => {
    // What is unknown stands last, whichever way the rest is sorted.
    const unknown = (each) => numeric ? isNaN(each) : each === "";
    if (unknown(a) || unknown(b)) return unknown(a) - unknown(b);
    return numeric ? sign * (a - b) : sign * a.localeCompare(b);
  };
  const sort = (head) => {
    const table = head.closest("table");
    const column = [...head.parentNode.cells].indexOf(head);
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const by = compare("numeric" in head.dataset, ascending ? 1 : -1);
    const key = (row) => value(row, column, "numeric" in head.dataset);
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => by(key(a), key(b))));
  };
  let subject = $("#subject") ? $("#subject").value : null;
  const elsewhere = (element) => Boolean(subject && element.dataset.subject && element.dataset.subject !== subject);
  const filter = (table) => {
    const wanted = $(`[data-filter="${table.id}"]`).value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = elsewhere(row) || !wanted.every((part) => text.includes(part));
      shown += !row.hidden;
    }
    $(`[data-count="${table.id}"]`).textContent = shown === 1 ? "1 row" : `${shown} rows`;
  };
  for (const head of $$("thead th")) $("button", head).addEventListener("click", () => sort(head));
  for (const box of $$("[data-filter]")) box.addEventListener("input", () => filter($("#" + box.dataset.filter)));

  // Charts: drawn when they come near the window, in the colours of the page, which a dark page or paper exchanges.
  const ink = "var(--ink)", muted = "var(--muted)", line = "var(--line)";
  const config = {
    background: "transparent", font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { labelColor: ink, titleColor: muted, gridColor: line, domainColor: line, tickColor: line, labelLimit: 210, gridOpacity: 0.6 },
    legend: { labelColor: ink, titleColor: muted }, title: { color: ink }, text: { color: ink },
  };
  const specifications = read("specifications");
  const views = new Map();
  const chosen = new Set();
  const draw = (place) => {
    if (views.has(place)) return;
    const options = { renderer: "svg", config, actions: { export: true, source: false, compiled: false, editor: false } };
    views.set(place, vegaEmbed(place, specifications[place.dataset.chart], options).then(({ view }) => {
      if (chosen.size) tell(view);
      // Captions and tables say it in words; the menu of a chart saves it as a picture.
      for (const drawing of $$("svg.marks", place)) drawing.setAttribute("aria-hidden", "true");
      for (const menu of $$("summary", place)) menu.setAttribute("aria-label", "save this chart as a picture");
      return view;
    }));
  };
  const tell = (view) => {
    try { view.signal("chosen", [...chosen]).run(); } catch { /* a chart without lines */ }
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "600px" });
  for (const place of $$("[data-chart]")) watcher.observe(place);
  const drawAll = () => Promise.all($$("[data-chart]").map((place) => {
    if (place.offsetParent !== null) draw(place);
    return views.get(place);
  }));
  window.addEventListener("beforeprint", drawAll);
  window.drawAllCharts = () => drawAll().then(() => null);
  for (const button of $$(".legend button")) button.addEventListener("click", () => {
    if ("all" in button.dataset) chosen.clear();
    else if (!chosen.delete(button.dataset.method)) chosen.add(button.dataset.method);
    for (const each of $$(".legend button[data-method]")) each.setAttribute("aria-pressed", chosen.has(each.dataset.method));
    for (const view of views.values()) view.then(tell);
  });

  // The gallery: bytes from -127 to 127, coloured here, so that a switch of sign computes nothing anew.
  const data = read("gallery-data");
  const bytes = async (text) => {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const unpacked = new Map();
  const unpack = (text) => {
    if (!unpacked.has(text)) unpacked.set(text, bytes(text));
    return unpacked.get(text);
  };
  const MANY = 24;
  const form = $("#gallery-controls");
  const element = (name, attributes, ...children) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...children);
    return made;
  };
  // Of all models the first has its maps shown; a model without maps has none, and not those of another.
  const model = () => subject ? data.models.find((each) => each.subject === subject) : data.models[0];
  const paint = (canvas, values, sign, over, tables) => {
    const drawing = canvas.getContext("2d");
    const image = drawing.createImageData(canvas.width, canvas.height);
    for (let place = 0; place < values.length; place++) {
      const raw = values[place];
      const kept = sign === "positive" ? Math.max(raw, 0) : sign === "negative" ? Math.min(raw, 0) : raw;
      const colour = sign === "absolute" ? Math.round(Math.abs(kept) * 255 / 127) : Math.round((kept + 127) * 255 / 254);
      const table = sign === "absolute" ? tables.absolute : tables.signed;
      image.data.set(table.subarray(3 * colour, 3 * colour + 3), 4 * place);
      image.data[4 * place + 3] = over ? Math.round(Math.abs(kept) * 200 / 127) : 255;
    }
    drawing.putImageData(image, 0, 0);
  };
  const curve = (numbers) => {
    const canvas = element("canvas", { width: 512, height: 96 });
    const drawing = canvas.getContext("2d");
    drawing.beginPath();
    // Each number is as wide as its place in a map.
    numbers.forEach((number, place) => {
      for (const side of [place, place + 1]) drawing.lineTo(side * 512 / numbers.length, 92 - 88 * number);
    });
    drawing.stroke();
    return canvas;
  };
  const picture = (sample, about) => sample.picture
    ? element("img", { src: sample.picture, alt: about }) : curve(sample.line);
  const told = (sample) => `explained: ${sample.explained}${sample.label && sample.label !== sample.explained ? `, label: ${sample.label}` : ""}`;
  const framed = (shape, ...children) => {
    const frame = element("div", { className: "frame" }, ...children);
    frame.style.setProperty("--shape", Math.min(6, Math.max(0.5, shape[0] === 1 ? 6 : shape[1] / shape[0])));
    return frame;
  };
  const isLong = ([height, width]) => height === 1 || width > 3 * height;
  const tile = async (method, sample, row, choice, tables, caption) => {
    const [height, width] = method.shape;
    const all = new Int8Array((await unpack(method.values)).buffer);
    const values = all.subarray(row * height * width, (row + 1) * height * width);
    const share = method.positive[row];
    const known = share === null ? "not everywhere a number" : `${Math.round(100 * share)} % of it positive`;
    if (share === null) caption = [caption, element("br"), "not everywhere a number"];
    const canvas = element("canvas", { width, height });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `map of ${method.name} on ${sample.id}, ${known}, ${choice.sign}`);
    paint(canvas, values, choice.sign, choice.over, tables);
    const below = choice.over ? [picture(sample, "")] : [];
    const chips = ((data.said[model().subject] || {})[method.name] || []).map(([what, word, kind, sign]) =>
      element("span", { className: `chip ${kind}`, title: `another ${what}: ${word}` }, `${sign} ${what}`));
    if (choice.by === "sample" && chips.length) caption = [caption, element("br"), ...chips].flat();
    const frame = framed(method.shape, ...below, canvas);
    frame.classList.toggle("over", choice.over);
    return element("figure", { className: "tile" }, frame, element("figcaption", {}, ...[caption].flat()));
  };
  let latest = 0;
  const show = async () => {
    const turn = ++latest;
    const here = model();
    if (!here) {
      $("#gallery").replaceChildren();
      $("#gallery-note").textContent = "No maps of this model were kept.";
      return;
    }
    const choice = { by: form.by.value, sign: form.sign.value, over: form.over.checked };
    for (const each of $$("[data-when]", form)) each.hidden = each.dataset.when !== choice.by;
    const tables = { signed: await unpack(data.colours.signed), absolute: await unpack(data.colours.absolute) };
    const tiles = [];
    let note;
    if (choice.by === "sample") {
      const row = Number(form.sample.value);
      const sample = here.samples[row];
      const shape = here.methods[0].shape;
      tiles.push(element("figure", { className: "tile" }, framed(shape, picture(sample, `the sample ${sample.id}`)), element("figcaption", {}, "input")));
      for (const method of here.methods) tiles.push(await tile(method, sample, row, choice, tables, method.name));
      note = `${sample.id}, ${told(sample)}`;
    } else {
      const method = here.methods[Number(form.method.value)];
      const first = Math.floor(Number(form.sample.value) / MANY) * MANY;
      for (const [place, sample] of here.samples.slice(first, first + MANY).entries())
        tiles.push(await tile(method, sample, first + place, choice, tables, `${sample.id}, ${told(sample)}`));
      note = `${method.name}, samples ${first + 1} to ${first + tiles.length}`;
    }
    if (turn !== latest) return;
    if (data.models.length > 1) note = `${here.subject}: ${note}`;
    if (here.samples.length < here.all) note += ` (${here.samples.length} of ${here.all} samples are in this file)`;
    $("#gallery").classList.toggle("long", isLong(here.methods[0].shape));
    $("#gallery").replaceChildren(...tiles);
    $("#gallery-note").textContent = note;
    const bare = choice.sign === "absolute";
    const ramp = (_, place) => bare ? place / 2 : Math.max(place - 128, -127);
    paint($("#colour-bar"), Int8Array.from({ length: 256 }, ramp), choice.sign, false, tables);
    $("#colour-low").textContent = bare ? "zero" : "against";
    $("#colour-high").textContent = bare ? "much, for or against" : "for";
  };
  const fill = () => {
    const here = model() || { samples: [], methods: [] };
    form.sample.replaceChildren(...here.samples.map((sample, row) => new Option(`${sample.id} (${told(sample)})`, row)));
    form.method.replaceChildren(...here.methods.map((method, row) => new Option(method.name, row)));
    show();
  };
  if (data) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", show);
    for (const button of $$("[data-step]", form)) button.addEventListener("click", () => {
      const size = form.by.value === "method" ? MANY : 1;
      const count = form.sample.options.length;
      const pages = Math.ceil(count / size);
      const page = Math.floor(form.sample.selectedIndex / size) + Number(button.dataset.step);
      form.sample.selectedIndex = (page + pages) % pages * size;
      show();
    });
    fill();
  }

  // The model that is shown, where there are several.
  const refresh = () => {
    for (const each of $$("figure[data-subject], details[data-subject]")) each.hidden = elsewhere(each);
    for (const table of $$("table")) filter(table);
    if (data) fill();
  };
  if ($("#subject")) {
    $("#subject").addEventListener("change", () => { subject = $("#subject").value; refresh(); });
    refresh();
  }
})();
