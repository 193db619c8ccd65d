/* The page: sources, what to follow, objects, marks in the picture. `stream.js` speaks with the server. */

import { Stream, failure } from './stream.js';

const $ = (id) => document.getElementById(id);
const set = (id, values) => Object.assign($(id), values);
const make = (tag, values) => Object.assign(document.createElement(tag), values);
const chosen = (name) => document.querySelector(`[name=${name}]:checked`)?.value;
const [video, picture, mask, marks] = ['video', 'picture', 'mask', 'marks'].map($);

const MAX_SIDE = 1024; // larger pictures take the server longer to decode than they help the network
const DRAG = 6; // a pointer that moves by more CSS pixels draws a box
const WAYS = {
  text: { capability: 'text_video', label: 'Add a sentence', example: 'the dog that runs to the left',
    hint: 'One sentence for each object.' },
  concept: { capability: 'concept_video', label: 'Add a concept', example: 'yellow bus',
    hint: 'Short noun phrases. Every object of the kind is followed.' },
  points: { capability: 'prompt_video',
    hint: 'Click an object in the picture, or drag a box around it. Shift-click, or Exclude, takes a part away.' },
};
const CAMERA = {
  NotAllowedError: 'The camera is blocked. Allow it beside the address of this page, or choose a file.',
  NotFoundError: 'There is no camera. Choose a file or the demonstration.',
  NotReadableError: 'Another program uses the camera. Close it, or choose a file.',
};

let model = {}, colours = [], stream = null, opened = null; // `opened`: the source that the video shows
let isFinished = false, isExcluding = false, isEdited = false;
let turn = 0; // number of the latest start or stop: what began before it gives up after its next wait
let words = []; // sentences or concepts, { text, number }; `number` is that of the prompt in the stream
let objects = new Map(), nextId = 1, selected = null; // what is followed, by id; the one that clicks refine
let shown = null; // answer in view
let dots = [], drag = null, cross = null, corner = null; // clicks on the frame in view; box; cross of the keyboard

// ---- Messages to the user -------------------------------------------------------------------------------------------

function say(text) { if ($('status').textContent !== text) set('status', { textContent: text }); } // read aloud once

function complain({ message, retry }) {
  set('banner-text', { textContent: message });
  set('retry', { hidden: !retry, textContent: retry ?? '' });
  set('banner', { hidden: false });
}

async function attempt(work) {
  const mine = turn;
  try { await work(); } catch (error) {
    if (mine !== turn) return;
    complain(error);
    await stop();
    say('Stopped.');
  }
}

// ---- Server ---------------------------------------------------------------------------------------------------------

async function get(path) {
  const token = sessionStorage.getItem('token');
  const answer = await fetch(path, token ? { headers: { Authorization: `Bearer ${token}` } } : {})
    .catch(() => { throw failure('The server does not answer. Check that it runs.'); });
  if (answer.status === 401) return askToken().then(() => get(path));
  if (!answer.ok) throw failure((await answer.json().catch(() => ({}))).error ?? `The server answers ${answer.status}.`);
  return answer;
}

function askToken() {
  if (sessionStorage.getItem('token')) set('access-text', { textContent: 'That token was not accepted. Try again.' });
  sessionStorage.removeItem('token');
  $('access').showModal();
  return new Promise((resolve) => {
    $('access').onclose = () => {
      if ($('token').value) sessionStorage.setItem('token', $('token').value.trim());
      set('token', { value: '' });
      resolve();
    };
  });
}

async function start({ isResumed = false, prompts = {} } = {}) {
  const by = chosen('by'), source = chosen('source'), isClip = source !== 'camera';
  addWords($('words').value);
  if (by !== 'points' && !words.length) { say('Type what to follow first.'); return $('words').focus(); }
  await stop();
  const mine = turn;
  reset();
  set('banner', { hidden: true });
  await attempt(async () => {
    say('Starting…');
    await get('v1/model'); // asks for a token that has become invalid
    if (opened !== source) await openSource();
    if (isClip && !isResumed && video.currentTime) await seek(0);
    if (mine !== turn) return;
    const over = (error) => (error ? attempt(() => { throw error; }) : finish());
    const current = new Stream(video, [picture.width, picture.height], isClip, { shown: show, message: receive, over });
    Object.assign(current, { by, prompts, isWaiting: by === 'points' && isClip && !Object.keys(prompts).length });
    stream = current;
    keepObjects(prompts);
    words.forEach((word, i) => { word.number = i + 1; });
    const started = await current.open({
      prompts: by === 'points' ? [] : words.map(({ text }) => ({ [by]: text })),
      token: sessionStorage.getItem('token') ?? undefined,
      // else answers come 14 frames late, and clicks concern a frame that is not seen yet
      options: by === 'concept' ? { temporal_disambiguation: false } : {},
    });
    if (mine !== turn) return;
    colours = started.colours;
    say('Looking…');
    update();
    if (document.activeElement === document.body) $('pause').focus(); // the button that was pressed is hidden
    current.begin();
  });
}

async function stop(keepsSource = false) {
  const old = stream;
  turn++;
  stream = null;
  if (old && !old.isClip && !keepsSource) closeSource();
  update();
  await old?.close();
}

const restart = () => stop(true).then(() => start({ isResumed: true }));

function finish() {
  const { numShown, numDropped, isClip } = stream;
  stream = null;
  isFinished = true;
  if (!isClip) closeSource();
  update();
  say(`Finished: ${numShown} frames${numDropped ? `, ${numDropped} dropped` : ''}.`);
}

function receive({ type, message, concepts }) {
  if (type === 'error' || type === 'failed') complain({ message });
  const isNew = ({ number }) => !number, numbers = new Set(words.map(({ number }) => number));
  if (type === 'error' && stream.by === 'concept') words = words.filter((word) => !isNew(word)); // it was refused
  const added = Object.keys(concepts ?? {}).map(Number).filter((number) => !numbers.has(number));
  if (concepts) words.filter(isNew).forEach((word, i) => { word.number = added[i]; });
  update();
}

// ---- Answers --------------------------------------------------------------------------------------------------------

function show(frame, answer) {
  const pen = mask.getContext('2d'), { head } = answer;
  picture.getContext('2d').drawImage(frame.bitmap, 0, 0);
  pen.clearRect(0, 0, mask.width, mask.height);
  if (answer.masks) pen.drawImage(answer.masks, 0, 0, mask.width, mask.height);
  answer.masks?.close();
  shown = answer;
  if (!head.corrected) { dots = []; showStatistics(frame); }
  noteObjects(head.objects);
  document.dispatchEvent(new CustomEvent('shown', { detail: head })); // for tests
}

function showStatistics(frame) {
  const now = performance.now(), late = now - frame.at;
  stream.times = [...(stream.times ?? []).filter((time) => now - time < 3000), now];
  const rate = 1e3 * (stream.times.length - 1) / (now - stream.times[0]);
  set('rate', { textContent: rate ? rate.toFixed(1) : '–' });
  set('latency', { textContent: late < 1000 ? `${Math.round(late)} ms` : `${(late / 1e3).toFixed(1)} s` });
  set('count', { textContent: stream.numShown + (stream.numDropped ? ` (−${stream.numDropped})` : '') });
}

function noteObjects(found) {
  const before = objects;
  if (stream.by !== 'points') objects = new Map(); // objects of a concept come and go
  for (const { id, prompt, score, box } of found) {
    if (stream.by === 'points' && !before.has(id)) continue; // removed while the frame was on its way
    objects.set(id, Object.assign(before.get(id) ?? { id, prompt }, { score, box, isSeen: box[2] > box[0] }));
  }
  if (!objects.has(selected)) selected = null;
  const seen = [...objects.values()].filter(({ isSeen }) => isSeen).length, count = objects.size;
  const following = `Following ${count} object${count === 1 ? '' : 's'}${seen < count ? `, ${seen} in view` : ''}.`;
  if (stream.by === 'points' && !count) say('Click what to follow.');
  else if (!stream.isPaused) say(following);
  update();
}

// ---- Objects --------------------------------------------------------------------------------------------------------

const colourOf = (id) => colours[id % colours.length] ?? 'gray';
const nameOf = ({ name, prompt }) => name ?? words.find(({ number }) => number === prompt)?.text;

function addWords(text) {
  const added = text.split('\n').map((line) => line.trim()).filter(Boolean);
  set('words', { value: '' });
  for (const word of added) {
    words.push({ text: word });
    isEdited = true;
    if (stream?.by === 'concept') stream.send({ type: 'add_concept', concept: word });
  }
  if (added.length && stream?.by === 'text') restart();
  update();
}

function removeWord(word) {
  words = words.filter((other) => other !== word);
  isEdited = true;
  if (!words.length) stop();
  else if (stream?.by === 'concept') stream.send({ type: 'remove_concept', number: word.number });
  else if (stream) restart();
  update();
  $('words').focus();
}

function removeObject(id) {
  objects.delete(id);
  if (selected === id) selected = null;
  delete stream?.prompts[id];
  stream?.send({ type: 'remove', object: id });
  erase(colourOf(id));
  update();
  marks.focus();
}

/* Remove a mask from the frame in view: a pause may be long. */
function erase(colour) {
  const pen = mask.getContext('2d'), image = pen.getImageData(0, 0, mask.width, mask.height), { data } = image;
  const rgb = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  for (let i = 0; i < data.length; i += 4) if (rgb.every((value, k) => Math.abs(data[i + k] - value) < 3)) data[i + 3] = 0;
  pen.putImageData(image, 0, 0);
}

function select(id) {
  selected = id;
  update();
}

/* Rows of the list: sentences; objects that were clicked; concepts, each with its objects below. */
function entries() {
  const all = [...objects.values()], by = chosen('by');
  const note = ({ score, isSeen }) => (score === undefined ? '' : isSeen ? `${Math.round(100 * score)} %` : 'not seen');
  const entry = (object) => ({ object, name: nameOf(object), colour: colourOf(object.id), note: note(object),
    remove: () => removeObject(object.id) });
  if (by === 'points') return all.map(entry);
  return words.flatMap((word, i) => {
    const own = all.filter(({ prompt }) => prompt === word.number);
    const head = { name: word.text, colour: '', note: own.length ? `${own.length} found` : '',
      remove: () => removeWord(word) };
    if (by === 'text') return [{ ...head, colour: colourOf(own[0]?.id ?? i + 1), note: note(own[0] ?? {}) }];
    return [head, ...own.map((object) => ({ ...entry(object), name: `${word.text} ${object.id}`, isPart: true }))];
  });
}

let listed = '';
function listObjects() {
  const rows = entries(), shape = JSON.stringify(rows.map(({ object, name, colour }) => [object?.id ?? name, colour]));
  if (shape !== listed) $('objects').replaceChildren(...rows.map(row)); // else a button would lose the focus
  listed = shape;
  rows.forEach(({ object, note }, i) => {
    const item = $('objects').children[i];
    item.querySelector('.quiet').textContent = note;
    item.classList.toggle('selected', Boolean(object) && object.id === selected);
  });
}

function row({ object, name, colour, remove, isPart }) {
  const button = (values) => make('button', { type: 'button', ...values }), pick = () => select(object.id);
  const item = make('li', { className: isPart ? 'part' : '' });
  const swatch = object ? button({ ariaLabel: `Refine ${name} by clicks`, onclick: pick }) : make('span');
  const rename = () => { object.name = label.value; drawMarks(); };
  const label = object && !isPart ? make('input', { value: name, ariaLabel: 'Name', onfocus: pick, oninput: rename })
    : make('span', { textContent: name });
  swatch.className = 'swatch';
  Object.assign(swatch.style, { background: colour, visibility: colour ? 'visible' : 'hidden' });
  label.className = 'name';
  item.append(swatch, label, make('span', { className: 'quiet' }),
    button({ className: 'remove', textContent: '×', ariaLabel: `Remove ${name}`, onclick: remove }));
  return item;
}

// ---- Marks in the picture -------------------------------------------------------------------------------------------

const takesMarks = () => opened && (chosen('by') === 'points' || (stream?.by === 'concept' && selected !== null));

function keepObjects(prompts) {
  for (const id of Object.keys(prompts).map(Number)) {
    objects.set(id, objects.get(id) ?? { id, prompt: id, name: `Object ${id}` });
    nextId = Math.max(nextId, id + 1);
    select(id);
  }
}

function markPoint(place, isNegative) {
  if (isNegative && selected === null) return say('Mark an object first, then exclude parts of it.');
  mark({ points: [[place.x, place.y]], labels: [isNegative ? 0 : 1] });
  dots.push({ ...place, isNegative });
  drawMarks();
}

function mark(prompt) {
  const id = selected ?? nextId, old = stream?.prompts[id];
  if (!stream && shown) return seek(0).then(preview).then(() => say('The first frame: click what to follow.'));
  if (!stream) return start({ prompts: { [id]: prompt } });
  if (stream.by === 'points') keepObjects({ [id]: prompt });
  const isLast = stream.by === 'concept' || (stream.isHeld && stream.last); // the server has had no later frame
  if (isLast) stream.send({ type: 'correct', prompts: { [id]: prompt } });
  else if (old?.points && prompt.points) { old.points.push(...prompt.points); old.labels.push(...prompt.labels); }
  else stream.prompts[id] = prompt;
  stream.isWaiting = false;
  stream.pump();
}

const clamp = (value, size) => Math.min(size - 1, Math.max(0, value));
const within = (x, y) => ({ x: clamp(x, picture.width), y: clamp(y, picture.height) });
const boxOf = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];

function placeOf({ clientX, clientY }) {
  const { left, top, width, height } = marks.getBoundingClientRect();
  return within((clientX - left) * picture.width / width, (clientY - top) * picture.height / height);
}

marks.onpointerdown = (event) => {
  if (!takesMarks() || event.button) return;
  marks.setPointerCapture(event.pointerId);
  cross = corner = null;
  drag = { from: placeOf(event), to: placeOf(event), event };
};
marks.onpointermove = (event) => {
  if (!drag) return;
  drag.to = placeOf(event);
  drag.isBox ||= Math.hypot(event.clientX - drag.event.clientX, event.clientY - drag.event.clientY) > DRAG;
  drawMarks();
};
marks.onpointerup = marks.onpointercancel = (event) => {
  const done = drag;
  drag = null;
  if (done?.isBox && event.type === 'pointerup') mark({ box: boxOf(done.from, done.to) });
  else if (done && event.type === 'pointerup') markPoint(done.from, event.shiftKey || isExcluding);
  drawMarks();
};

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
marks.onkeydown = (event) => {
  if (!takesMarks() || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key], step = picture.width / (event.shiftKey ? 200 : 40);
  const at = cross ?? { x: picture.width / 2, y: picture.height / 2 };
  if (arrow) cross = within(at.x + arrow[0] * step, at.y + arrow[1] * step);
  else if (event.key === 'Enter' && corner) { mark({ box: boxOf(corner, at) }); corner = null; }
  else if (event.key === 'Enter') markPoint(at, event.shiftKey || isExcluding);
  else if (event.key === 'b') cross = corner = at;
  else if (event.key === 'Escape') cross = corner = null;
  else return;
  event.preventDefault();
  drawMarks();
};

/* Labels, dots, box and cross are elements, sharp at any size of the video. */
function drawMarks() {
  marks.replaceChildren();
  const add = (className, [x0, y0, x1 = x0, y1 = y0], textContent = '') => {
    const node = make('span', { className, textContent });
    const share = { '--x': x0 / picture.width, '--y': y0 / picture.height,
      '--width': (x1 - x0) / picture.width, '--height': (y1 - y0) / picture.height };
    for (const [name, value] of Object.entries(share)) node.style.setProperty(name, `${100 * value}%`);
    marks.append(node);
    return node;
  };
  for (const { id, box } of shown?.head.objects ?? []) {
    if (!objects.get(id)?.isSeen) continue;
    add('label', box, nameOf(objects.get(id))).style.setProperty('--colour', colourOf(id));
  }
  for (const { x, y, isNegative } of dots) add(isNegative ? 'dot negative' : 'dot', [x, y]);
  if (drag?.isBox) add('box', boxOf(drag.from, drag.to));
  if (corner) add('box', boxOf(corner, cross));
  if (cross) add('cross', [cross.x, cross.y]);
}

// ---- Sources --------------------------------------------------------------------------------------------------------

async function camera() {
  if (!navigator.mediaDevices) throw failure('A camera needs https, or the address localhost. Choose a file.', null);
  const wanted = { video: { width: { ideal: 1280 }, height: { ideal: 720 }, facingMode: 'environment' } };
  return navigator.mediaDevices.getUserMedia(wanted)
    .catch((error) => { throw failure(CAMERA[error.name] ?? error.message); });
}

async function openSource() {
  const source = chosen('source'), file = source === 'file' && $('file').files[0], name = file?.name ?? 'the video';
  const mine = turn;
  closeSource();
  if (source === 'file' && !file) throw failure('Choose a video file first.', null);
  const media = source === 'camera' ? await camera() : file || await (await get('v1/demo')).blob();
  if (mine !== turn) return source === 'camera' && stopTracks(media);
  if (source === 'camera') video.srcObject = media;
  else video.src = URL.createObjectURL(media);
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(failure(`This browser cannot play ${name}. Try MP4 (H.264) or WebM.`, null));
    if (source === 'camera') video.play().catch(reject);
  });
  if (!video.videoWidth) throw failure(`There is no picture in ${name}. Choose a file with a video track.`, null);
  opened = source;
  preview();
}

const stopTracks = (media) => media.getTracks().forEach((track) => track.stop());

function closeSource() {
  opened = video.onerror = video.onended = null;
  if (video.srcObject) stopTracks(video.srcObject);
  if (video.src) URL.revokeObjectURL(video.src);
  video.srcObject = null;
  video.removeAttribute('src');
}

function preview() {
  const scale = Math.min(1, MAX_SIDE / Math.max(video.videoWidth, video.videoHeight));
  const [width, height] = [video.videoWidth, video.videoHeight].map((side) => Math.max(1, Math.round(side * scale)));
  for (const canvas of [picture, mask]) Object.assign(canvas, { width, height });
  $('stage').style.setProperty('--ratio', width / height);
  picture.getContext('2d').drawImage(video, 0, 0, width, height);
  reset();
}

const seek = (time) => new Promise((resolve) => { video.onseeked = resolve; video.currentTime = time; });
video.onresize = () => { // a phone was turned
  const isOther = Math.abs(video.videoWidth / video.videoHeight - picture.width / picture.height) > 0.02;
  if (stream?.last && isOther) { preview(); restart(); }
};

// ---- Controls -------------------------------------------------------------------------------------------------------

/* Forget what a stream has found. */
function reset() {
  objects = new Map();
  nextId = 1;
  selected = shown = cross = corner = null;
  dots = [];
  isFinished = false;
  mask.getContext('2d').clearRect(0, 0, mask.width, mask.height);
  for (const id of ['rate', 'latency', 'count']) set(id, { textContent: '–' });
  update();
}

/* Bring every control in line with the state. */
function update() {
  const by = chosen('by'), source = chosen('source'), way = WAYS[by] ?? {}, isPaused = Boolean(stream?.isPaused);
  set('hint', { textContent: way.hint ?? '' });
  set('words', { placeholder: way.example ?? '', ariaLabel: way.label ?? '' });
  set('words-field', { hidden: by === 'points' });
  set('file-field', { hidden: source !== 'file' });
  set('start', { textContent: stream ? 'Stop' : isFinished ? 'Start again' : 'Start' });
  set('hero', { hidden: Boolean(stream || shown), className: takesMarks() ? 'aims' : '' });
  set('hero-label', { textContent: source === 'demo' ? 'Play the demonstration' : 'Start' });
  set('hero-text', { textContent: takesMarks() ? 'Click what to follow, or drag a box around it.'
    : 'Say or click what to follow, and see it marked in every frame.' });
  set('exclude', { hidden: by === 'text', ariaPressed: String(isExcluding) });
  set('new-object', { hidden: by !== 'points' || !objects.size, ariaPressed: String(selected === null) });
  set('pause', { disabled: !stream });
  set('pause-label', { textContent: isPaused ? 'Play' : 'Pause' });
  $('pause-icon').setAttribute('href', isPaused ? '#i-play' : '#i-pause');
  set('step', { disabled: !isPaused });
  set('save', { disabled: !shown?.png.size });
  Object.assign(marks, { className: takesMarks() ? 'aims' : '', tabIndex: takesMarks() ? 0 : -1 });
  listObjects();
  drawMarks();
}

function pause(isPaused, steps = 0) {
  stream.pause(isPaused, steps);
  say(isPaused ? 'Paused.' : 'Following.');
  update();
}

function save() {
  const href = URL.createObjectURL(shown.png);
  make('a', { href, download: `masks-${String(shown.head.frame).padStart(5, '0')}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1e4);
}

function clear() {
  words = [];
  isEdited = true;
  return change();
}

async function change() {
  set('banner', { hidden: true });
  await stop();
  const mine = turn;
  closeSource();
  picture.getContext('2d').clearRect(0, 0, picture.width, picture.height);
  reset();
  const source = chosen('source'), by = chosen('by'), isDemo = source === 'demo';
  if (!isEdited) words = isDemo && by === 'text' ? model.demonstration.map((text) => ({ text })) : [];
  if (isDemo || (source === 'file' && $('file').files[0])) await attempt(openSource);
  if (mine !== turn) return;
  update();
  const ready = by === 'points' ? 'Click what to follow.' : 'Ready.';
  say(source === 'camera' ? 'Start asks the browser for the camera.' : opened ? ready : 'Choose a video file.');
}

const CLICKS = {
  pause: () => pause(!stream.isPaused),
  step: () => pause(true, 1),
  save, clear,
  exclude: () => { isExcluding = !isExcluding; update(); },
  'new-object': () => select(null),
  'help-open': () => $('help').showModal(),
  add: () => addWords($('words').value),
  dismiss: () => set('banner', { hidden: true }),
  retry: () => (model.model ? start({ isResumed: !video.ended }) : location.reload()),
  'hero-start': () => start(),
};
for (const [id, onclick] of Object.entries(CLICKS)) set(id, { onclick });
const KEYS = { p: 'pause', s: 'step', m: 'save', n: 'new-object', x: 'exclude', '?': 'help-open' };
document.onkeydown = (event) => {
  const isTyping = event.target.matches('input:not([type=radio])') || document.querySelector('dialog[open]');
  const button = $(KEYS[event.key.toLowerCase()]);
  if (button && !button.hidden && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) button.click();
};
$('controls').onsubmit = (event) => {
  event.preventDefault();
  const isTyped = document.activeElement === $('words') && $('words').value.trim();
  if (isTyped) addWords($('words').value); // Enter in the field
  else if (stream) stop().then(() => say('Stopped.'));
  else start();
};
$('words').onpaste = (event) => {
  const text = event.clipboardData.getData('text').trim();
  if (text.includes('\n')) { event.preventDefault(); addWords(text); }
};
$('file').onchange = change;
for (const radio of document.querySelectorAll('[type=radio]')) radio.onchange = change;

await attempt(async () => {
  model = await (await get('v1/model')).json();
  colours = model.colours ?? [];
  set('model', { textContent: model.model });
  for (const [by, { capability }] of Object.entries(WAYS)) {
    const radio = $(`by-${by}`), isAble = model.capabilities.includes(capability);
    radio.parentElement.hidden = !isAble;
    if (isAble && !chosen('by')) radio.checked = true;
  }
  const hasDemo = model.demonstration.length > 0;
  $('source-demo').parentElement.hidden = !hasDemo;
  $(hasDemo ? 'source-demo' : 'source-camera').checked = true;
  if (!chosen('by')) throw failure(`${model.model} follows nothing in videos; send pictures to /v1/image.`, null);
  await change();
});
