// What is on the screen: a picture or a volume, and what changes how it is seen.

import { PictureView } from "./picture.js";
import { element } from "./targets.js";

const by = (id) => document.getElementById(id);

/** The stage. One of its two views is in use. */
export class Scene {
  constructor() {
    this._picture = new PictureView(by("picture"), (text) => this._point(text));
    this._volume = null;
    this.view = null;
    this._listen();
  }

  /** Shows nothing: what was seen is of another image, maybe another patient. */
  clear() {
    by("picture").hidden = by("volume").hidden = true;
    this._point("");
  }

  /** @param {Blob} png */
  async showPicture(png) {
    this._use("picture");
    await this._picture.show(png);
    this.view = this._picture;
    this.tell([]);
  }

  /** @param {ArrayBuffer} nifti */
  async showVolume(nifti, name) {
    // The viewer of volumes is large: who brings none, never loads it.
    const { AXES, LAYOUTS, VolumeView } = await import("./volume.js");
    this._use("volume"); // which NiiVue measures
    this._volume ??= await VolumeView.on(by("volume"), () => this._seen());
    this._names = AXES;
    await this._volume.show(nifti, name);
    this.view = this._volume;
    this._layouts(LAYOUTS);
    this._layout("all");
    this.tell([]);
  }

  /** Draws the masks of targets, each with its own, the lowest first. */
  async setTargets(targets) {
    this.view.setOpacity(by("opacity").value / 100);
    await this.view.setTargets(targets);
    this.tell(targets);
  }

  goTo(target) {
    this.view.goTo(target.box ?? target.box_voxels);
    if (this.view === this._volume) this._seen();
  }

  snapshot() {
    return this.view.snapshot();
  }

  /** Says what is shown to those who do not see it. */
  tell(targets) {
    const names = targets.filter((one) => one.visible).map((one) => one.name);
    const masks = names.length ? `Masks shown: ${names.join(", ")}.` : "No mask is shown.";
    const keys = this.view === this._picture
      ? "Plus and minus zoom, arrows move, 0 fits."
      : "The sliders below move through the slices.";
    const text = `Image, ${this.view.size}. ${masks} ${keys}`;
    this.view.canvas.setAttribute("aria-label", text);
  }

  /** A veil with words over the image; null lifts it. */
  wait(text) {
    by("veil").hidden = text === null;
    by("veil-text").textContent = text ?? "";
  }

  _use(name) {
    by("picture").hidden = name !== "picture";
    by("volume").hidden = name !== "volume";
    document.body.dataset.image = name;
    by("sliders").hidden = name !== "volume";
    this._point("");
  }

  _point(text) {
    by("readout").textContent = text;
  }

  _listen() {
    by("opacity").addEventListener("input", () => {
      const { value } = by("opacity");
      by("opacity-now").textContent = `${value} %`;
      this.view?.setOpacity(value / 100);
    });
    by("closer").addEventListener("click", () => this._picture.closer());
    by("farther").addEventListener("click", () => this._picture.farther());
    by("whole").addEventListener("click", () => this._picture.fit());
  }

  _layouts(all) {
    this._all = all;
    by("layouts").replaceChildren(...all.map(({ id, name }) => element("label", {},
      element("input", {
        type: "radio", name: "layout", value: id, onchange: () => this._layout(id),
      }), element("span", {}, name))));
  }

  _layout(id) {
    by("layouts").querySelector(`[value="${id}"]`).checked = true;
    const { axes } = this._volume.setLayout(id);
    by("sliders").hidden = !axes.length;
    by("sliders").replaceChildren(...axes.map((axis) => this._slider(axis)));
    this._seen();
  }

  _slider(axis) {
    const name = this._names[axis];
    const { count } = this._volume.slice(axis);
    const id = `slice-${name.toLowerCase()}`;
    return element("label", { class: "range" }, name,
      element("input", {
        type: "range", id, min: "1", max: String(count), "data-axis": String(axis),
        oninput: (event) => {
          this._volume.setSlice(axis, event.target.value - 1);
          this._seen();
        },
      }), element("output", { for: id }));
  }

  /** The sliders follow what is seen. */
  _seen() {
    for (const input of by("sliders").querySelectorAll("input")) {
      const { at, count } = this._volume.slice(Number(input.dataset.axis));
      input.value = at + 1;
      input.setAttribute("aria-valuetext", `${at + 1} of ${count}`);
      input.nextElementSibling.textContent = `${at + 1} / ${count}`;
    }
  }
}
