// The mark of the house: signs of -1, 0 and +1, woven from a name, so that each model and conversation has its own.

import { svg } from './dom.js';

const SIZE = 10;

/** A cloth of `columns` by `rows` signs, always the same for the same name. Decoration only. */
export function weave(name, columns, rows) {
  const root = svg('svg', { class: 'weave', viewBox: `0 0 ${columns * SIZE} ${rows * SIZE}`, 'aria-hidden': 'true' });
  const next = generator(name);
  const paths = { minus: '', zero: '', plus: '' };
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const x = column * SIZE + SIZE / 2;
      const y = row * SIZE + SIZE / 2;
      const trit = next() % 3;
      if (trit === 0) paths.minus += `M${x - 2.6} ${y}h5.2`;
      else if (trit === 1) paths.zero += `M${x} ${y}h0`;
      else paths.plus += `M${x - 2.6} ${y}h5.2M${x} ${y - 2.6}v5.2`;
    }
  }
  for (const [sign, d] of Object.entries(paths)) root.append(svg('path', { class: `t-${sign}`, d }));
  return root;
}

/** FNV-1a over the name, then xorshift: small, and the same everywhere. */
function generator(name) {
  let state = 0x811c9dc5;
  for (const c of name) state = Math.imul(state ^ c.codePointAt(0), 0x01000193) >>> 0;
  state ||= 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state >>> 3;
  };
}
