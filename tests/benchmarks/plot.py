"""Draws the ratios: a panel for each route, a line for each contender."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tests.benchmarks.results import Spread

NAME: Final = "benchmarks"

WIDEST: Final = 2.0
"""Where a panel ends: beyond is an arrow with its number, so that one contender does not press all others together."""

OURS: Final = "flask_uow"


def draw(
    spreads: Mapping[str, Mapping[str, Spread]], labels: Mapping[str, str], title: str, folder: Path
) -> list[Path]:
    """Write a PNG and an SVG, and return where they are."""
    # The same numbers give the same file: no random ids, and no date.
    with mpl.rc_context({"svg.hashsalt": NAME, "font.size": 9}):
        figure = Figure(figsize=(2.2 + 2.1 * len(spreads), 1.4 + 0.3 * len(labels)), layout="constrained")
        panels = figure.subplots(1, len(spreads), sharey=True, squeeze=False)[0]
        lines = {key: -number for number, key in enumerate(labels)}
        for panel, (route, of_route) in zip(panels, spreads.items(), strict=True):
            widest = min(WIDEST, 1.05 * max(found.high for found in of_route.values()))
            narrowest = min(0.95, *(0.99 * found.low for found in of_route.values()))
            panel.set_xlim(narrowest, max(1.1, widest))
            panel.axvline(1, color="0.7", linewidth=0.8)
            for key, found in of_route.items():
                color = "C3" if labels[key].startswith(OURS) else "C0"
                if found.median > widest:
                    panel.annotate(f"{found.median:.1f} →", (widest, lines[key]), ha="right", va="center", color=color)
                else:
                    panel.plot([found.low, found.high], [lines[key]] * 2, color=color, linewidth=1.5, alpha=0.5)
                    panel.plot(found.median, lines[key], marker="o", markersize=4, color=color)
            panel.set_title(route, fontsize=9)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
            panel.tick_params(axis="y", length=0)
            panel.spines[["top", "right", "left"]].set_visible(False)
        panels[0].set_yticks(list(lines.values()), list(labels.values()))
        figure.suptitle(title, fontsize=10)

        folder.mkdir(parents=True, exist_ok=True)
        png, svg = folder / f"{NAME}.png", folder / f"{NAME}.svg"
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]
