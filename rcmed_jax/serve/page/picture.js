// A picture with its masks on a canvas, that can be moved and come closer.

import { css } from "./colours.js";
import { border, filled } from "./masks.js";

const CLOSEST = 32;
const STEP = 1.25;
// Device pixels of an image's pixel from which on it is shown as a square.
const SQUARE = 6;

export class PictureView {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(text: string) => void} onPoint told what lies under the pointer
   */
  constructor(canvas, onPoint) {
    this.canvas = canvas;
    this.opacity = 0.45;
    this._onPoint = onPoint;
    this._bitmap = null;
    this._shapes = new Map();
    this._shown = [];
    this._drawn = 0;
    new ResizeObserver(() => this._draw()).observe(canvas);
    this._listen();
  }

  /** @param {Blob} png */
  async show(png) {
    const bitmap = await createImageBitmap(png);
    this._bitmap?.close();
    this._bitmap = bitmap;
    this._shapes.clear();
    this._shown = [];
    this.fit();
  }

  /** In words, for those who do not see it. */
  get size() {
    return `${this._bitmap.width} × ${this._bitmap.height} pixels`;
  }

  /** @param {{id: string, name: string, colour: number[], visible: boolean,
   *   mask: object}[]} targets with masks, the lowest first */
  setTargets(targets) {
    for (const { id, mask, colour } of targets) {
      if (this._shapes.has(id)) continue;
      const path = new Path2D();
      for (const [a, b, c, d] of border(mask)) {
        path.moveTo(a, b);
        path.lineTo(c, d);
      }
      this._shapes.set(id, { fill: filled(mask, colour), path });
    }
    this._shown = targets.filter((target) => target.visible);
    this._draw();
  }

  setOpacity(value) {
    this.opacity = value;
    this._draw();
  }

  fit() {
    this._zoom = 1;
    this._x = this._y = 0;
    this._draw();
  }

  closer(factor = STEP, at = null) {
    const before = this._zoom;
    this._zoom = Math.min(Math.max(before * factor, 1), CLOSEST);
    const ratio = this._zoom / before;
    const [x, y] = at ?? [0, 0];
    this._x = x - (x - this._x) * ratio;
    this._y = y - (y - this._y) * ratio;
    this._move(0, 0);
  }

  farther() {
    this.closer(1 / STEP);
  }

  /** Brings a box [x0, y0, x1, y1] to the middle. */
  goTo([x0, y0, x1, y1]) {
    const { width, height } = this._bitmap;
    const side = Math.max((x1 - x0) / width, (y1 - y0) / height);
    this._zoom = Math.min(Math.max(0.5 / side, 1), 8);
    const scale = this._scale();
    this._x = (width / 2 - (x0 + x1) / 2) * scale;
    this._y = (height / 2 - (y0 + y1) / 2) * scale;
    this._move(0, 0);
  }

  /** The whole picture in its own size with what is shown on it, as PNG. */
  snapshot() {
    const { width, height } = this._bitmap;
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    this._paint(context, Math.max(width, height) / 500);
    return canvas.convertToBlob({ type: "image/png" });
  }

  _ratio() {
    return window.devicePixelRatio || 1;
  }

  /** CSS pixels of a pixel of the image. */
  _scale() {
    const { clientWidth, clientHeight } = this.canvas;
    const { width, height } = this._bitmap;
    return this._zoom * Math.min(clientWidth / width, clientHeight / height);
  }

  _move(x, y) {
    const { clientWidth, clientHeight } = this.canvas;
    const scale = this._scale();
    const most = (side, seen) => Math.max((side * scale - seen) / 2, 0);
    const within = (value, limit) => Math.min(Math.max(value, -limit), limit);
    this._x = within(this._x + x, most(this._bitmap.width, clientWidth));
    this._y = within(this._y + y, most(this._bitmap.height, clientHeight));
    this.canvas.classList.toggle("near", this._zoom > 1);
    this._draw();
  }

  _draw() {
    if (this._drawn || !this._bitmap) return;
    this._drawn = requestAnimationFrame(() => {
      this._drawn = 0;
      const { canvas } = this;
      const ratio = this._ratio();
      const width = Math.round(canvas.clientWidth * ratio);
      const height = Math.round(canvas.clientHeight * ratio);
      if (!width || !height) return;
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
      const context = canvas.getContext("2d");
      const scale = this._scale() * ratio;
      context.resetTransform();
      context.clearRect(0, 0, width, height);
      context.translate(width / 2 + this._x * ratio, height / 2 + this._y * ratio);
      context.scale(scale, scale);
      context.translate(-this._bitmap.width / 2, -this._bitmap.height / 2);
      context.imageSmoothingEnabled = scale < SQUARE;
      context.imageSmoothingQuality = "high";
      this._paint(context, (1.5 * ratio) / scale);
    });
  }

  _paint(context, line) {
    context.drawImage(this._bitmap, 0, 0);
    for (const { id } of this._shown) {
      context.globalAlpha = this.opacity;
      context.drawImage(this._shapes.get(id).fill, 0, 0);
    }
    context.globalAlpha = 1;
    context.lineWidth = line;
    context.lineCap = "square";
    for (const { id, colour } of this._shown) {
      context.strokeStyle = css(colour);
      context.stroke(this._shapes.get(id).path);
    }
  }

  /** Pixel of the image under the pointer, which may lie outside of it. */
  _pixel(event) {
    const [x, y] = this._fromMiddle(event);
    const scale = this._scale();
    return [
      Math.floor((x - this._x) / scale + this._bitmap.width / 2),
      Math.floor((y - this._y) / scale + this._bitmap.height / 2),
    ];
  }

  _fromMiddle(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      event.clientX - box.left - box.width / 2,
      event.clientY - box.top - box.height / 2,
    ];
  }

  _point(event) {
    const { width, height } = this._bitmap;
    const [x, y] = this._pixel(event);
    if (x < 0 || y < 0 || x >= width || y >= height) return this._onPoint("");
    const names = this._shown
      .filter(({ mask }) => mask.inside[y * mask.width + x])
      .map(({ name }) => name);
    this._onPoint([`${x}, ${y}`, ...names].join(" · "));
  }

  _listen() {
    const { canvas } = this;
    const keys = {
      "+": () => this.closer(), "=": () => this.closer(),
      "-": () => this.farther(), 0: () => this.fit(),
      ArrowLeft: () => this._move(40, 0), ArrowRight: () => this._move(-40, 0),
      ArrowUp: () => this._move(0, 40), ArrowDown: () => this._move(0, -40),
    };
    canvas.addEventListener("keydown", (event) => {
      const move = keys[event.key];
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      move();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.closer(STEP ** (-event.deltaY / 100), this._fromMiddle(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (this._zoom > 1) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) {
        this._move(event.movementX, event.movementY);
      }
      this._point(event);
    });
    canvas.addEventListener("pointerleave", () => this._onPoint(""));
  }
}
