"""Every colour in one place, light and dark: the palette by family, the states of jobs, and the templates of figures.

The palette is Okabe and Ito's, which people with any colour blindness tell apart; families also differ by marker.
"""

from __future__ import annotations

from typing import Any, Literal

import plotly.graph_objects as go

Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")

FAMILIES = ("cnn", "transformer", "mlp", "hybrid", "unknown")
FAMILY_LABELS = {
    "cnn": "CNN",
    "transformer": "transformer",
    "mlp": "MLP",
    "hybrid": "hybrid",
    "unknown": "unknown",
}
FAMILY_SYMBOLS = {"cnn": "circle", "transformer": "diamond", "mlp": "square", "hybrid": "triangle-up", "unknown": "x"}
_FAMILY_COLOURS: dict[Scheme, dict[str, str]] = {
    "light": {
        "cnn": "#0072B2",
        "transformer": "#D55E00",
        "mlp": "#009E73",
        "hybrid": "#AA4499",
        "unknown": "#6B7280",
    },
    "dark": {"cnn": "#56B4E9", "transformer": "#F0853B", "mlp": "#2BC99A", "hybrid": "#E39AD0", "unknown": "#A6ADB8"},
}

# Positive is what the teacher adds, negative what it would take away.
_MEANINGS: dict[Scheme, dict[str, str]] = {
    "light": {
        "positive": "#0072B2",
        "negative": "#D55E00",
        "neutral": "#6B7280",
        "gain": "#009E73",
        "loss": "#D55E00",
        "delta": "#0072B2",
        "line": "#9AA3AF",
    },
    "dark": {
        "positive": "#56B4E9",
        "negative": "#F0853B",
        "neutral": "#A6ADB8",
        "gain": "#2BC99A",
        "loss": "#F0853B",
        "delta": "#56B4E9",
        "line": "#6B7380",
    },
}
_SERIES: dict[Scheme, list[str]] = {
    "light": ["#0072B2", "#D55E00", "#009E73", "#AA4499", "#B07D00", "#3B8EA5", "#7A3E9D", "#6B7280"],
    "dark": ["#56B4E9", "#F0853B", "#2BC99A", "#E39AD0", "#E6C229", "#7FD6EC", "#B99AF0", "#A6ADB8"],
}
SURFACES: dict[Scheme, dict[str, str]] = {
    "light": {"page": "#F6F7F9", "card": "#FFFFFF", "text": "#1B1F24", "dimmed": "#4B5563", "grid": "#E3E6EB"},
    "dark": {"page": "#15181C", "card": "#1E2227", "text": "#E8EAED", "dimmed": "#B0B7C3", "grid": "#343A43"},
}
_DENSITY: dict[Scheme, list[list[Any]]] = {
    "light": [[0.0, "#E6F0F7"], [0.25, "#9CCBE4"], [0.5, "#4A9CCB"], [0.75, "#14619C"], [1.0, "#08304F"]],
    "dark": [[0.0, "#16303F"], [0.25, "#1F5A7C"], [0.5, "#3E93BE"], [0.75, "#8CCBE8"], [1.0, "#EAF6FC"]],
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def family_colour(family: str, scheme: Scheme) -> str:
    return _FAMILY_COLOURS[scheme].get(family, _FAMILY_COLOURS[scheme]["unknown"])


def colour(meaning: str, scheme: Scheme) -> str:
    """The colour of a meaning: positive, negative, gain, loss, delta, neutral, line."""
    return _MEANINGS[scheme][meaning]


def series(scheme: Scheme) -> list[str]:
    """Colours of lines and boxes that have no meaning of their own, in order."""
    return _SERIES[scheme]


def density_scale(scheme: Scheme) -> list[list[Any]]:
    """Few → many: light to dark on light ground, dark to light on dark ground."""
    return _DENSITY[scheme]


def as_scheme(value: object) -> Scheme:
    return "dark" if value == "dark" else "light"


def template(scheme: Scheme) -> go.layout.Template:
    """How every figure looks: fonts, grid, hover, legend above the plot."""
    ground = SURFACES[scheme]
    axis = {
        "gridcolor": ground["grid"],
        "linecolor": ground["grid"],
        "zerolinecolor": colour("line", scheme),
        "zerolinewidth": 1,
        "ticks": "outside",
        "tickcolor": ground["grid"],
        "automargin": True,
        "title": {"standoff": 10},
    }
    return go.layout.Template(
        data={"bar": [{"error_y": {"color": ground["text"]}}]},
        layout={
            "font": {"family": FONT, "size": 13, "color": ground["text"]},
            "paper_bgcolor": ground["card"],
            "plot_bgcolor": ground["card"],
            "colorway": series(scheme),
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 64, "r": 20, "t": 36, "b": 56},
            "hoverlabel": {
                "bgcolor": ground["card"],
                "bordercolor": ground["dimmed"],
                "font": {"color": ground["text"]},
            },
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.01, "xanchor": "left", "x": 0},
            "colorscale": {"sequential": density_scale(scheme)},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": ground["dimmed"], "activecolor": ground["text"]},
        },
    )


MANTINE = {
    "fontFamily": FONT,
    "primaryColor": "zoo",
    "primaryShade": {"light": 7, "dark": 7},
    "defaultRadius": "md",
    "autoContrast": True,
    "colors": {
        "zoo": [
            "#E7F3FA",
            "#CFE5F2",
            "#9ECAE5",
            "#6BAFD8",
            "#45A0D6",
            "#2489C4",
            "#0F7ABA",
            "#0068A3",
            "#005787",
            "#00466D",
        ]
    },
}
