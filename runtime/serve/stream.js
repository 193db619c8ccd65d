/* A stream of the server: sends the frames that a <video> shows, and hands out each answer with the frame that it
   belongs to. The messages are described in docs/guides/serving.md. */

const QUALITY = 0.9; // of the JPEG pictures
const CLOSED = {
  1001: 'The server is shutting down.',
  1006: 'The connection to the server was lost.',
  1009: 'A picture was too large for the server.',
  1012: 'The server is restarting.',
};

/* An error with the label of the button that tries again. */
export const failure = (message, retry = 'Try again') => Object.assign(new Error(message), { retry });

export class Stream {
  numShown = 0;
  numDropped = 0;
  numSent = 0;
  isPaused = false;
  isWaiting = false; // the clip waits for something to follow
  isOver = false;
  prompts = {}; // of the next frame, by object
  last = null; // the frame in view
  #steps = 0;
  #window = 1; // frames that the server computes together
  #ahead = 1; // frames that may wait for their answer, or to be shown
  #kept = new Map(); // those frames, by tag
  #queue = []; // answers to show
  #fresh = null; // time of a frame that the video shows and that was not sent
  #time = -1; // of the frame that the video showed last
  #interval = Infinity; // between frames of a clip
  #phase = 'plays'; // of a clip; then 'ends', 'ended', 'told'
  #isDone = false; // the server has answered everything
  #timer = 0;
  #opening = null; // how to settle `open`
  #sending = Promise.resolve();
  #receiving = Promise.resolve();

  /* `handlers`: shown(frame, answer), message(message) for texts of the server, over(error | null) at the end. */
  constructor(video, size, isClip, handlers) {
    Object.assign(this, { video, size, isClip, handlers });
  }

  /* Connect and send `start`; return `started`, null if closed meanwhile. Throws a `failure`. */
  async open(start) {
    this.socket = new WebSocket(new URL('v1/stream', location.href.replace(/^http/, 'ws')));
    this.socket.binaryType = 'arraybuffer';
    const keep = this.isClip ? 'all' : 'latest';
    this.socket.onopen = () => this.send({ type: 'start', keep, masks: 'png', ...start });
    // one after the other, because masks take time to decode
    this.socket.onmessage = ({ data }) => { this.#receiving = this.#receiving.then(() => this.#receive(data)); };
    this.socket.onclose = (event) => this.#closed(event);
    const started = await new Promise((resolve, reject) => { this.#opening = { resolve, reject }; });
    this.#opening = null;
    this.#window = (start.prompts[0]?.text && started?.window) || 1;
    this.#ahead = Math.max(3, 2 * this.#window); // a clip is computed while the one before is shown
    return started;
  }

  begin() {
    if (this.isClip) this.#fresh = this.#time = this.video.currentTime;
    this.video.playbackRate = 1;
    this.video.onended = () => this.pump();
    this.#watch();
    this.pump();
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(message instanceof Uint8Array ? message : JSON.stringify(message));
  }

  /* Stop at once. Resolves when the server knows. */
  async close() {
    this.#end();
    if (!this.socket || this.socket.readyState === WebSocket.CLOSED) return;
    const closed = new Promise((resolve) => { this.socket.onclose = resolve; });
    this.socket.close();
    await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 2000))]);
  }

  pause(isPaused, steps = 0) {
    Object.assign(this, { isPaused });
    this.#steps = steps;
    this.#pace();
    this.pump();
  }

  /* Whether no frame is sent. A step lets one through. */
  get isHeld() { return (this.isPaused && !this.#steps) || (this.isWaiting && this.numSent > 0); }

  #end() {
    this.isOver = true;
    clearTimeout(this.#timer);
    this.video.pause();
    for (const { bitmap } of this.#kept.values()) bitmap?.close();
    this.#kept.clear();
    this.#opening?.resolve(null);
  }

  #fail(error) {
    if (this.isOver) return;
    if (this.#opening) this.#opening.reject(error);
    else this.handlers.over(error);
    this.#end();
  }

  #closed({ code, reason }) {
    const text = reason || CLOSED[code] || `The server closed the connection (${code}).`;
    this.#receiving.then(() => { if (!this.#isDone) this.#fail(failure(text, 'Reconnect')); });
  }

  // ---- frames -------------------------------------------------------------------------------------------------------

  #watch() {
    const check = (now, { mediaTime }) => {
      if (this.isOver) return;
      const gap = mediaTime - this.#time;
      if (gap > 1e-3) {
        if (this.isClip) this.#adapt(gap);
        this.#fresh = this.#time = mediaTime;
      }
      this.pump();
      this.#watch();
    };
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(check);
    else requestAnimationFrame((now) => check(now, { mediaTime: this.video.currentTime }));
  }

  /* Play a clip more slowly where frames are lost, because the browser is behind, or was told late to pause. */
  #adapt(gap) {
    this.#interval = Math.min(this.#interval, gap);
    const isLost = this.#fresh !== null || gap > 1.5 * this.#interval;
    this.video.playbackRate = Math.min(2, Math.max(0.1, this.video.playbackRate * (isLost ? 0.6 : 1.02)));
  }

  /* Send the frame that the video shows if there is room. A clip waits for room; frames of a camera are left out
     before anybody encodes them. */
  pump() {
    if (this.isOver || this.#phase === 'told') return;
    if (this.#fresh !== null && this.#kept.size < this.#ahead && !this.isHeld) this.#capture();
    const { video } = this, room = this.#ahead - this.#kept.size;
    if (this.isClip && (!room || this.#fresh !== null || this.isHeld)) video.pause();
    else if (this.#phase === 'ended') {
      this.#phase = 'told';
      this.#sending.then(() => this.send({ type: 'end' }));
    } else if (video.ended && this.#phase === 'plays') {
      this.#phase = 'ends';
      setTimeout(() => this.#takeLast(), 200); // the last frame may come after the event
    } else if (video.paused && !video.ended && room >= this.#window) video.play().catch(() => {}); // `pause` may follow
  }

  #takeLast() {
    const { currentTime } = this.video, isLost = currentTime - this.#time > 1.5 * this.#interval;
    this.#phase = 'ended';
    if (isLost) this.#fresh = this.#time = currentTime;
    this.pump();
  }

  #capture() {
    const frame = { tag: this.numSent++, time: this.#fresh, at: performance.now() };
    const { prompts, video, size: [width, height] } = this;
    this.#fresh = null;
    this.prompts = {};
    if (this.#window === 1) this.#steps = 0;
    this.#kept.set(frame.tag, frame);
    const smaller = { resizeWidth: width, resizeHeight: height, resizeQuality: 'high' };
    const bitmap = createImageBitmap(video, width < video.videoWidth ? smaller : {});
    this.#sending = this.#sending.then(async () => {
      frame.bitmap = await bitmap;
      if (!this.isOver) this.send(await this.#message(frame, prompts));
    }).catch((error) => this.#fail(failure(`The browser could not read a frame: ${error.message}`)));
  }

  async #message({ tag, time, bitmap }, prompts) {
    const paper = new OffscreenCanvas(...this.size);
    paper.getContext('2d').drawImage(bitmap, 0, 0);
    const jpeg = await paper.convertToBlob({ type: 'image/jpeg', quality: QUALITY });
    const head = new TextEncoder().encode(JSON.stringify({ type: 'frame', tag, time, prompts }));
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, head.length);
    return new Uint8Array(await new Blob([length, head, jpeg]).arrayBuffer());
  }

  // ---- answers ------------------------------------------------------------------------------------------------------

  async #receive(data) {
    if (this.isOver) return;
    if (typeof data !== 'string') return this.#receiveResult(data);
    const message = JSON.parse(data);
    if (message.type === 'started') this.#opening?.resolve(message);
    else if (message.type === 'error' && !this.numSent) this.#fail(failure(message.message));
    else if (message.type === 'ended' && message.message) this.#fail(failure(message.message, 'Start again'));
    else if (message.type === 'ended') { this.#isDone = true; this.#pace(); }
    else this.handlers.message(message);
    if (message.type === 'dropped' || message.type === 'failed') {
      this.#kept.get(message.tag)?.bitmap?.close();
      this.#kept.delete(message.tag);
      this.numDropped++;
      this.pump();
    }
  }

  async #receiveResult(data) {
    const length = new DataView(data).getUint32(0);
    const png = new Blob([new Uint8Array(data, 4 + length)], { type: 'image/png' });
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    const answer = { head, png, masks: png.size ? await createImageBitmap(png) : null };
    if (this.isOver) return;
    const waiting = this.#queue.find((other) => other.head.tag === head.tag);
    if (!head.corrected) this.#queue.push(answer);
    else if (waiting) Object.assign(waiting, answer);
    else if (this.last?.tag === head.tag) this.handlers.shown(this.last, answer);
    this.#pace();
  }

  /* Answers about a clip come in a burst: they are shown one by one, as fast as the video, faster if they pile up. */
  #pace() {
    if (this.#timer || this.isOver || (this.isPaused && this.#window > 1 && !this.#steps)) return;
    const answer = this.#queue.shift();
    if (!answer && this.#isDone) { this.#end(); this.socket.close(); this.handlers.over(null); }
    if (!answer) return;
    if (this.#window > 1) this.#steps = 0;
    const frame = this.#kept.get(answer.head.tag), before = this.last, next = this.#queue[0];
    this.#kept.delete(frame.tag);
    this.numShown++;
    this.last = frame;
    this.handlers.shown(frame, answer);
    before?.bitmap.close();
    const wait = next ? Math.min(0.2, Math.max(0, this.#kept.get(next.head.tag).time - frame.time)) * 1e3 : 0;
    const isLate = this.#queue.length > this.#window;
    this.#timer = setTimeout(() => { this.#timer = 0; this.#pace(); }, isLate ? wait / 2 : wait);
    this.pump();
  }
}
