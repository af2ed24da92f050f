// The page of `samadapt serve`. No framework; NiiVue (niivue.js) draws volumes.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  // What a browser reads by itself; other files are turned by the server (/view).
  const VOLUMES = /\.(nii|nii\.gz|nrrd)$/i;
  const PICTURES = /\.(png|jpe?g|gif|webp|bmp)$/i;

  let models = [];
  let token = "";
  let files = [];
  let shown = null; // what the stage has: {kind: "volume" | "picture"}
  let asking = null; // the AbortController of a request
  let chosen = 0; // how often a scan was chosen: what was begun for an earlier one is drawn no more
  let viewer = null; // NiiVue
  let attached = null; // the promise that it can draw
  const urls = []; // of the last answer

  // ------------------------------------------------------------ words

  const say = (text) => { $("status").textContent = text; };
  const complain = (text) => { $("error").textContent = text; };
  const number = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
  const listed = (names) => names.join(names.some((name) => name.includes(",")) ? "; " : ", ");
  const current = () => models.find((model) => model.name === $("model").value);

  // ------------------------------------------------------------ the server

  async function call(path, options = {}) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    let sentence = `The server answered with status ${answer.status}.`;
    try { sentence = (await answer.json()).error; } catch { /* no JSON */ }
    const refused = new Error(sentence);
    refused.status = answer.status;
    throw refused;
  }

  function ask(path, query) {
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name);
    return call(`${path}?${new URLSearchParams({ model: current().name, ...query })}`, { method: "POST", body: form, signal: asking.signal });
  }

  async function loadModels() {
    try {
      models = (await (await call("models")).json()).models;
    } catch (error) {
      $("locked").hidden = error.status !== 401;
      complain(error.status === 401 && !token ? "" : error.message);
      if (error.status === 401) $("token").focus();
      return;
    }
    $("locked").hidden = true;
    complain("");
    $("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
    describe();
    ready();
  }

  function describe() {
    const model = current();
    if (!model) return;
    const classes = model.classes.filter((each) => each.colour).map((each) => each.name);
    const few = listed(classes.slice(0, 6)) + (classes.length > 6 ? ` and ${classes.length - 6} more` : "");
    const what = model.task === "segmentation" ? "Segments" : "Tells apart";
    const kind = model.pictures ? "pictures" : [model.modality, "volumes"].filter(Boolean).join(" ");
    const channels = model.files > 1 ? ` of ${model.files} files (${model.channels.join(", ")})` : "";
    $("reads").textContent = `${what} ${few} in ${kind}${channels}.`;
  }

  const ready = () => { $("send").disabled = Boolean(asking) || !files.length || !models.length; };

  // ------------------------------------------------------------ a scan

  /** Wait for a step; ended like a cancelled request where another scan was chosen meanwhile. */
  async function still(step) {
    const mine = chosen;
    const end = () => { if (mine !== chosen) throw new DOMException("another scan was chosen", "AbortError"); };
    try {
      const made = await step;
      end();
      return made;
    } catch (error) {
      end();
      throw error;
    }
  }

  async function choose(list) {
    files = [...list];
    if (!files.length) return;
    chosen += 1;
    if (asking) asking.abort();
    asking = null;
    $("cancel").hidden = true;
    forget();
    complain("");
    ready();
    const named = files.length === 1 ? files[0].name : `${files.length} files`;
    say(`${named} chosen.`);
    try {
      if (PICTURES.test(files[0].name)) await showPicture(files[0]);
      else if (VOLUMES.test(files[0].name)) await showVolume(files[0]);
      else $("empty").textContent = "The scan appears with the answer.";
    } catch (error) {
      if (error.name === "AbortError") return;
      clearStage("This browser cannot show the file; the model may read it all the same.");
      console.warn(error);
    }
  }

  /** Nothing of the scan before is left on the page. */
  function forget() {
    clearStage("The scan appears here.");
    while (urls.length) URL.revokeObjectURL(urls.pop());
    $("tables").replaceChildren();
    $("said").textContent = "No answer yet.";
    for (const id of ["notes", "saliency", "download"]) $(id).hidden = true;
  }

  // ------------------------------------------------------------ the stage

  function clearStage(text) {
    if (viewer) for (const volume of [...viewer.volumes]) viewer.removeVolume(volume);
    shown = null;
    for (const id of ["volume", "picture", "controls", "opacity-box"]) $(id).hidden = true;
    $("empty").hidden = false;
    $("empty").textContent = text;
  }

  async function showPicture(blob) {
    const bitmap = await still(createImageBitmap(blob));
    for (const id of ["pixels", "overlay"]) {
      $(id).width = bitmap.width;
      $(id).height = bitmap.height;
    }
    $("pixels").getContext("2d").drawImage(bitmap, 0, 0);
    shown = { kind: "picture" };
    $("empty").hidden = true;
    $("picture").hidden = false;
    for (const id of ["plane-box", "slice-box"]) $(id).hidden = true;
  }

  async function showVolume(file) {
    $("empty").hidden = true;
    $("volume").hidden = false;
    if (!viewer) {
      viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], show3Dcrosshair: false, crosshairColor: [1, 1, 1, 0.5], isRadiologicalConvention: true, isColorbar: false, dragAndDropEnabled: false, loadingText: "" });
      viewer.onLocationChange = followSlice;
      attached = viewer.attachToCanvas($("volume"));
    }
    await still(attached);
    viewer.addVolume(await still(niivue.NVImage.loadFromFile({ file, name: file.name || "scan.nii.gz" })));
    shown = { kind: "volume" };
    $("controls").hidden = $("plane-box").hidden = false;
    $("plane").value = thickest();
    showPlane();
  }

  /** The plane in which the slices were acquired, where they are thicker than their pixels are wide. */
  function thickest() {
    const [, x, y, z] = viewer.volumes[0].pixDimsRAS;
    const most = Math.max(x, y, z);
    if (most < 1.5 * Math.min(x, y, z)) return "all";
    return most === z ? "axial" : most === y ? "coronal" : "sagittal";
  }

  const AXIS = { sagittal: 0, coronal: 1, axial: 2 };

  function showPlane() {
    const plane = $("plane").value;
    const types = { axial: viewer.sliceTypeAxial, coronal: viewer.sliceTypeCoronal, sagittal: viewer.sliceTypeSagittal, all: viewer.sliceTypeMultiplanar };
    viewer.opts.crosshairWidth = plane === "all" ? 1 : 0; // where the three planes meet
    viewer.setSliceType(types[plane]);
    $("slice-box").hidden = plane === "all";
    if (plane !== "all") $("slice").max = viewer.volumes[0].dimsRAS[AXIS[plane] + 1];
    followSlice();
  }

  function followSlice() {
    const axis = AXIS[$("plane").value];
    if (axis === undefined || !viewer.volumes.length) return;
    const count = viewer.volumes[0].dimsRAS[axis + 1];
    const at = Math.min(count, Math.floor(viewer.scene.crosshairPos[axis] * count) + 1);
    $("slice").value = at;
    $("slice-number").textContent = `${at} of ${count}`;
  }

  function goToSlice() {
    const axis = AXIS[$("plane").value];
    const count = viewer.volumes[0].dimsRAS[axis + 1];
    viewer.scene.crosshairPos[axis] = (Number($("slice").value) - 0.5) / count;
    viewer.drawScene();
    followSlice();
  }

  function setOpacity() {
    const share = Number($("opacity").value);
    $("opacity-number").textContent = `${share} %`;
    $("opacity").setAttribute("aria-valuetext", `${share} percent`);
    if (shown && shown.kind === "picture") $("overlay").style.opacity = share / 100;
    else if (viewer && viewer.volumes.length > 1) viewer.setOpacity(1, share / 100);
  }

  const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

  async function overlayVolume(blob, classes) {
    const map = { R: [], G: [], B: [], A: [], I: [], labels: [] };
    for (const each of classes) {
      const [r, g, b] = each.colour ? rgb(each.colour) : [0, 0, 0];
      map.R.push(r); map.G.push(g); map.B.push(b); map.A.push(each.colour ? 255 : 0); map.I.push(each.value); map.labels.push(each.name);
    }
    const label = await still(niivue.NVImage.loadFromFile({ file: new File([blob], "label.nii.gz"), name: "label.nii.gz" }));
    label.setColormapLabel(map);
    viewer.addVolume(label);
    viewer.updateGLVolume();
  }

  /** The colours of an indexed PNG of classes (those of PASCAL VOC) tell the classes. */
  function classOf(red, green, blue) {
    let value = 0;
    for (let bit = 0; bit < 8; bit++) {
      const shift = 7 - bit;
      value |= (((red >> shift) & 1) | (((green >> shift) & 1) << 1) | (((blue >> shift) & 1) << 2)) << (3 * bit);
    }
    return value & 255;
  }

  async function overlayPicture(blob, classes) {
    const bitmap = await still(createImageBitmap(blob));
    const context = $("overlay").getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const image = context.getImageData(0, 0, bitmap.width, bitmap.height);
    const colours = new Map(classes.map((each) => [each.value, each.colour && rgb(each.colour)]));
    for (let at = 0; at < image.data.length; at += 4) {
      const colour = colours.get(classOf(image.data[at], image.data[at + 1], image.data[at + 2]));
      image.data.set(colour ? [...colour, 255] : [0, 0, 0, 0], at);
    }
    context.putImageData(image, 0, 0);
  }

  // ------------------------------------------------------------ an answer

  async function send(event) {
    event.preventDefault();
    if (!files.length || !current()) return;
    asking = new AbortController();
    const mine = asking;
    complain("");
    ready();
    $("cancel").hidden = false;
    say("The model computes ...");
    const begun = performance.now();
    try {
      const model = current();
      await (model.task === "segmentation" ? segment(model) : classify(model));
      say(`Answered in ${number((performance.now() - begun) / 1000, 1)} seconds.`);
      $("result").focus({ preventScroll: true });
    } catch (error) {
      if (asking === mine) say(error.name === "AbortError" ? "Cancelled." : "No answer.");
      if (error.name !== "AbortError") complain(error.message);
    } finally {
      if (asking === mine) asking = null;
      $("cancel").hidden = !asking;
      ready();
    }
  }

  /** What the server makes of files that a browser cannot show. */
  async function showByServer() {
    if (shown) return;
    const answer = await still(ask("view", {}));
    const blob = await still(answer.blob());
    if (blob.type === "image/png") await showPicture(blob);
    else await showVolume(new File([blob], "scan.nii.gz"));
  }

  /** An answer stands, also where this browser cannot draw it. */
  async function drawn(draw) {
    try {
      await draw();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      clearStage("This browser cannot show the scan. The answer can be downloaded.");
      console.warn(error);
    }
  }

  function offer(blob, name, text) {
    const url = URL.createObjectURL(blob);
    urls.push(url);
    Object.assign($("download"), { href: url, download: name, textContent: text, hidden: false });
  }

  const stem = () => files[0].name.replace(/(\.nii)?\.[^.]+$/, "").replace(/_\d{4}$/, "") || "scan";

  async function segment(model) {
    const answer = await still(ask("predict", {}));
    const about = JSON.parse(answer.headers.get("Samadapt-Answer"));
    const blob = await still(answer.blob());
    const name = /filename="[^".]*([^"]*)"/.exec(answer.headers.get("Content-Disposition") || "")[1];
    offer(blob, `${stem()}_${model.name}${name}`, "Download the label map");
    const rows = about.volumes.map((each) => [classCell(model, each.value), each.ml === null ? number(each.voxels, 0) : number(each.ml, 1)]);
    const unit = about.volumes.every((each) => each.ml === null) ? "pixels" : "ml";
    table("Volumes", ["class", unit], rows);
    const found = about.volumes.filter((each) => each.voxels).length;
    tell(`${model.name} found ${found} of ${about.volumes.length} classes.`, about.notes);
    await drawn(async () => {
      clearOverlay();
      await showByServer();
      if (shown.kind === "picture") await overlayPicture(blob, model.classes);
      else await overlayVolume(await asNifti(blob, name), model.classes);
      $("controls").hidden = $("opacity-box").hidden = false;
      setOpacity();
    });
  }

  /** NiiVue reads NIfTI and NRRD label maps alike, by their names. */
  async function asNifti(blob, name) {
    return name === ".nrrd" ? await still((await still(ask("predict", { output: "nifti" }))).blob()) : blob;
  }

  function clearOverlay() {
    if (viewer && viewer.volumes.length > 1) viewer.removeVolume(viewer.volumes[1]);
    $("overlay").getContext("2d").clearRect(0, 0, $("overlay").width, $("overlay").height);
  }

  async function classify(model) {
    const about = await still((await still(ask("predict", { output: "json" }))).json());
    const rows = Object.entries(about.probabilities).map(([name, value]) => {
      const meter = document.createElement("meter");
      Object.assign(meter, { min: 0, max: 1, value });
      meter.setAttribute("aria-hidden", "true");
      return [name, meter, number(value, 3)];
    });
    table("Probabilities", ["class", "", "probability"], rows);
    const found = Array.isArray(about.prediction) ? listed(about.prediction) || "none of the classes" : about.prediction;
    const set = about.set ? ` Calibrated set (90 % of cases like those of the training have their class in it): ${listed(about.set)}.` : "";
    tell(`${model.name} says: ${found}.${set}`, about.notes);
    offer(new Blob([JSON.stringify(about, null, 1)], { type: "application/json" }), `${stem()}_${model.name}.json`, "Download the probabilities");
    await drawn(showByServer);
    if (!model.saliency) return;
    const url = URL.createObjectURL(await still((await still(ask("predict", { output: "png" }))).blob()));
    urls.push(url);
    $("looked").src = url;
    $("looked").alt = `The image and, over it, how strongly each part spoke for ${found}`;
    $("saliency").hidden = false;
  }

  function tell(text, notes) {
    $("said").textContent = text;
    $("notes").hidden = !notes.length;
    $("notes").replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  }

  function classCell(model, value) {
    const cell = document.createElement("span");
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    const own = model.classes.find((each) => each.value === value);
    swatch.style.backgroundColor = own.colour;
    cell.append(swatch, own.name);
    return cell;
  }

  function table(caption, head, rows) {
    const made = document.createElement("table");
    made.createCaption().textContent = caption;
    const last = head.length - 1;
    const add = (row, kind, content, at) => {
      const cell = document.createElement(kind);
      if (kind === "th") cell.scope = row.parentNode.nodeName === "THEAD" ? "col" : "row";
      if (at === last) cell.className = "number";
      cell.append(content);
      row.append(cell);
    };
    const top = made.createTHead().insertRow();
    head.forEach((text, at) => add(top, text ? "th" : "td", text, at));
    const body = made.createTBody();
    for (const cells of rows) {
      const row = body.insertRow();
      cells.forEach((content, at) => add(row, at ? "td" : "th", content, at));
    }
    $("tables").replaceChildren(made);
  }

  // ------------------------------------------------------------ what a person does

  $("ask").addEventListener("submit", send);
  $("cancel").addEventListener("click", () => asking && asking.abort());
  $("files").addEventListener("change", (event) => choose(event.target.files));
  $("model").addEventListener("change", () => { describe(); ready(); });
  $("plane").addEventListener("change", showPlane);
  $("slice").addEventListener("input", goToSlice);
  $("opacity").addEventListener("input", setOpacity);
  $("unlock").addEventListener("click", () => { token = $("token").value.trim(); loadModels(); });
  $("token").addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); $("unlock").click(); }
  });
  $("openapi").addEventListener("click", async (event) => {
    if (!token) return; // a link sends no token
    event.preventDefault();
    try {
      const url = URL.createObjectURL(await (await call("openapi.json")).blob());
      Object.assign(document.createElement("a"), { href: url, download: "openapi.json" }).click();
      URL.revokeObjectURL(url);
    } catch (error) { complain(error.message); }
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dragging", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) {
        $("files").files = event.dataTransfer.files;
        choose(event.dataTransfer.files);
      }
    });
  }
  loadModels();
})();
