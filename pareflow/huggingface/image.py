"""Images to pixel values, with numpy and Pillow alone, as preprocessor_config.json says."""

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pareflow.errors import WorkloadError
from pareflow.huggingface.hub import missing
from pareflow.workload import Arrays, Samples

if TYPE_CHECKING:
    from PIL.Image import Image

FILES = ("preprocessor_config.json",)
_BILINEAR = 2
_WARPED_FROM = 384
"""ConvNeXT's rule: larger images are warped to a square, smaller ones resized to more than is kept."""


class ImageEncoder:
    """What a checkpoint's image processor makes of images: `pixel_values`, (batch, 3, height, width) float32.

    An image comes as the base64 text of its file (PNG, JPEG, …), or as a (height, width[, 3]) uint8 array.
    Raises: WorkloadError where the file is missing, or an image cannot be decoded.
    """

    names = ("pixel_values",)

    def __init__(self, folder: Path) -> None:
        path = folder / FILES[0]
        if not path.is_file():
            raise WorkloadError(
                f"an image checkpoint must hold {path.name}",
                f"there is none in {folder}",
                "transformers writes it: `AutoImageProcessor.from_pretrained(…).save_pretrained(FOLDER)`",
            )
        config = {key: value for key, value in json.loads(path.read_text()).items() if value is not None}
        self._config: dict[str, Any] = config
        self._size, self._crop = _geometry(config)

    def __call__(self, images: Samples) -> Arrays:
        return {"pixel_values": np.stack([self._pixels(decode(image)) for image in images])}

    def _pixels(self, image: "Image") -> np.ndarray:
        """Resize, crop, scale, normalize: the order of transformers' image processors."""
        if self._size is not None:
            size = _width_height(self._size, *image.size)
            image = image.resize(size, self._config.get("resample", _BILINEAR))
        pixels = np.asarray(image)
        if self._crop is not None:
            pixels = _center_crop(pixels, self._crop["height"], self._crop["width"])
        pixels = pixels.astype(np.float32)
        if self._config.get("do_rescale", True):
            pixels *= np.float32(self._config.get("rescale_factor", 1 / 255))
        if self._config.get("do_normalize", True):
            pixels -= np.float32(self._config["image_mean"])
            pixels /= np.float32(self._config["image_std"])
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode(image: Any) -> "Image":
    """An RGB image from the base64 text of its file, or from its pixels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing("pillow") from error
    if not isinstance(image, str):
        return Image.fromarray(np.asarray(image, dtype=np.uint8)).convert("RGB")
    try:
        return Image.open(io.BytesIO(base64.b64decode(image, validate=True))).convert("RGB")
    except (ValueError, OSError) as error:
        raise WorkloadError(
            "an image must be the base64 text of its file",
            f"{image[:20]!r}… is not: {error}",
            "Encode the file",
        ) from error


Size = dict[str, int]


def _geometry(config: dict[str, Any]) -> tuple[Size | None, Size | None]:
    """To which size images are resized, and to which they are cropped; None: they are not."""
    resize = _named(config["size"]) if config.get("do_resize", True) else None
    crop = _named(config["crop_size"]) if config.get("do_center_crop") else None
    if resize is not None and "crop_pct" in config:
        edge = resize["shortest_edge"]
        square = {"height": edge, "width": edge}
        if edge >= _WARPED_FROM:
            return square, None
        return {"shortest_edge": int(edge / config["crop_pct"])}, square
    return resize, crop


def _named(size: Any) -> Size:
    """A size by its sides; older files write one number for a square."""
    return size if isinstance(size, dict) else {"height": size, "width": size}


def _width_height(size: Size, width: int, height: int) -> tuple[int, int]:
    """The width and height that an image of this width and height is resized to."""
    edge = size.get("shortest_edge")
    if edge is None:
        return size["width"], size["height"]
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of (rows, columns, 3) pixels; black around them where the image is smaller."""
    lacking = [max(wanted - given, 0) for wanted, given in zip((height, width), pixels.shape, strict=False)]
    around = [((lack + 1) // 2, lack // 2) for lack in lacking]
    padded = np.pad(pixels, (*around, (0, 0)))
    top, left = (padded.shape[0] - height) // 2, (padded.shape[1] - width) // 2
    return padded[top : top + height, left : left + width]
