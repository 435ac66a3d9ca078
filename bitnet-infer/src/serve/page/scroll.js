// Keeps the newest text in view while somebody reads at the end, and leaves the view alone when they have scrolled up.

// Within this many pixels of the end counts as at the end.
const NEAR = 48;

export class Follower {
  #pinned = true;

  constructor(scroller, jump) {
    this.scroller = scroller;
    this.jump = jump;
    scroller.addEventListener('scroll', () => this.#look(), { passive: true });
    jump.addEventListener('click', () => this.toEnd());
    // A keyboard on a phone or a growing message box takes room away at the end.
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  /** To be called when something has grown. */
  follow() {
    if (this.#pinned) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.#look();
  }

  toEnd() {
    this.#pinned = true;
    this.follow();
    // What comes into view is laid out only then, and may be taller than was guessed.
    requestAnimationFrame(() => this.follow());
    this.jump.hidden = true;
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.#pinned = scrollHeight - scrollTop - clientHeight <= NEAR;
    this.jump.hidden = this.#pinned;
  }
}
