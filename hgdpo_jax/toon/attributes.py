"""What a toon portrait can look like: the attributes, their classes, and what each class draws."""

HAIR_COLOR = {"black": "#1d1a1c", "brown": "#6b3f26", "red": "#c2431c", "blond": "#e3b94f", "grey": "#b9b9bd"}
SKIN = {"pale": "#ffe9dc", "light": "#eebf9b", "tan": "#cc9560", "brown": "#9a6540", "dark": "#5a3727"}
CLOTHES_COLOR = {
    "black": "#1a1a1c",
    "white": "#f5f5f5",
    "red": "#c32222",
    "orange": "#f07a1a",
    "yellow": "#f2c117",
    "green": "#1c7f3e",
    "blue": "#1f4fb4",
    "purple": "#6d28b5",
}
BACKGROUND = {
    "white": "#f4f4f4",
    "grey": "#8c9098",
    "blue": "#6fb1ea",
    "green": "#7fca7f",
    "yellow": "#f5df6b",
    "pink": "#f29bb8",
    "purple": "#a883d8",
}
# (front hair, rear hair) variants of the toon-head style; an empty name draws nothing.
HAIR_STYLE = {
    "short": ("sideComed", ""),
    "spiky": ("spiky", ""),
    "bun": ("bun", ""),
    "long": ("sideComed", "longWavy"),
    "bob": ("sideComed", "shoulderHigh"),
}
BEARD = {"none": "", "moustache": "moustacheTwirl", "beard": "fullBeard", "long beard": "longBeard"}
# (mouth, eyebrows): at 48x64 pixels an expression reads only when the brows agree with the mouth.
MOUTH = {
    "smiling": ("smile", "neutral"),
    "laughing": ("laugh", "happy"),
    "surprised": ("agape", "raised"),
    "sad": ("sad", "sad"),
    "angry": ("angry", "angry"),
}
EYES = {"open": "wide", "closed": "humble", "winking": "wink"}

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair_color": tuple(HAIR_COLOR),
    "hair_style": tuple(HAIR_STYLE),
    "skin": tuple(SKIN),
    "clothes_color": tuple(CLOTHES_COLOR),
    "background": tuple(BACKGROUND),
    "beard": tuple(BEARD),
    "mouth": tuple(MOUTH),
    "eyes": tuple(EYES),
}

# Combinations of these are what the splits divide: a held-out combination is never seen in training.
COMBINATION = ("hair_color", "skin", "clothes_color", "background")

# View height, horizontal shift of the person and top edge, in units of the style's 768x768 canvas.
FRAMING = {
    "close-up": (600, 0, 104),
    "portrait": (690, 0, 52),
    "distant": (800, 0, -32),
    "left": (700, -75, 42),
    "right": (700, 75, 42),
}
