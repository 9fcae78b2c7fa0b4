"""Makes the picture at the top of the README from a finished atlas: one row a layer, first to last.

python tools/make_readme_picture.py report docs/images/atlas.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LAYERS = ("blocks.1.1", "blocks.2.1", "blocks.3.2", "blocks.4.2", "blocks.5.3", "classifier")
SIDE, GAP, LABEL, COLUMNS = 112, 8, 128, 8


def main(folder: Path, out: Path) -> None:
    """Draws the sheet."""
    atlas = json.loads((folder / "atlas.json").read_text("utf-8"))
    index = {layer["name"]: layer["index"] for layer in atlas["layers"]}
    width, height = LABEL + COLUMNS * (SIDE + GAP) + GAP, len(LAYERS) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, name in enumerate(LAYERS):
        top = GAP + row * (SIDE + GAP)
        pen.text((GAP * 2, top + SIDE // 2 - 9), "classes" if name == "classifier" else name, "#333333", font)
        units = [unit for unit in atlas["units"] if unit["layer"] == index[name] and unit["image"]]
        units.sort(key=lambda unit: -(unit["robust"] / max(unit["activation"], 1e-9)))
        for column, unit in enumerate(sorted(units[:COLUMNS], key=lambda unit: unit["channel"])):
            picture = (
                Image.open(folder / unit["image"])
                .convert("RGB")
                .resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            )
            sheet.paste(picture, (LABEL + column * (SIDE + GAP), top))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(255, dither=Image.Dither.FLOYDSTEINBERG).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
