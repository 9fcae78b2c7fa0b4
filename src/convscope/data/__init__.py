"""Pictures to show a network: embedded photographs and labelled images of clothes, and the reader of the user's own files.

Small trained networks lie beside them; `convscope.load` builds those.
"""

from convscope.data.fashion import fashion
from convscope.data.images import Batch, Broken, Geometry, Images, Sample, halves, images
from convscope.data.photographs import Photo, photographs

__all__ = [
    "Batch",
    "Broken",
    "Geometry",
    "Images",
    "Photo",
    "Sample",
    "fashion",
    "halves",
    "images",
    "photographs",
]
