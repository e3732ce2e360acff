// Colours of masks: those of the project's reports, told apart on grey, on
// tissue, and by readers who confuse red and green.

export const COLOURS = [
  [86, 180, 233],
  [230, 159, 0],
  [0, 190, 140],
  [240, 228, 66],
  [226, 110, 176],
  [225, 94, 20],
  [150, 140, 255],
  [160, 220, 90],
];

export function colour(place) {
  return COLOURS[place % COLOURS.length];
}

export function css(rgb) {
  return `rgb(${rgb.join(" ")})`;
}
