"""What a toon portrait can look like: the attributes, their classes, and what each class draws."""

from typing import Any

# By attribute and class: a colour, or the variants of the toon-head style; an empty name draws nothing.
DRAWN: dict[str, dict[str, Any]] = {
    "hair_color": {"black": "#1d1a1c", "brown": "#6b3f26", "red": "#c2431c", "blond": "#e3b94f", "grey": "#b9b9bd"},
    # Front hair and rear hair.
    "hair_style": {
        "short": ("sideComed", ""),
        "spiky": ("spiky", ""),
        "bun": ("bun", ""),
        "long": ("sideComed", "longWavy"),
        "bob": ("sideComed", "shoulderHigh"),
    },
    "skin": {"pale": "#ffe9dc", "light": "#eebf9b", "tan": "#cc9560", "brown": "#9a6540", "dark": "#5a3727"},
    "clothes_color": {
        "black": "#1a1a1c",
        "white": "#f5f5f5",
        "red": "#c32222",
        "orange": "#f07a1a",
        "yellow": "#f2c117",
        "green": "#1c7f3e",
        "blue": "#1f4fb4",
        "purple": "#6d28b5",
    },
    "background": {
        "white": "#f4f4f4",
        "grey": "#8c9098",
        "blue": "#6fb1ea",
        "green": "#7fca7f",
        "yellow": "#f5df6b",
        "pink": "#f29bb8",
        "purple": "#a883d8",
    },
    "beard": {"none": "", "moustache": "moustacheTwirl", "beard": "fullBeard", "long beard": "longBeard"},
    # Mouth and eyebrows: at 48x64 pixels an expression is readable only if the two agree.
    "mouth": {
        "smiling": ("smile", "neutral"),
        "laughing": ("laugh", "happy"),
        "surprised": ("agape", "raised"),
        "sad": ("sad", "sad"),
        "angry": ("angry", "angry"),
    },
    "eyes": {"open": "wide", "closed": "humble", "winking": "wink"},
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {name: tuple(classes) for name, classes in DRAWN.items()}

# The splits share no combination of these attributes: training never sees a held-out combination.
COMBINATION = ("hair_color", "skin", "clothes_color", "background")

# View height, horizontal shift of the person and top edge, in units of the style's 768x768 canvas.
FRAMING = {
    "close-up": (600, 0, 104),
    "portrait": (690, 0, 52),
    "distant": (800, 0, -32),
    "left": (700, -75, 42),
    "right": (700, 75, 42),
}
