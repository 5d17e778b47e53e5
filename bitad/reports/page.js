"use strict";

(() => {
  const find = (id) => document.getElementById(id);
  const page = JSON.parse(find("page-data").textContent);
  if (page.videos.length === 0) return;

  const LANE_HEIGHT = 25; // pixels from one lane to the next; a segment is 22 of them
  const LANE_MARGIN = 6;
  const MOST_LANES = 8;
  const ZOOMS = [1, 2, 4, 8, 16, 32];
  const player = find("player");
  const state = { video: null, time: 0, end: 1, threshold: page.threshold, /* null: by class */ zoom: 0, only: null, drawn: [], seen: null };

  /** A new element; text is set as text, so that names may hold any character. */
  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function clockTime(seconds, decimals) {
    const scale = 10 ** decimals;
    const rounded = Math.round(Math.max(0, seconds) * scale) / scale;
    const hours = Math.floor(rounded / 3600);
    const minutes = Math.floor(rounded / 60) % 60;
    const rest = (rounded % 60).toFixed(decimals).padStart(decimals ? decimals + 3 : 2, "0");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
  }

  const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
  const isFiltered = (track) => track.score !== null;
  const least = (track, label) => state.threshold ?? track.least[label];
  const isShown = (track, i) => !isFiltered(track) || track.score[i] >= least(track, track.label[i]);
  const hue = (label) => (25 + (360 * label) / page.classes.length) % 360;

  /** What a track shows now, as indices: of at least the minimum score, of the chosen class, and at most MOST_LANES deep.
      Segments come in order of score (ground truth: of start) and take the first lane with room, so that the best
      are in the top lanes and what finds no room is what scores least. */
  function arrange(track) {
    const wanted = track.start.map((_, i) => i).filter(
      (i) => isShown(track, i) && (state.only === null || track.label[i] === state.only));
    const lanes = [];
    const placed = [];
    for (const i of wanted) {
      const [start, end] = [track.start[i], Math.max(track.end[i], track.start[i] + state.end / 500)];
      let lane = lanes.findIndex((taken) => taken.every(([a, b]) => end <= a || start >= b));
      if (lane < 0 && lanes.length < MOST_LANES) lane = lanes.push([]) - 1;
      if (lane < 0) continue;
      lanes[lane].push([start, end]);
      placed.push({ i, lane });
    }
    placed.sort((one, other) => track.start[one.i] - track.start[other.i]);
    return { placed, lanes: Math.max(1, lanes.length), crowdedOut: wanted.length - placed.length };
  }

  function describe(track, i) {
    const [start, end] = [track.start[i], track.end[i]];
    const score = isFiltered(track) ? `, score ${track.score[i].toFixed(2)}` : "";
    const note = track.note === null ? "" : `: ${track.note[i]}`;
    return `${start.toFixed(2)} – ${end.toFixed(2)} s (${(end - start).toFixed(2)} s)${score}${note}`;
  }

  /** A class has its hue; the higher a detection's score, the stronger the colour. */
  function colour(made, track, i) {
    made.style.setProperty("--hue", hue(track.label[i]));
    if (isFiltered(track)) made.style.setProperty("--weight", `${Math.round(25 + 75 * track.score[i])}%`);
  }

  function segmentButton(track, { i, lane }) {
    const made = element("button", "segment", page.classes[track.label[i]]);
    made.type = "button";
    made.tabIndex = -1;
    made.dataset.segment = i;
    made.setAttribute("aria-label", `${page.classes[track.label[i]]}, ${describe(track, i)}`);
    colour(made, track, i);
    made.style.left = `${(100 * track.start[i]) / state.end}%`;
    made.style.width = `${(100 * (track.end[i] - track.start[i])) / state.end}%`;
    made.style.top = `${LANE_MARGIN + lane * LANE_HEIGHT}px`;
    return made;
  }

  function countOf(track, placed, crowdedOut) {
    const hidden = crowdedOut ? `, no room for ${crowdedOut.toLocaleString("en")}` : "";
    if (!isFiltered(track)) return counted(placed.length, track.kind === "defect" ? "defect" : "segment") + hidden;
    if (track.total === 0) return "0 segments";
    const left = track.total > track.start.length
      ? `; the best ${track.start.length.toLocaleString("en")} are on this page` : "";
    return `${placed.length.toLocaleString("en")} of ${track.total.toLocaleString("en")} shown${hidden}${left}`;
  }

  function emptyNote(track) {
    if (track.start.length === 0) return isFiltered(track) ? "nothing detected" : "no action";
    if (state.only !== null) return `no ${page.classes[state.only]}${isFiltered(track) ? " with this score" : ""}`;
    const wanted = state.threshold === null ? "reaches the score of its class" : `scores ${state.threshold.toFixed(2)}`;
    return `nothing ${wanted}; the best is ${Math.max(...track.score).toFixed(2)}`;
  }

  function trackRow(track, number) {
    const { placed, lanes, crowdedOut } = arrange(track);
    const row = element("div", "row");
    row.dataset.track = number;
    row.dataset.kind = track.kind;
    const label = element("div", "track-label");
    label.append(element("span", "name", track.name), element("span", "about", countOf(track, placed, crowdedOut)));
    const plot = element("div", "lanes");
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", track.name);
    plot.style.height = `${2 * LANE_MARGIN + lanes * LANE_HEIGHT - 3}px`;
    const buttons = placed.map((each) => segmentButton(track, each));
    if (buttons.length) buttons[0].tabIndex = 0;
    else plot.append(element("span", "empty", emptyNote(track)));
    plot.append(...buttons);
    row.append(label, plot);
    state.drawn[number] = placed.map(({ i }, k) => ({ i, button: buttons[k] }));
    return row;
  }

  function drawTracks() {
    hideTip();
    state.drawn = [];
    state.seen = null;
    find("timelines").replaceChildren(...state.video.tracks.map(trackRow));
    nameWideSegments();
    showMoment();
  }

  /** Names are written only where at least a few letters fit. */
  function nameWideSegments() {
    const width = find("ruler").clientWidth;
    state.drawn.forEach((drawn, number) => drawn.forEach(({ i, button }) => {
      const track = state.video.tracks[number];
      button.classList.toggle("narrow", (width * (track.end[i] - track.start[i])) / state.end < 34);
    }));
  }

  function drawRuler() {
    const wanted = (state.end * 85) / Math.max(find("ruler").clientWidth, 1); // seconds between ticks about 85 pixels apart
    const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
    const step = steps.find((each) => each >= wanted) ?? steps.at(-1);
    const parts = [];
    for (let k = 0; k * step <= state.end; k += 1) {
      const left = `${(100 * k * step) / state.end}%`;
      const line = element("span", "grid-line");
      line.style.left = left;
      parts.push(line);
      if (k * step > state.end - step * 0.45 && k > 0) continue; // its text would leave the sheet
      const tick = element("span", "tick", clockTime(k * step, step < 1 ? 1 : 0));
      tick.style.left = left;
      parts.push(tick);
    }
    if (state.end > state.video.duration) {
      const beyond = element("span", "beyond");
      beyond.style.left = `${(100 * state.video.duration) / state.end}%`;
      parts.push(beyond);
    }
    find("overlay").replaceChildren(...parts);
  }

  function drawLegend() {
    const used = new Set(state.video.tracks.flatMap((track) => track.label));
    const buttons = [...used].sort((a, b) => a - b).map((label) => {
      const made = element("button", "", page.classes[label]);
      made.type = "button";
      made.dataset.class = label;
      made.style.setProperty("--hue", hue(label));
      made.setAttribute("aria-pressed", String(state.only === label));
      made.addEventListener("click", () => {
        state.only = state.only === label ? null : label;
        find("legend").classList.toggle("filtered", state.only !== null);
        for (const each of buttons) each.setAttribute("aria-pressed", String(Number(each.dataset.class) === state.only));
        drawTracks();
      });
      return made;
    });
    find("legend").classList.remove("filtered");
    find("legend").replaceChildren(...buttons);
  }

  /** Moves the play head to state.time and says what each track sees there. */
  function showMoment() {
    find("sheet").style.setProperty("--now", state.time / state.end);
    find("clock").textContent = clockTime(state.time, 1);
    const ruler = find("ruler");
    ruler.setAttribute("aria-valuenow", state.time.toFixed(2));
    ruler.setAttribute("aria-valuetext", clockTime(state.time, 1));
    const active = state.video.tracks.map((track, number) => state.drawn[number].filter(
      ({ i }) => track.start[i] <= state.time && state.time < track.end[i]));
    const seen = active.map((each) => each.map(({ i }) => i).join()).join("|");
    if (seen === state.seen) return; // this runs at every frame of a playing video
    state.seen = seen;
    for (const each of document.querySelectorAll(".segment.active")) each.classList.remove("active");
    for (const each of active.flat()) each.button.classList.add("active");
    find("now").replaceChildren(...state.video.tracks.flatMap((track, number) => {
      const answer = element("dd");
      answer.append(...chips(track, active[number].map(({ i }) => i)));
      return [element("dt", "", track.name), answer];
    }));
  }

  function chips(track, here) {
    if (here.length === 0) return [element("span", "none", "–")];
    if (isFiltered(track)) here.sort((a, b) => track.score[b] - track.score[a]);
    const made = here.slice(0, 3).map((i) => {
      const chip = element("span", "chip", page.classes[track.label[i]]);
      colour(chip, track, i);
      if (isFiltered(track)) chip.append(" ", element("small", "", track.score[i].toFixed(2)));
      return chip;
    });
    return here.length > 3 ? [...made, element("span", "none", `and ${here.length - 3} more`)] : made;
  }

  function seek(time) {
    state.time = Math.min(Math.max(time, 0), state.end);
    if (player.readyState > 0) player.currentTime = Math.min(state.time, player.duration || state.time);
    showMoment();
  }

  function followPlayer() {
    if (player.readyState === 0) return;
    state.time = player.currentTime;
    showMoment();
  }

  function followPlaying() {
    followPlayer();
    const scroll = find("scroll");
    const head = find("head").offsetLeft;
    if (head > scroll.scrollLeft + scroll.clientWidth || head < scroll.scrollLeft) centreHead();
    if (!player.paused) requestAnimationFrame(followPlaying);
  }

  function centreHead() {
    find("scroll").scrollLeft = find("head").offsetLeft - find("scroll").clientWidth / 2;
  }

  function setZoom(zoom) {
    state.zoom = Math.min(Math.max(zoom, 0), ZOOMS.length - 1);
    find("sheet").style.setProperty("--zoom", ZOOMS[state.zoom]);
    find("zoom-value").textContent = `${ZOOMS[state.zoom]}×`;
    find("zoom-out").disabled = state.zoom === 0;
    find("zoom-in").disabled = state.zoom === ZOOMS.length - 1;
    fit();
    centreHead();
  }

  function fit() {
    drawRuler();
    nameWideSegments();
  }

  function choose(number) {
    state.video = page.videos[number];
    state.time = 0;
    state.only = null;
    state.end = Math.max(state.video.duration, ...state.video.tracks.map(
      (track) => track.end.reduce((most, each) => Math.max(most, each), 0)));
    for (const each of find("choice").children) {
      each.setAttribute("aria-pressed", String(Number(each.dataset.video) === number));
    }
    find("video-name").textContent = state.video.name;
    find("defects").hidden = state.video.defects.length === 0;
    find("defects").replaceChildren(...state.video.defects.map((each) => element("li", "", each)));
    find("media-note").hidden = true;
    if (state.video.absent) showMissing(state.video.absent);
    else player.src = state.video.media;
    find("threshold-control").hidden = !state.video.tracks.some(isFiltered);
    find("by-class").hidden = page.threshold !== null || find("threshold-control").hidden;
    find("ruler").setAttribute("aria-valuemax", state.end.toFixed(2));
    drawLegend();
    drawTracks();
    setZoom(0);
  }

  function showMissing(reason) {
    player.removeAttribute("src");
    player.load(); // without it the video chosen before would play on
    find("media-note").textContent = `${reason} Its timelines work without it.`;
    find("media-note").hidden = false;
  }

  function showTip(button) {
    const row = button.closest("[data-track]");
    const track = state.video.tracks[row.dataset.track];
    const i = Number(button.dataset.segment);
    const tip = find("tip");
    tip.replaceChildren(element("strong", "", page.classes[track.label[i]]), describe(track, i), element("br"), track.name);
    tip.hidden = false;
    const box = button.getBoundingClientRect();
    const area = find("scroll").getBoundingClientRect();
    const middle = (Math.max(box.left, area.left) + Math.min(box.right, area.right)) / 2;
    const left = Math.min(Math.max(middle - tip.offsetWidth / 2, 8), document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }

  function hideTip() {
    find("tip").hidden = true;
  }

  /** Arrow keys in the timelines: earlier and later in a row, and the nearest in time of the row above or below. */
  function moveFocus(event) {
    const button = event.target.closest(".segment");
    if (!button) return;
    const number = Number(button.closest("[data-track]").dataset.track);
    const row = state.drawn[number];
    const at = row.findIndex((each) => each.button === button);
    const start = (track, each) => state.video.tracks[track].start[each.i];
    const nearest = (step) => {
      let other = number + step;
      while (state.drawn[other]?.length === 0) other += step;
      return state.drawn[other]?.reduce((best, each) => (
        Math.abs(start(other, each) - start(number, row[at])) < Math.abs(start(other, best) - start(number, row[at]))
          ? each : best));
    };
    const next = {
      ArrowLeft: () => row[at - 1], ArrowRight: () => row[at + 1], Home: () => row[0], End: () => row.at(-1),
      ArrowUp: () => nearest(-1), ArrowDown: () => nearest(1),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const chosen = next()?.button;
    if (!chosen) return;
    for (const each of chosen.parentElement.querySelectorAll('[tabindex="0"]')) each.tabIndex = -1;
    chosen.tabIndex = 0;
    chosen.focus();
  }

  function moveHead(event) {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    const target = { Home: 0, End: state.end }[event.key] ?? (step === undefined ? undefined : state.time + step);
    if (target === undefined) return;
    event.preventDefault();
    seek(target);
  }

  function timeAt(event, plot) {
    const box = plot.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * state.end;
  }

  /** The length of a video, and how many actions it has; without ground truth, how many detections are shown. */
  function aboutVideo(video) {
    const track = video.tracks.find((each) => !isFiltered(each)) ?? video.tracks[0];
    if (!track) return clockTime(video.duration, 1);
    const shown = track.start.reduce((count, _, i) => count + isShown(track, i), 0);
    const about = isFiltered(track) ? counted(shown, "detection") : counted(track.total, "action");
    return `${clockTime(video.duration, 1)} · ${about}`;
  }

  function listVideos() {
    find("choice").append(...page.videos.map((video, number) => {
      const made = element("button");
      made.type = "button";
      made.dataset.video = number;
      made.title = video.name;
      made.append(element("span", "name", video.name), element("span", "about", aboutVideo(video)));
      if (video.defects.length) made.append(element("span", "wrong", counted(video.defects.length, "defect")));
      made.addEventListener("click", () => choose(number));
      return made;
    }));
    find("choice").parentElement.classList.toggle("single", page.videos.length === 1);
  }

  /** One minimum score for all classes; null: each track's own, by class. */
  function setThreshold(threshold) {
    const [low, middle, high] = page.least;
    state.threshold = threshold;
    find("threshold").value = threshold ?? middle;
    find("threshold-value").textContent = threshold?.toFixed(2) ?? `${low.toFixed(2)} to ${high.toFixed(2)} by class`;
    find("by-class").setAttribute("aria-pressed", String(threshold === null));
    for (const [number, made] of find("choice").querySelectorAll(".about").entries()) {
      made.textContent = aboutVideo(page.videos[number]);
    }
  }

  function listen() {
    player.addEventListener("play", followPlaying);
    player.addEventListener("timeupdate", followPlayer);
    player.addEventListener("loadedmetadata", () => { if (state.time > 0) seek(state.time); });
    player.addEventListener("error", () => {
      if (player.hasAttribute("src")) showMissing(`This browser cannot open “${decodeURIComponent(state.video.media)}”.`);
    });
    find("threshold").addEventListener("input", (event) => {
      setThreshold(Number(event.target.value));
      drawTracks();
    });
    find("by-class").addEventListener("click", () => {
      setThreshold(null);
      drawTracks();
    });
    find("zoom-out").addEventListener("click", () => setZoom(state.zoom - 1));
    find("zoom-in").addEventListener("click", () => setZoom(state.zoom + 1));
    const ruler = find("ruler");
    ruler.addEventListener("keydown", moveHead);
    ruler.addEventListener("pointerdown", (event) => { ruler.setPointerCapture(event.pointerId); seek(timeAt(event, ruler)); });
    ruler.addEventListener("pointermove", (event) => { if (event.buttons & 1) seek(timeAt(event, ruler)); });
    const timelines = find("timelines");
    timelines.addEventListener("keydown", moveFocus);
    timelines.addEventListener("click", (event) => {
      const button = event.target.closest(".segment");
      const plot = event.target.closest(".lanes");
      if (button) seek(state.video.tracks[button.closest("[data-track]").dataset.track].start[button.dataset.segment]);
      else if (plot) seek(timeAt(event, plot));
    });
    for (const kind of ["pointerover", "focusin"]) {
      timelines.addEventListener(kind, (event) => {
        const button = event.target.closest(".segment");
        if (button) showTip(button); else hideTip();
      });
    }
    for (const kind of ["pointerleave", "focusout"]) timelines.addEventListener(kind, hideTip);
    find("scroll").addEventListener("scroll", () => {
      if (document.activeElement?.matches(".segment:focus-visible")) showTip(document.activeElement); else hideTip();
    });
    window.addEventListener("resize", fit);
  }

  setThreshold(page.threshold);
  listVideos();
  listen();
  choose(0);
})();
