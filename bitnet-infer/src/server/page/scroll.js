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
    // The text grows, messages are laid out only when they come near, a keyboard takes room away: all of it ends here,
    // after the layout and before the paint, so that following costs no layout of its own.
    const observer = new ResizeObserver(() => this.#follow());
    observer.observe(scroller);
    observer.observe(scroller.firstElementChild);
  }

  toEnd() {
    this.#pinned = true;
    this.#follow();
    this.jump.hidden = true;
  }

  #follow() {
    if (this.#pinned) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.#look();
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.#pinned = scrollHeight - scrollTop - clientHeight <= NEAR;
    this.jump.hidden = this.#pinned;
  }
}
