// Masks of pictures: from PNG to pixels, from pixels to what is drawn.

/**
 * The pixels of a mask.
 *
 * @param {Uint8Array} png above 127 where the mask is
 * @returns {Promise<{width: number, height: number, inside: Uint8Array}>}
 */
export async function decode(png) {
  const bitmap = await createImageBitmap(new Blob([png], { type: "image/png" }));
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height).data;
  const inside = new Uint8Array(width * height);
  for (let at = 0; at < inside.length; at++) inside[at] = pixels[4 * at] > 127;
  return { width, height, inside };
}

/** A canvas with the mask in a colour, clear elsewhere. */
export function filled({ width, height, inside }, [red, green, blue]) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  for (let at = 0; at < inside.length; at++) {
    if (inside[at]) image.data.set([red, green, blue, 255], 4 * at);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/**
 * The mask's border along the edges of its pixels, as lines [x, y, x, y]: at
 * any zoom it says exactly which pixels are inside.
 */
export function border({ width, height, inside }) {
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height
    && inside[y * width + x] === 1;
  const lines = [];
  const scan = (rows, columns, differs, line) => {
    for (let row = 0; row <= rows; row++) {
      let from = -1;
      for (let column = 0; column <= columns; column++) {
        const edge = column < columns && differs(row, column);
        if (edge && from < 0) from = column;
        if (!edge && from >= 0) {
          lines.push(line(row, from, column));
          from = -1;
        }
      }
    }
  };
  scan(height, width, (y, x) => at(x, y) !== at(x, y - 1), (y, a, b) => [a, y, b, y]);
  scan(width, height, (x, y) => at(x, y) !== at(x - 1, y), (x, a, b) => [x, a, x, b]);
  return lines;
}
