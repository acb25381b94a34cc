// Draws frames on a canvas and reports what the reader does there, as shares of the picture.
function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "smml-plane";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  // JupyterLab would take the keys for its own commands.
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  el.appendChild(canvas);
  // A rule, not the picture's own style: it may come to the page later than this canvas.
  const still = document.createElement("style");
  if (model.get("still")) still.textContent = `.${model.get("still")} { display: none; }`;
  el.appendChild(still);
  // ipywidgets gives the handles of its sliders no name, and may draw them later than this canvas, and again.
  function nameHandles() {
    for (const [slider, names] of Object.entries(model.get("handles")))
      for (const drawn of document.getElementsByClassName(slider))
        drawn.querySelectorAll(".noUi-handle").forEach((handle, i) => handle.setAttribute("aria-label", names[i]));
  }
  const naming = new MutationObserver(nameHandles);
  naming.observe(document.body, { childList: true, subtree: true });
  nameHandles();

  // Frames are decoded one at a time, the newest only; the old one stays on the canvas until then.
  let decoding = false, waiting = false, frames = 0;
  async function draw() {
    if (decoding) { waiting = true; return; }
    decoding = true;
    do {
      waiting = false;
      const png = model.get("png");
      if (!png || !png.byteLength) continue;
      try {
        const bitmap = await createImageBitmap(new Blob([png], { type: "image/png" }));
        if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
          canvas.width = bitmap.width;
          canvas.height = bitmap.height;
        }
        canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
        bitmap.close();
        canvas.dataset.frames = ++frames;
      } catch (error) { console.error("smml: a frame could not be decoded", error); }
    } while (waiting);
    decoding = false;
  }
  // A reader who cannot see it hears where the keys went; the name of a canvas is read only when it gets the focus.
  const heard = document.createElement("div");
  heard.className = "smml-heard";
  heard.setAttribute("aria-live", "polite");
  el.appendChild(heard);
  const name = () => {
    canvas.setAttribute("aria-label", model.get("label"));
    if (document.activeElement === canvas || el.getRootNode().activeElement === canvas)
      heard.textContent = model.get("label");
  };

  // Motion is gathered and sent once a frame of the browser: a fast wheel must not fill the kernel's queue.
  let pending = null;
  function send(event, merge) {
    if (pending && pending.kind === event.kind) { pending = merge(pending, event); return; }
    if (pending) model.send(pending);
    else requestAnimationFrame(() => { model.send(pending); pending = null; });
    pending = event;
  }
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    held = { windowing: event.button === 2 || event.shiftKey, ...place(event) };
    if (!held.windowing) send({ kind: "point", x: held.x, y: held.y }, (_, next) => next);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    const now = place(event);
    if (held.windowing) {
      send({ kind: "drag", x: now.x - held.x, y: now.y - held.y },
        (old, next) => ({ ...old, x: old.x + next.x, y: old.y + next.y }));
      held = { ...held, ...now };
    } else send({ kind: "point", x: now.x, y: now.y }, (_, next) => next);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    // With Shift browsers turn the wheel sideways.
    send({ kind: "wheel", steps: -Math.sign(event.deltaY || event.deltaX) * (event.shiftKey ? 5 : 1) },
      (old, next) => ({ ...old, steps: old.steps + next.steps }));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (!/^(Arrow|Page|Home$|.$)/.test(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    // With Shift these two keys carry other signs, which differ from layout to layout.
    const shifted = event.shiftKey ? { Comma: ",", Period: "." }[event.code] : undefined;
    model.send({ kind: "key", key: shifted || event.key, fast: event.shiftKey });
  });

  function message(content, buffers) {
    if (content.kind !== "download") return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" }));
    link.download = content.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  model.on("change:png", draw);
  model.on("change:label", name);
  model.on("msg:custom", message);
  draw();
  name();
  return () => {
    naming.disconnect();
    model.off("change:png", draw);
    model.off("change:label", name);
    model.off("msg:custom", message);
  };
}
export default { render };
