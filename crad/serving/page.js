"use strict";
// Sends an image to the server that the page is from, and shows what it answers.
(() => {
  const part = (id) => document.getElementById(id);
  const [stage, image, map, boxes] = ["stage", "image", "map", "boxes"].map(part);
  const video = document.querySelector("video");
  let token = ""; // in memory only
  let sent = 0; // requests, of which only the last one is shown

  function say(text, isError = false) {
    part("status").textContent = text;
    part("status").classList.toggle("error", isError);
  }

  async function ask(path, options = {}) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Error("The server does not answer.");
    }
    if (answer.ok) return answer.json();
    const told = await answer.json().catch(() => ({}));
    const error = new Error(told.error ?? `The server answers ${answer.status}.`);
    error.status = answer.status;
    throw error;
  }

  async function connect() {
    try {
      const model = await ask("/model");
      part("model").textContent = `Classes: ${model.classes.join(", ") || "none"}`;
      part("access").hidden = true;
      part("input").hidden = false;
      part("class-choice").hidden = model.classes.length < 2;
      part("class").append(...model.classes.map((name) => new Option(name, name)));
      say("");
    } catch (error) {
      part("model").textContent = "";
      if (error.status === 401) {
        part("access").hidden = false;
        say(token ? "This is not the token of the server." : "", true);
        part("token").focus();
      } else {
        say(error.message, true);
      }
    }
  }

  async function score(file, name) {
    const number = ++sent;
    part("result").hidden = true;
    say(`Scoring ${name} …`);
    const query = new URLSearchParams({ map: "true" });
    if (part("class").value) query.set("class", part("class").value);
    try {
      const row = await ask(`/predict?${query}`, { method: "POST", body: file });
      if (number === sent) await show(row, file, name);
    } catch (error) {
      if (number === sent) say(error.message, true);
    }
  }

  function draw(element, blob) {
    if (element.src.startsWith("blob:")) URL.revokeObjectURL(element.src);
    element.src = URL.createObjectURL(blob);
    return element.decode();
  }

  function number(value) {
    return value === null ? "-" : value.toPrecision(4);
  }

  async function show(row, file, name) {
    const { width, height, png } = row.map;
    const bytes = Uint8Array.from(atob(png), (each) => each.charCodeAt(0));
    await draw(map, new Blob([bytes], { type: "image/png" }));
    image.alt = name;
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.width = `min(100%, ${(75 * width) / height}vh)`;
    image.hidden = false;
    let isShown = true;
    try {
      await draw(image, file);
    } catch {
      isShown = false; // a TIFF, for instance
      image.hidden = true;
    }

    part("decision").textContent = row.decision ?? "no decision";
    part("decision").className = row.decision ?? "";
    const facts = {
      Image: name,
      Score: number(row.score),
      Threshold: number(row.threshold),
      "p-value": number(row.p_value),
      Class: row.class_name ?? "unknown",
      Size: `${width} × ${height} px`,
    };
    part("facts").replaceChildren(
      ...Object.entries(facts).map(([term, value]) => {
        const pair = document.createElement("div");
        pair.append(document.createElement("dt"), document.createElement("dd"));
        pair.firstChild.textContent = term;
        pair.lastChild.textContent = value;
        return pair;
      }),
    );
    showRegions(row.regions, width, height);
    part("result").hidden = false;
    say(
      `${name}: ${row.decision ?? "no decision"}, score ${number(row.score)}.` +
        (isShown ? "" : " This browser cannot show the image; the map is shown alone."),
    );
  }

  function showRegions(regions, width, height) {
    const percent = (value, of) => `${(100 * value) / of}%`;
    const made = (regions ?? []).map(({ box: [left, top, right, bottom], peak_score }) => {
      const box = document.createElement("div");
      box.style.left = percent(left, width);
      box.style.top = percent(top, height);
      box.style.width = percent(right - left, width);
      box.style.height = percent(bottom - top, height);
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.textContent =
        `${right - left} × ${bottom - top} px at x ${left}, y ${top}; peak ${number(peak_score)}`;
      button.addEventListener("click", () => {
        const chosen = button.getAttribute("aria-pressed") !== "true";
        for (const each of part("regions").querySelectorAll("button")) {
          each.setAttribute("aria-pressed", "false");
        }
        for (const each of boxes.children) each.classList.remove("chosen");
        button.setAttribute("aria-pressed", String(chosen));
        box.classList.toggle("chosen", chosen);
      });
      item.append(button);
      return { box, item };
    });
    boxes.replaceChildren(...made.map(({ box }) => box));
    part("regions").replaceChildren(...made.map(({ item }) => item));
    part("no-regions").textContent = made.length
      ? ""
      : regions === null
        ? "The model marks no regions."
        : "None is marked.";
  }

  function stopCamera() {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    part("live").hidden = true;
    part("camera").hidden = false;
    part("camera").focus();
  }

  part("access").addEventListener("submit", (event) => {
    event.preventDefault();
    token = part("token").value.trim();
    part("token").value = "";
    connect();
  });
  part("file").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    if (file) score(file, file.name);
    target.value = ""; // so that the same file can be chosen again
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    part("drop").addEventListener(kind, (event) => {
      event.preventDefault();
      part("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
      const [file] = kind === "drop" ? event.dataTransfer.files : [];
      if (file) score(file, file.name);
    });
  }
  part("opacity").addEventListener("input", ({ target }) => {
    map.style.opacity = target.value / 100;
  });
  map.style.opacity = part("opacity").value / 100;
  part("show-boxes").addEventListener("input", ({ target }) => {
    boxes.hidden = !target.checked;
  });

  part("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  part("camera").addEventListener("click", async () => {
    try {
      const wanted = { video: { facingMode: "environment", width: { ideal: 1920 } } };
      video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
      part("live").hidden = false;
      part("camera").hidden = true;
      await video.play();
      part("snap").focus();
      say("The camera is on.");
    } catch (error) {
      say(`The camera cannot be used: ${error.message}`, true);
    }
  });
  part("snap").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => score(blob, "snapshot"), "image/png");
  });
  part("stop").addEventListener("click", () => {
    stopCamera();
    say("The camera is off.");
  });

  connect();
})();
