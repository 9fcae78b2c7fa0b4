"""Pictures to show a network: a dozen embedded photographs, and the reader of the user's own image files."""

from convscope.data.images import Batch, Broken, Geometry, Images, Sample, images
from convscope.data.photographs import Photo, photographs

__all__ = ["Batch", "Broken", "Geometry", "Images", "Photo", "Sample", "images", "photographs"]
