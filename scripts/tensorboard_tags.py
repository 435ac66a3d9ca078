#!/usr/bin/env python3
"""Lists the tags of a run's TensorBoard event files: number of points, last step, last value.

    python3 scripts/tensorboard_tags.py runs/quickstart [PREFIX]

Reads the files as TensorBoard does, with its own Python package (`pip install tensorboard`); PREFIX keeps the tags that
begin with it, such as `validation/`.
"""

import os
import pathlib
import sys


def main() -> int:
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    run, prefix = pathlib.Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else ""
    folder = run / "events" if (run / "events").is_dir() else run
    if not any(folder.glob("*tfevents*")):
        print(f"error: {folder}: holds no event files", file=sys.stderr)
        return 1
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        print("error: the Python package `tensorboard` is missing: pip install tensorboard", file=sys.stderr)
        return 1
    # 0: keep every point; the default thins them out.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    rows = [(tag, events.Scalars(tag)) for tag in sorted(events.Tags()["scalars"]) if tag.startswith(prefix)]
    width = max((len(tag) for tag, _ in rows), default=3)
    print(f"{'tag':<{width}}  points   last step  last value")
    for tag, points in rows:
        print(f"{tag:<{width}}  {len(points):>6}  {points[-1].step:>10}  {points[-1].value:.6g}")
    return 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has read enough; what is left must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
