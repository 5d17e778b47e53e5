"use strict";

(() => {
  const find = (id) => document.getElementById(id);
  const page = JSON.parse(find("page-data").textContent);
  for (const each of document.querySelectorAll("figure.table")) each.setAttribute("aria-label", each.querySelector("caption").textContent);

  function setColour(made, name) {
    made.style.setProperty("--on-light", page.colours[name][0]);
    made.style.setProperty("--on-dark", page.colours[name][1]);
  }

  /** The names of results in tables have the markers of the timelines' rows. */
  for (const table of document.querySelectorAll("figure.table table")) {
    const ofResults = ["result", "run"].includes(table.querySelector("th").textContent);
    for (const each of table.querySelectorAll(ofResults ? "tbody th" : "thead th:not(:first-child)")) {
      if (!Object.hasOwn(page.colours, each.textContent)) continue;
      each.classList.add("result");
      setColour(each, each.textContent);
    }
  }

  /** What scrolls can be reached by the keyboard. */
  function focusScrolling() {
    for (const each of document.querySelectorAll("figure.table, .moment")) {
      if (each.scrollWidth > each.clientWidth || each.scrollHeight > each.clientHeight) each.tabIndex = 0;
      else each.removeAttribute("tabindex");
    }
  }
  focusScrolling();
  window.addEventListener("resize", focusScrolling);
  if (page.videos.length === 0) return;

  const LANE_HEIGHT = 25; // pixels from one lane to the next; a segment is 22 of them
  const LANE_MARGIN = 6;
  const MOST_LANES = 8;
  const ZOOMS = [1, 2, 4, 8, 16, 32];
  const player = find("player");
  const ERROR_LEAD = 0.15; // of the width of the view, left of an error that is gone to
  const LOOP_LATE = 0.6; // seconds beyond the end of a loop that a playing video may be when it is noticed
  const LINK_DELAY = 300; // milliseconds until the address follows; browsers limit how often it may change
  const USUAL_RATE = 30; // frames a second, where a video's are not known
  const RIGHT = 0; // indices into page.marks
  const MISSED = page.marks.length - 1;
  const state = {
    video: null, time: 0, end: 1, threshold: page.threshold, /* null: by class */ zoom: 0, only: null, drawn: [], seen: null,
    tiou: page.default_tiou, judged: page.best, selected: null, looping: false,
  };

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
  const least = (track, label) => state.threshold ?? page.min_scores[track.least][label];
  const isShown = (track, i) => !isFiltered(track) || track.score[i] >= least(track, track.label[i]);
  const judgedTrack = () => state.video.tracks.find((track) => track.name === state.judged && track.kinds);
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

  /** The index into page.marks of a segment at the chosen tIoU; null: it is not judged. */
  function markOf(track, i) {
    if (track.kinds) return Number(track.kinds[state.tiou][i]);
    const score = track.matched?.[state.judged]?.[state.tiou][i] ?? null;
    if (score === null) return null;
    return score < least(judgedTrack(), track.label[i]) ? MISSED : null;
  }

  /** What a mark says of a segment, as a part of a sentence. */
  function judgement(track, i) {
    const mark = markOf(track, i);
    if (mark === null) return "";
    if (mark !== MISSED) return `, ${page.marks[mark].name} at tIoU ${page.tiou[state.tiou]}`;
    const score = track.matched[state.judged][state.tiou][i];
    const why = score < 0 ? "no detection matches" : `the match scores only ${score.toFixed(2)}`;
    return `, missed by ${state.judged} at tIoU ${page.tiou[state.tiou]}: ${why}`;
  }

  function describe(track, i) {
    const [start, end] = [track.start[i], track.end[i]];
    const score = isFiltered(track) ? `, score ${track.score[i].toFixed(2)}` : "";
    const note = track.note === null ? "" : `: ${track.note[i]}`;
    return `${start.toFixed(2)} – ${end.toFixed(2)} s (${(end - start).toFixed(2)} s)${score}${judgement(track, i)}${note}`;
  }

  /** A class has its hue; the higher a detection's score, the stronger the colour. */
  function colour(made, track, i) {
    made.style.setProperty("--hue", hue(track.label[i]));
    if (isFiltered(track)) made.style.setProperty("--weight", `${Math.round(25 + 75 * track.score[i])}%`);
  }

  function markSign(mark) {
    const sign = element("span", "sign", page.marks[mark].sign);
    sign.setAttribute("aria-hidden", "true");
    return sign;
  }

  function segmentButton(track, { i, lane }) {
    const made = element("button", "segment", page.classes[track.label[i]]);
    made.type = "button";
    made.tabIndex = -1;
    made.dataset.segment = i;
    made.setAttribute("aria-label", `${page.classes[track.label[i]]}, ${describe(track, i)}`);
    colour(made, track, i);
    const mark = markOf(track, i);
    if (mark !== null) {
      made.dataset.mark = page.marks[mark].kind;
      made.prepend(markSign(mark));
    }
    made.style.left = `${(100 * track.start[i]) / state.end}%`;
    made.style.width = `${(100 * (track.end[i] - track.start[i])) / state.end}%`;
    made.style.top = `${LANE_MARGIN + lane * LANE_HEIGHT}px`;
    return made;
  }

  function countOf(track, placed, crowdedOut) {
    const thing = { defect: "defect", detection: "detection" }[track.kind] ?? "segment";
    return counted(placed.length, thing) + (crowdedOut ? `, no room for ${crowdedOut.toLocaleString("en")}` : "");
  }

  /** Once for all rows: how many detections are shown, and which. */
  function sayShown() {
    const tracks = state.video.tracks.filter(isFiltered);
    find("shown").hidden = tracks.length === 0;
    const total = tracks.reduce((sum, track) => sum + track.total, 0);
    const shown = state.video.tracks.reduce((sum, track, n) => sum + (isFiltered(track) ? state.drawn[n].length : 0), 0);
    const wanted = state.threshold === null ? "reach the score of their class" : `score at least ${state.threshold.toFixed(2)}`;
    const only = state.only === null ? "" : ` of ${page.classes[state.only]}`;
    const left = tracks.some((track) => track.total > track.start.length)
      ? ` The page has the best ${page.most.toLocaleString("en")} of each row.` : "";
    find("shown").textContent = `Shown: ${shown.toLocaleString("en")} of ${counted(total, "detection")}, those${only} that ${wanted}.${left}`;
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
    row.classList.toggle("judged", Boolean(track.kinds) && track.name === state.judged);
    if (isFiltered(track)) setColour(row, track.name);
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
    sayShown();
    countMarks();
    showSelected();
    showMoment();
  }

  /** The judgements of the chosen result's detections that are shown, and its missed segments; also explains the signs. */
  function countMarks() {
    const counts = page.marks.map(() => 0);
    for (const { track, i, mark } of judgedDrawn()) if (track.kinds || mark === MISSED) counts[mark] += 1;
    find("marks").replaceChildren(...page.marks.map(({ kind, name, meaning }, mark) => {
      const made = element("li");
      made.dataset.mark = kind;
      made.title = meaning;
      made.append(markSign(mark), ` ${name} `, element("b", "", counts[mark].toLocaleString("en")));
      return made;
    }));
  }

  /** What is drawn of the chosen result and of the ground truth and judged, in order of start. */
  function judgedDrawn() {
    const found = state.video.tracks.flatMap((track, number) => {
      if (track.kinds ? track.name !== state.judged : !track.matched) return [];
      return state.drawn[number].map(({ i, button }) => ({ track, number, i, button, mark: markOf(track, i) }));
    });
    return found.filter(({ mark }) => mark !== null).sort((a, b) => a.track.start[a.i] - b.track.start[b.i]);
  }

  /** Whether a video has errors of the chosen result at the minimum score, also such as find no room. */
  function hasErrors(video) {
    const judged = video.tracks.find((track) => track.name === state.judged && track.kinds);
    return video.tracks.some((track) => {
      if (track === judged) {
        return track.score.some((score, i) => score >= least(track, track.label[i]) && Number(track.kinds[state.tiou][i]) !== RIGHT);
      }
      const scores = judged && track.matched?.[state.judged]?.[state.tiou];
      return scores?.some((score, i) => score !== null && score < least(judged, track.label[i]));
    });
  }

  const drawnErrors = () => judgedDrawn().filter(({ mark }) => mark !== RIGHT);

  /** Goes to the next error in time, or the previous one (-1); after the last, to that of the next video of the list. */
  function goToError(step) {
    if (page.results.length === 0) return;
    const errors = drawnErrors();
    const [from, to] = state.selected === null ? [1, 0] : selectedSpan();
    const isThere = from <= state.time && state.time <= to;
    const at = errors.findIndex(({ number, i }) => isThere && state.selected.number === number && state.selected.i === i);
    let next = at < 0 ? undefined : errors[at + step] ?? null;
    if (next === undefined) {
      const soon = 1 / USUAL_RATE; // the first frame in a segment is later than its start
      next = step > 0
        ? errors.find(({ track, i }) => track.start[i] >= state.time - soon)
        : errors.findLast(({ track, i }) => track.start[i] < state.time - soon);
    }
    const videos = listed();
    const here = videos.indexOf(state.video);
    // From here through the list, and round to here; from outside of the list, from its first or last video.
    const start = here < 0 && step < 0 ? 0 : here;
    for (let k = 1; !next && k <= videos.length; k += 1) {
      const video = videos[(start + k * step + videos.length * 2) % videos.length];
      if (!hasErrors(video)) continue;
      if (video !== state.video) choose(video);
      next = step > 0 ? drawnErrors()[0] : drawnErrors().at(-1);
    }
    if (!next) {
      sayError(`${state.judged} has no error that is shown in ${counted(videos.length, "video")}.`);
      return;
    }
    goTo(next.number, next.i);
    const all = drawnErrors();
    const count = all.findIndex(({ number, i }) => number === next.number && i === next.i) + 1;
    const what = `${page.classes[next.track.label[next.i]]}, ${describe(next.track, next.i)}`;
    sayError(`Error ${count} of ${all.length} in ${state.video.name}: ${what}.`);
  }

  function sayError(text) {
    find("error-note").textContent = text;
    find("error-note").hidden = text === "";
  }

  /** Selects a segment, goes to its first frame, and shows it. */
  function goTo(number, i) {
    const track = state.video.tracks[number];
    select({ number, i });
    seek(firstInside(track.start[i], track.end[i]));
    const scroll = find("scroll");
    const width = find("ruler").clientWidth;
    const [left, right] = [(width * track.start[i]) / state.end, (width * track.end[i]) / state.end];
    const room = scroll.clientWidth - (find("sheet").clientWidth - width);
    if (left < scroll.scrollLeft || Math.min(right, left + room) > scroll.scrollLeft + room) {
      scroll.scrollLeft = left - ERROR_LEAD * room;
    }
    buttonOf(state.selected)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  const buttonOf = (selected) => state.drawn[selected.number].find(({ i }) => i === selected.i)?.button;

  function select(selected) {
    state.selected = selected;
    setLooping(state.looping && selected !== null);
    find("loop").disabled = selected === null;
    showSelected();
  }

  function showSelected() {
    for (const each of document.querySelectorAll(".segment.selected")) each.classList.remove("selected");
    if (state.selected !== null) buttonOf(state.selected)?.classList.add("selected");
  }

  /** The selected segment's start and end in seconds. */
  function selectedSpan() {
    const track = state.video.tracks[state.selected.number];
    return [track.start[state.selected.i], track.end[state.selected.i]];
  }

  /** A refusal needs no handling: what stops playing has a note of its own. */
  function play() {
    player.play().catch(() => {});
  }

  function setLooping(looping) {
    state.looping = looping;
    find("loop").setAttribute("aria-pressed", String(looping));
  }

  function toggleLoop() {
    if (state.selected === null) return;
    setLooping(!state.looping);
    if (!state.looping) return;
    seek(firstInside(...selectedSpan()));
    if (player.readyState > 0) play();
  }

  /** The time of the first frame in a segment: a player shows the frame that began before its time. */
  function firstInside(start, end) {
    const rate = state.video.fps;
    if (rate === null) return start;
    // Times here are rounded to milliseconds: what begins just before the start begins at it.
    const frame = Math.ceil((start - 0.0006) * rate - 1e-6);
    const time = Math.max(start, frame / rate + 0.001);
    return time < end ? time : start;
  }

  function stepFrame(step) {
    player.pause();
    const rate = state.video.fps ?? USUAL_RATE;
    seek(Math.max(0, Math.floor((state.time + 0.0005) * rate) + step) / rate + 0.001);
  }

  /** Names are written only where at least a few letters fit, and signs where they do. */
  function nameWideSegments() {
    const width = find("ruler").clientWidth;
    state.drawn.forEach((drawn, number) => drawn.forEach(({ i, button }) => {
      const track = state.video.tracks[number];
      const pixels = (width * (track.end[i] - track.start[i])) / state.end;
      button.classList.toggle("narrow", pixels < ("mark" in button.dataset ? 54 : 34));
      button.classList.toggle("tiny", pixels < 22);
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
        keepInView();
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
    find("clock").href = linkTo(state.video.name, state.time);
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
    if (state.looping) {
      const [start, end] = selectedSpan();
      if (state.time < start || state.time >= end) setLooping(false);
    }
    rememberMoment();
    if (player.readyState > 0) player.currentTime = Math.min(state.time, player.duration || state.time);
    showMoment();
  }

  function followPlayer() {
    if (player.readyState === 0) return;
    state.time = player.currentTime;
    if (state.looping && !player.seeking) repeatLoop();
    showMoment();
  }

  /** Starts the looped segment again at its end; somebody who went elsewhere leaves it. */
  function repeatLoop() {
    const [start, end] = selectedSpan();
    const past = state.time - end;
    if (player.ended || (!player.paused && past >= 0 && past < LOOP_LATE)) {
      seek(firstInside(start, end));
      if (player.paused) play();
    } else if (past >= 0 || state.time < start - LOOP_LATE) {
      setLooping(false);
    }
  }

  const linkTo = (name, time) => `#video=${encodeURIComponent(name)}&t=${time.toFixed(3)}`;

  /** The address follows the moment, so that it can be kept or sent. */
  function rememberMoment() {
    if (!state.linking) return;
    clearTimeout(state.remembering);
    state.remembering = setTimeout(() => history.replaceState(null, "", linkTo(state.video.name, state.time)), LINK_DELAY);
  }

  /** Goes to the moment in the address; false if there is none of this page. */
  function openLink() {
    const found = /^#video=([^&]*)&t=(\d+(?:\.\d+)?)$/.exec(location.hash);
    if (!found) return false;
    let name;
    try { name = decodeURIComponent(found[1]); } catch { return false; }
    const video = page.videos.find((each) => each.name === name);
    if (!video) return false;
    if (video !== state.video) choose(video);
    seek(Number(found[2]));
    centreHead();
    return true;
  }

  function followPlaying() {
    followPlayer();
    const scroll = find("scroll");
    const head = find("head").offsetLeft;
    if (head > scroll.scrollLeft + scroll.clientWidth || head < scroll.scrollLeft) centreHead();
    if (!player.paused) requestAnimationFrame(followPlaying);
  }

  /** With a filter, some of what it leaves is in view, if it leaves anything. */
  function keepInView() {
    if (state.only === null) return;
    const scroll = find("scroll");
    const width = find("ruler").clientWidth;
    const labels = find("sheet").clientWidth - width;
    const [from, to] = [scroll.scrollLeft, scroll.scrollLeft + scroll.clientWidth - labels];
    const spans = state.video.tracks.flatMap((track, number) => state.drawn[number].map(
      ({ i }) => [(width * track.start[i]) / state.end, (width * track.end[i]) / state.end]));
    if (spans.length === 0 || spans.some(([left, right]) => left < to && right > from)) return;
    const distance = ([left, right]) => Math.max(left - to, from - right);
    const [left, right] = spans.reduce((best, each) => (distance(each) < distance(best) ? each : best));
    scroll.scrollLeft = Math.min((left + right) / 2, left + (to - from) / 2) - (to - from) / 2;
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
    keepInView();
  }

  function fit() {
    drawRuler();
    nameWideSegments();
  }

  function choose(video) {
    select(null);
    state.video = video;
    state.time = 0;
    state.only = null;
    state.end = Math.max(video.duration, ...video.tracks.map(
      (track) => track.end.reduce((most, each) => Math.max(most, each), 0)));
    for (const [each, button] of buttons) {
      button.setAttribute("aria-pressed", String(each === video));
      if (each === video) button.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    find("video-name").textContent = video.name;
    find("defects").hidden = video.defects.length === 0;
    find("defects").replaceChildren(...video.defects.map((each) => element("li", "", each)));
    find("media-note").hidden = true;
    if (video.absent) showMissing(video.absent);
    else player.src = video.media;
    find("threshold-control").hidden = !video.tracks.some(isFiltered);
    find("by-class").hidden = page.threshold !== null || find("threshold-control").hidden;
    find("ruler").setAttribute("aria-valuemax", state.end.toFixed(2));
    sayError("");
    drawLegend();
    drawTracks();
    setZoom(0);
    focusScrolling();
    rememberMoment();
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
    if (!button || state.byPointer) return; // after a click, the arrows are the page's
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

  function toggleKeys() {
    const keys = find("keys");
    if (keys.open) keys.close(); else keys.showModal();
  }

  /** Keys of the whole page; controls keep those that they use themselves. */
  function pressKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.matches("input[type=search], select, textarea, [contenteditable]")) return;
    // With a keyboard of other letters, the place of the key counts.
    const key = /^[a-z]$/i.test(event.key) ? event.key.toLowerCase() : { KeyN: "n", KeyL: "l" }[event.code] ?? event.key;
    const action = {
      "?": toggleKeys, ",": () => stepFrame(-1), ".": () => stepFrame(1), "/": () => find("search").focus(),
      n: () => goToError(event.shiftKey ? -1 : 1), l: toggleLoop,
      " ": () => { if (player.paused) play(); else player.pause(); },
      ArrowLeft: () => seek(state.time - (event.shiftKey ? 10 : 1)),
      ArrowRight: () => seek(state.time + (event.shiftKey ? 10 : 1)),
    }[key];
    if (!action || (find("keys").open && key !== "?")) return;
    const usesArrows = target.matches("input[type=range], .scroll, figure.table, .moment");
    if (key.startsWith("Arrow") && usesArrows) return;
    const usesSpace = target.matches("button, a, summary") && !target.matches(".segment") && !state.byPointer;
    if (key === " " && (usesSpace || player.readyState === 0)) return;
    event.preventDefault();
    action();
  }

  function timeAt(event, plot) {
    const box = plot.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * state.end;
  }

  const buttons = new Map(); // of the list, by video
  const apOf = (video) => video.ap[state.judged]?.[state.tiou] ?? null;

  /** The length of a video, and how many actions it has; without ground truth, how many detections are shown. */
  function aboutVideo(video) {
    const track = video.tracks.find((each) => !isFiltered(each)) ?? video.tracks[0];
    if (!track) return clockTime(video.duration, 1);
    const shown = track.start.reduce((count, _, i) => count + isShown(track, i), 0);
    const about = isFiltered(track) ? counted(shown, "detection") : counted(track.total, "action");
    return `${clockTime(video.duration, 1)} · ${about}`;
  }

  function listVideos() {
    for (const [number, video] of page.videos.entries()) {
      const made = element("button");
      made.type = "button";
      made.dataset.video = number;
      made.title = video.name;
      made.append(element("span", "name", video.name));
      if (page.results.length) made.append(element("span", "ap"));
      made.append(element("span", "about", aboutVideo(video)));
      if (video.defects.length) made.append(element("span", "wrong", counted(video.defects.length, "defect")));
      made.addEventListener("click", () => choose(video));
      buttons.set(video, made);
    }
    find("choice").closest(".viewer").classList.toggle("single", page.videos.length === 1);
    find("order").hidden = page.results.length === 0;
    find("judging").hidden = page.results.length === 0;
    find("judged").append(...page.results.map((name) => new Option(name, name, false, name === state.judged)));
    find("tiou").append(...page.tiou.map((tiou, k) => new Option(tiou, k, false, k === state.tiou)));
  }

  /** The videos that the search finds, in the chosen order. */
  function listed() {
    const sought = find("search").value.trim().toLocaleLowerCase();
    const holds = (name) => name.toLocaleLowerCase().includes(sought);
    const found = page.videos.filter((video) => sought === "" || holds(video.name)
      || video.tracks.some((track) => !isFiltered(track) && track.label.some((label) => holds(page.classes[label]))));
    if (page.results.length === 0) return found;
    if (find("order").value === "name") {
      return found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    }
    return found.sort((a, b) => (apOf(a) ?? Infinity) - (apOf(b) ?? Infinity) || 0); // without mAP at the end
  }

  function drawList() {
    const videos = listed();
    for (const video of videos) {
      const ap = apOf(video);
      const shown = buttons.get(video).querySelector(".ap");
      if (!shown) continue;
      shown.textContent = ap === null ? "no AP" : `mAP ${ap.toFixed(1)}`;
      buttons.get(video).style.setProperty("--part", `${ap ?? 0}%`);
    }
    find("choice").replaceChildren(...videos.map((video) => buttons.get(video)));
    const all = counted(page.videos.length, "video");
    find("list-count").textContent = videos.length === page.videos.length ? all : `${videos.length} of ${all}`;
    find("list-count").title = page.results.length
      ? `mAP of ${state.judged} over the classes of each video, at tIoU ${page.tiou[state.tiou]}, in percent` : "";
  }

  /** One minimum score for all classes; null: each track's own, by class. */
  function setThreshold(threshold) {
    const [low, middle, high] = page.least;
    state.threshold = threshold;
    find("threshold").value = threshold ?? middle;
    find("threshold-value").textContent = threshold?.toFixed(2) ?? `${low.toFixed(2)} to ${high.toFixed(2)} by class`;
    find("by-class").setAttribute("aria-pressed", String(threshold === null));
    for (const [video, made] of buttons) made.querySelector(".about").textContent = aboutVideo(video);
  }

  function listen() {
    player.addEventListener("play", followPlaying);
    player.addEventListener("pause", rememberMoment);
    player.addEventListener("ended", followPlayer);
    player.addEventListener("timeupdate", followPlayer);
    player.addEventListener("loadedmetadata", () => { if (state.time > 0) player.currentTime = state.time; });
    player.addEventListener("error", () => {
      if (player.hasAttribute("src")) showMissing(`This browser cannot open “${decodeURIComponent(state.video.media)}”.`);
    });
    find("threshold").addEventListener("input", (event) => {
      setThreshold(Number(event.target.value));
      drawTracks();
      keepInView();
    });
    find("by-class").addEventListener("click", () => {
      setThreshold(null);
      drawTracks();
      keepInView();
    });
    find("search").addEventListener("input", drawList);
    find("search").addEventListener("keydown", (event) => {
      const first = listed()[0];
      if (event.key === "Enter" && first) choose(first);
    });
    find("order").addEventListener("change", drawList);
    find("judged").addEventListener("change", (event) => {
      state.judged = event.target.value;
      drawList();
      drawTracks();
    });
    find("tiou").addEventListener("change", (event) => {
      state.tiou = Number(event.target.value);
      drawList();
      drawTracks();
    });
    find("next-error").addEventListener("click", () => goToError(1));
    find("previous-error").addEventListener("click", () => goToError(-1));
    find("loop").addEventListener("click", toggleLoop);
    find("show-keys").addEventListener("click", toggleKeys);
    // A control that a pointer has used gives the keys back to the page.
    document.addEventListener("change", (event) => { if (state.byPointer && event.target.matches("select")) event.target.blur(); });
    document.addEventListener("pointerdown", () => { state.byPointer = true; }, true);
    document.addEventListener("keydown", (event) => { if (event.key === "Tab") state.byPointer = false; }, true);
    document.addEventListener("keydown", pressKey);
    window.addEventListener("hashchange", openLink);
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
      if (button) {
        const chosen = { number: Number(button.closest("[data-track]").dataset.track), i: Number(button.dataset.segment) };
        setLooping(state.looping && state.selected?.number === chosen.number && state.selected.i === chosen.i);
        goTo(chosen.number, chosen.i);
      } else if (plot) {
        seek(timeAt(event, plot));
      }
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
  drawList();
  listen();
  if (!openLink()) choose(listed()[0]);
  state.linking = true;
})();
