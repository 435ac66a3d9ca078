#!/usr/bin/env python3
"""Draws the training and validation losses of runs as an SVG, with nothing but the standard library.

    python3 scripts/plot_metrics.py runs/dickens runs/dickens-binary --out losses.svg
    python3 scripts/plot_metrics.py runs/dickens --value tok_per_s --out speed.svg

A run is a folder with a metrics.jsonl, or that file. Thin lines are training (smoothed by --smooth), dots joined by bold
lines are validation; each run has one colour.
"""

import argparse
import html
import json
import math
import pathlib
import sys

# Okabe and Ito's colours, which most colour-blind people can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
WIDTH, HEIGHT = 880, 520
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 44, 58
LABELS = {"loss_nats": "loss, nats per token", "bits_per_byte": "bits per byte", "tok_per_s": "tokens per second"}


def read(run, value):
    """The points of a run: name, training (step, value), validation (step, value)."""
    path = pathlib.Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    points = {"train": [], "validation": []}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            print(f"warning: {path}: line {number} is not whole", file=sys.stderr)
            continue
        if record["kind"] in points and record.get(value) is not None:
            points[record["kind"]].append((record["step"], record[value]))
    if not points["train"] and not points["validation"]:
        raise SystemExit(f"error: {path}: has no `{value}`")
    return path.resolve().parent.name, points["train"], points["validation"]


def smoothed(points, weight):
    """An exponential mean that is right from the first point on."""
    out, total, mass = [], 0.0, 0.0
    for step, value in points:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        out.append((step, total / mass))
    return out


def ticks(low, high, wanted):
    """Round numbers from `low` to `high`, about `wanted` of them."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.4g}"


def bounds(runs):
    """The ranges to show. The first losses are far above all others: what is above the 98th percentile is cut off."""
    every = sorted(value for _, train, valid in runs for _, value in train + valid)
    low, high = every[0], every[min(len(every) - 1, int(len(every) * 0.98))]
    high = max([high] + [value for _, _, valid in runs for _, value in valid])
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    last = max(step for _, train, valid in runs for step, _ in train + valid)
    return last, low - margin, high + margin


def draw(runs, label, title):
    last, low, high = bounds(runs)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    x = lambda step: LEFT + (right - LEFT) * step / last
    y = lambda value: bottom - (bottom - TOP) * (value - low) / (high - low)
    path = lambda points: " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    text = lambda px, py, words, more="": f'<text x="{px:.1f}" y="{py:.1f}" {more}>{html.escape(words)}</text>'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}"/></clipPath>',
        text(LEFT, 26, title, 'font-size="16" font-weight="bold"'),
    ]
    for value in ticks(low, high, 7):
        out.append(f'<path d="M{LEFT} {y(value):.1f}H{right}" stroke="#ddd"/>')
        out.append(text(LEFT - 8, y(value) + 4.5, number(value), 'text-anchor="end"'))
    for step in (step for step in ticks(0, last, 8) if step == int(step)):
        out.append(f'<path d="M{x(step):.1f} {bottom}v5" stroke="#222"/>')
        out.append(text(x(step), bottom + 20, number(step), 'text-anchor="middle"'))
    out.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#222"/>')
    out.append(text((LEFT + right) / 2, HEIGHT - 14, "step", 'text-anchor="middle"'))
    middle = (TOP + bottom) / 2
    out.append(text(18, middle, label, f'text-anchor="middle" transform="rotate(-90 18 {middle:.1f})"'))
    out.append('<g clip-path="url(#plot)" fill="none" stroke-linejoin="round">')
    for i, (_, train, valid) in enumerate(runs):
        colour = COLOURS[i % len(COLOURS)]
        out.append(f'<polyline points="{path(train)}" stroke="{colour}" stroke-width="1" opacity="0.55"/>')
        out.append(f'<polyline points="{path(valid)}" stroke="{colour}" stroke-width="2.5"/>')
        out += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5" fill="{colour}"/>' for s, v in valid]
    out.append("</g>")
    legend = []
    for i, (name, _, valid) in enumerate(runs):
        final = f": {valid[-1][1]:.4g}" if valid else ""
        legend.append((COLOURS[i % len(COLOURS)], name + final))
    # 7.6 is about the width of a letter; losses fall, so the upper right corner is free.
    box = max(max(len(words) for _, words in legend) * 7.6 + 46, 210)
    height = len(legend) * 20 + 28
    out.append(f'<rect x="{right - box - 6:.1f}" y="{TOP + 4}" width="{box:.1f}" height="{height}" fill="#fff" opacity="0.9" stroke="#ccc"/>')
    for i, (colour, words) in enumerate(legend):
        py = TOP + 22 + i * 20
        out.append(f'<path d="M{right - box + 2:.1f} {py - 4.5}h22" stroke="{colour}" stroke-width="2.5"/>')
        out.append(text(right - box + 32, py, words))
    out.append(text(right - box + 2, TOP + 22 + len(legend) * 20, "thin: training; number: last validation", 'font-size="11" fill="#666"'))
    return "\n".join(out + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the SVG to write")
    parser.add_argument("--value", default="loss_nats", help="key of metrics.jsonl to draw (default loss_nats)")
    parser.add_argument("--smooth", type=float, default=0.6, help="0: training as it is, towards 1: smoother (default 0.6)")
    parser.add_argument("--title", help="default: what is drawn")
    args = parser.parse_args()
    if not 0 <= args.smooth < 1:
        parser.error("--smooth: expected 0 up to, but not, 1")
    try:
        runs = [(name, smoothed(train, args.smooth), valid) for name, train, valid in (read(run, args.value) for run in args.runs)]
    except OSError as error:
        raise SystemExit(f"error: {error.filename}: {error.strerror}")
    label = LABELS.get(args.value, args.value)
    args.out.write_text(draw(runs, label, args.title or label[0].upper() + label[1:]), encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
