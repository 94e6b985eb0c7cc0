/** Building a page without a framework: elements, and lists of them. Text is always text, never markup. */

type Child = Node | string | null | undefined | false;

type Attributes = Readonly<Record<string, string | number | boolean | null | ((event: Event) => void)>>;

/** An element with attributes, listeners (`onclick`) and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const list = (items: readonly string[]): HTMLUListElement =>
  h("ul", {}, ...items.map((item) => h("li", {}, item)));

/** Change the text of an element only where it differs, so that screen readers are not told the same again. */
export function say(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function picture(
  rgba: Uint8ClampedArray<ArrayBuffer>,
  width: number,
  height: number,
  label: string,
): HTMLCanvasElement {
  const canvas = h("canvas", { width, height, role: "img", "aria-label": label });
  canvas.getContext("2d")!.putImageData(new ImageData(rgba, width, height), 0, 0);
  return canvas;
}
