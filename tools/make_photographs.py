"""Makes src/convscope/data/photos from the wheels the photographs come from.

    pip download --no-deps --dest WHEELS scikit-image==0.26.0 scikit-learn==1.9.1 scipy==1.9.3 \
        matplotlib==3.11.2 cartopy==0.26.0
    python tools/make_photographs.py WHEELS

Each is scaled so that its short side is at most 320 px, and written as WebP with its attribution beside it.
Left out on purpose: scikit-image's stereo motorcycle, whose licence is stated nowhere.
"""

from __future__ import annotations

import bz2
import io
import json
import sys
import zipfile
from pathlib import Path

from PIL import Image

SHORT_SIDE = 320  # px
QUALITY = 82
LIMIT = 600_000  # bytes, all together
OUT = Path(__file__).parents[1] / "src" / "convscope" / "data" / "photos"

PUBLIC = "Public domain"
CC0 = "CC0 1.0"
BY = "CC BY 2.0"

# name, title, author, licence, page, wheel, path in the wheel
PHOTOGRAPHS = [
    ("astronaut", "Eileen Collins, astronaut", "NASA", PUBLIC, "https://flic.kr/p/r9qvLn",
     "scikit_image", "skimage/data/astronaut.png"),
    ("chelsea", "Chelsea the cat", "Stefan van der Walt", CC0,
     "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.chelsea",
     "scikit_image", "skimage/data/chelsea.png"),
    ("coffee", "Coffee cup, Pikolo Espresso Bar", "Rachel Michetti", CC0,
     "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.coffee",
     "scikit_image", "skimage/data/coffee.png"),
    ("rocket", "Falcon 9 with DSCOVR on the launch pad", "SpaceX", PUBLIC,
     "https://www.flickr.com/photos/spacexphotos/16511594820/",
     "scikit_image", "skimage/data/rocket.jpg"),
    ("hubble", "Hubble eXtreme Deep Field", "NASA, ESA", PUBLIC,
     "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
     "scikit_image", "skimage/data/hubble_deep_field.jpg"),
    ("retina", "Fundus photograph of a normal left eye", "Mikael Häggström", CC0,
     "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
     "scikit_image", "skimage/data/retina.jpg"),
    ("ihc", "Colonic glands, FHL2 staining with hematoxylin",
     "Center for Microscopy and Molecular Imaging (CMMI)", "No known copyright restrictions",
     "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.immunohistochemistry",
     "scikit_image", "skimage/data/ihc.png"),
    ("china", "Tower above a lake, China", "danielbuechele (Flickr)", BY,
     "https://www.flickr.com/photos/danielbuechele/6061409035/",
     "scikit_learn", "sklearn/datasets/images/china.jpg"),
    # The wheel's README credits the other photographer by mistake; its own links name this one.
    ("flower", "Dahlia", "vultilion (Flickr)", BY,
     "https://www.flickr.com/photos/vultilion/6056698931/",
     "scikit_learn", "sklearn/datasets/images/flower.jpg"),
    ("raccoon", "Raccoon", "public-domain-image.com", PUBLIC, "http://www.public-domain-image.com",
     "scipy", "scipy/misc/face.dat"),
    ("hopper", "Commodore Grace M. Hopper, USN", "James S. Davis, U.S. Navy", PUBLIC,
     "https://commons.wikimedia.org/wiki/File:Commodore_Grace_M._Hopper,_USN_(covered).jpg",
     "matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
    ("hurricane", "Hurricane Miriam from the Aqua satellite, 26 September 2012", "NASA MODIS Rapid Response",
     PUBLIC, "https://lance.modaps.eosdis.nasa.gov/",
     "cartopy", "cartopy/data/raster/sample/Miriam.A2012270.2050.2km.jpg"),
]  # fmt: skip


def read(wheels: Path, package: str, path: str) -> Image.Image:
    """The photograph at `path` in the one wheel of `package`, as RGB."""
    (wheel,) = wheels.glob(f"{package}-*.whl")
    data = zipfile.ZipFile(wheel).read(path)
    if path.endswith("face.dat"):  # raw bytes, height 768, width 1024
        return Image.frombytes("RGB", (1024, 768), bz2.decompress(data))
    return Image.open(io.BytesIO(data)).convert("RGB")


def main(wheels: Path) -> None:
    """Writes all photographs and `photographs.json`."""
    OUT.mkdir(parents=True, exist_ok=True)
    records, total = [], 0
    for name, title, author, license_, url, package, path in PHOTOGRAPHS:
        image = read(wheels, package, path)
        scale = min(1.0, SHORT_SIDE / min(image.size))
        size = (round(image.width * scale), round(image.height * scale))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=QUALITY, method=6)
        (OUT / f"{name}.webp").write_bytes(buffer.getvalue())
        total += len(buffer.getvalue())
        print(f"{name:10} {size[0]} x {size[1]}  {len(buffer.getvalue()):6} bytes")
        records.append(
            {
                "name": name,
                "title": title,
                "attribution": author,
                "license": license_,
                "url": url,
                "package": package,
            }
        )
    (OUT / "photographs.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{total} bytes in all")
    if total > LIMIT:
        raise SystemExit(f"over the limit of {LIMIT} bytes: lower QUALITY")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
