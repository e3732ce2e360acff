// A volume with its masks, as slices and as a rendering, by NiiVue.
//
// The patient's right is on the left of the screen, as radiologists have it.

import { NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";

/** Ways to see a volume; `axes` are those along which it can be moved. */
export const LAYOUTS = [
  { id: "all", name: "All", type: SLICE_TYPE.MULTIPLANAR, axes: [2, 1, 0] },
  { id: "axial", name: "Axial", type: SLICE_TYPE.AXIAL, axes: [2] },
  { id: "coronal", name: "Coronal", type: SLICE_TYPE.CORONAL, axes: [1] },
  { id: "sagittal", name: "Sagittal", type: SLICE_TYPE.SAGITTAL, axes: [0] },
  { id: "render", name: "3D", type: SLICE_TYPE.RENDER, axes: [] },
];
export const AXES = ["Sagittal", "Coronal", "Axial"];

const OPTIONS = {
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.3, 0.71, 0.78, 0.6],
  crosshairGap: 20,
  crosshairWidth: 0.25,
  crosshairWidthUnit: "percent",
  clipPlaneHotKey: "", // what is seen is chosen on the page
  cycleClipPlaneHotKey: "",
  dragAndDropEnabled: false,
  isColorbar: false,
  isNearestInterpolation: false,
  isRadiologicalConvention: true,
  isResizeCanvas: true,
  loadingText: "",
  logLevel: "error",
  multiplanarShowRender: SHOW_RENDER.ALWAYS,
  multiplanarEqualSize: false,
  sagittalNoseLeft: true,
  scrollRequiresFocus: true,
  show3Dcrosshair: false,
  fontMinPx: 12,
  tileMargin: 6,
  textHeight: 0.04,
  viewModeHotKey: "",
};

export class VolumeView {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(text: string) => void} onMove told where the crosshair is
   */
  static async on(canvas, onMove) {
    const view = new VolumeView();
    view.canvas = canvas;
    view.opacity = 0.45;
    view._masks = [];
    view._setting = Promise.resolve();
    view._nv = new Niivue(OPTIONS);
    if (!canvas.getContext("webgl2")) {
      throw new Error("This browser shows no volumes: it has no WebGL 2.");
    }
    await view._nv.attachToCanvas(canvas);
    view._nv.onLocationChange = (at) => onMove(at);
    return view;
  }

  /** @param {ArrayBuffer} nifti */
  async show(nifti, name) {
    const nv = this._nv;
    await this._setting.catch(() => {});
    const image = await NVImage.loadFromUrl({ url: name, name, buffer: nifti });
    for (const volume of [...nv.volumes]) nv.removeVolume(volume);
    this._masks = [];
    nv.addVolume(image);
    nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.setLayout("all");
  }

  get size() {
    return `${this._sides().join(" × ")} voxels`;
  }

  /** @param {{id: string, colour: number[], visible: boolean,
   *   nifti: Uint8Array}[]} targets with masks, the lowest first */
  setTargets(targets) {
    // One after the other: a mask that is being loaded is not loaded twice.
    this._setting = this._setting.catch(() => {}).then(() => this._set(targets));
    return this._setting;
  }

  async _set(targets) {
    const nv = this._nv;
    for (const held of this._masks) {
      if (!targets.some(({ id }) => id === held.id)) nv.removeVolume(held.volume);
    }
    this._masks = this._masks.filter(({ id }) => targets.some((one) => one.id === id));
    for (const target of targets) {
      if (!this._masks.some(({ id }) => id === target.id)) await this._add(target);
    }
    this._visible = new Set(targets.filter((one) => one.visible).map((one) => one.id));
    this._blend();
  }

  setOpacity(value) {
    this.opacity = value;
    this._blend();
  }

  setLayout(id) {
    const layout = LAYOUTS.find((one) => one.id === id);
    this._nv.setSliceType(layout.type);
    return layout;
  }

  /** Slices along an axis, and the one that is seen, from 0 on. */
  slice(axis) {
    const count = this._sides()[axis];
    const at = Math.floor(this._nv.scene.crosshairPos[axis] * count);
    return { count, at: Math.min(Math.max(at, 0), count - 1) };
  }

  setSlice(axis, at) {
    const place = [...this._nv.scene.crosshairPos];
    place[axis] = (at + 0.5) / this._sides()[axis];
    this._nv.scene.crosshairPos = place;
    this._nv.drawScene();
  }

  /** Brings the middle of a box of voxels, [first, last + 1], to the crosshair. */
  goTo([first, last]) {
    const [{ hdr }] = this._nv.volumes;
    const voxel = first.map((value, axis) => (value + last[axis] - 1) / 2);
    const mm = hdr.affine.slice(0, 3).map((row) =>
      row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
    // By the affine itself, which an oblique volume's slices follow.
    this._nv.scene.crosshairPos = this._nv.volumes[0].convertMM2Frac(mm, true);
    this._nv.drawScene();
  }

  snapshot() {
    this._nv.drawScene(); // what was drawn before may be gone already
    return new Promise((done) => this.canvas.toBlob(done, "image/png"));
  }

  /** Voxels to the right, to the front and to the head. */
  _sides() {
    return this._nv.volumes[0].dimsRAS.slice(1, 4);
  }

  async _add({ id, colour: [red, green, blue], nifti }) {
    const nv = this._nv;
    const colormap = `mask-${red}-${green}-${blue}`;
    nv.addColormap(colormap, {
      R: [red, red], G: [green, green], B: [blue, blue], A: [0, 255], I: [0, 255],
    });
    const volume = await NVImage.loadFromUrl({
      url: `${id}.nii.gz`, name: `${id}.nii.gz`, buffer: nifti.slice().buffer,
      colormap, cal_min: 0, cal_max: 1, opacity: 0, colorbarVisible: false,
    });
    nv.addVolume(volume);
    this._masks.push({ id, volume });
  }

  _blend() {
    for (const { id, volume } of this._masks) {
      volume.opacity = this._visible?.has(id) ? this.opacity : 0;
    }
    this._nv.updateGLVolume();
  }
}
