// Sets the chosen theme before the first paint: a classic script in the head, because a module would run too late.
'use strict';
(() => {
  const CHOICES = ['auto', 'light', 'dark'];
  const KEY = 'bitnet.theme';

  const stored = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // Storage may be switched off; the system's theme is right then.
    }
  };

  const apply = (choice) => {
    if (choice === 'auto') document.documentElement.removeAttribute('data-theme');
    else document.documentElement.dataset.theme = choice;
  };

  let current = CHOICES.includes(stored()) ? stored() : 'auto';
  apply(current);

  window.bitnetTheme = {
    get current() {
      return current;
    },
    /** Goes on to the next of auto, light and dark, and returns it. */
    next() {
      current = CHOICES[(CHOICES.indexOf(current) + 1) % CHOICES.length];
      apply(current);
      try {
        localStorage.setItem(KEY, current);
      } catch {
        // The choice then holds until the page is left.
      }
      return current;
    },
  };
})();
