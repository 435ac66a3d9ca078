// Builds elements. Text is always a text node, so nothing that a model writes can become markup.

const SVG = 'http://www.w3.org/2000/svg';

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`onclick` and the like are listeners; null and false are left out) and children. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A drawing from the sprite in index.html; it never carries meaning alone. */
export function icon(name) {
  return svg('svg', { class: 'icon', 'aria-hidden': 'true' }, svg('use', { href: `#i-${name}` }));
}

/** A button that shows only an icon: its name is for screen readers and, as a title, for the pointer. */
export function iconButton(name, label, onclick, attributes = {}) {
  return el(
    'button',
    { type: 'button', class: 'quiet', 'aria-label': label, title: label, onclick, ...attributes },
    icon(name),
  );
}

/** Copies text; returns whether it worked. The clipboard is for secure origins only, so there is a second way. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el('textarea', { class: 'visually-hidden', 'aria-hidden': 'true', tabindex: '-1' });
    area.value = text;
    const host = document.querySelector('dialog[open]') ?? document.body;
    const focused = document.activeElement;
    host.append(area);
    area.select();
    let copied = false;
    try {
      copied = document.execCommand('copy');
    } catch {
      copied = false;
    }
    area.remove();
    focused?.focus?.();
    return copied;
  }
}

/** Shows on a copy button for a moment whether the copy worked. */
export async function copyFrom(button, text) {
  const worked = await copyText(text);
  const use = button.querySelector('use');
  use?.setAttribute('href', worked ? '#i-check' : '#i-close');
  button.classList.add('done');
  setTimeout(() => {
    use?.setAttribute('href', '#i-copy');
    button.classList.remove('done');
  }, 1500);
  return worked;
}
