// Each visible text with less contrast than 4.5 (disabled controls are exempt), as text and ratio.
const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
function over(colour, back) {
  const [r, g, b, a = 1] = numbers(colour);
  return [r, g, b].map((value, at) => value * a + back[at] * (1 - a));
}
function background(element) {
  if (!element) return [255, 255, 255];
  return over(getComputedStyle(element).backgroundColor, background(element.parentElement));
}
function opacity(element) {
  return element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
}
function luminance(colour) {
  const [r, g, b] = colour.map((value) => {
    value /= 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const low = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility()) continue;
  if (element.closest(":disabled, script, noscript")) continue;
  const back = background(element), faded = opacity(element);
  const full = over(getComputedStyle(element).color, back);
  const ink = full.map((value, at) => value * faded + back[at] * (1 - faded));
  const [bright, dark] = [luminance(ink), luminance(back)].sort((a, b) => b - a);
  const ratio = (bright + 0.05) / (dark + 0.05);
  if (ratio < 4.5) low.push(`${element.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return low;
