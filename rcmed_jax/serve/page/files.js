// What was dropped or chosen: a picture, a DICOM series, a NIfTI volume.

const NIFTI = /\.nii(\.gz)?$/i;
// Files that systems and discs put beside images.
const BESIDE = /(^|\/)(\.|dicomdir$|thumbs\.db$|desktop\.ini$|autorun\.inf$)/i;

/** Whether a file's first bytes are those of DICOM. */
async function isDicom(file) {
  if (/\.(dcm|dicom|ima)$/i.test(file.name)) return true;
  const head = await file.slice(128, 132).text();
  return head === "DICM";
}

/**
 * What files are together.
 *
 * @param {File[]} files
 * @returns {Promise<{kind: "picture" | "nifti" | "dicom", name: string,
 *   files: {file: File, name: string}[]}>} with names to send them under; those
 *   of a series tell nothing
 * @throws {Error} in words for the reader
 */
export async function sorted(files) {
  const found = files.filter((file) => {
    return file.size && !BESIDE.test(file.webkitRelativePath || file.name);
  });
  if (!found.length) throw new Error("There is no image in what you chose.");
  const dicom = [];
  for (const file of found) if (await isDicom(file)) dicom.push(file);
  if (dicom.length) {
    const name = dicom.length === 1 ? dicom[0].name : `${dicom.length} DICOM files`;
    const sent = dicom.map((file, at) => ({ file, name: `${at}.dcm` }));
    return { kind: "dicom", name, files: sent };
  }
  if (found.length > 1) {
    throw new Error("Give one picture or volume, or the files of one DICOM series.");
  }
  const [file] = found;
  const kind = NIFTI.test(file.name) ? "nifti" : "picture";
  const name = file.name.replace(/[^\w.-]+/g, "_").replace(/^[._]+/, "") || "image";
  return { kind, name: file.name, files: [{ file, name }] };
}

/** All files of a drop, those in folders too. */
export async function dropped(transfer) {
  const entries = [...transfer.items]
    .map((item) => item.webkitGetAsEntry?.())
    .filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return found;
}

async function collect(entry, found) {
  if (entry.isFile) {
    found.push(await new Promise((done, fail) => entry.file(done, fail)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A folder is read a hundred entries at a time.
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return;
    for (const one of some) await collect(one, found);
  }
}

/** A file as a data: URL, which is how pictures go to the server. */
export function dataUrl(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("The file cannot be read."));
    reader.readAsDataURL(file);
  });
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Saves bytes as a file of the reader's. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
