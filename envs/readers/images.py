"""Decodes images that data hold as PNG or JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from aaren_rl.errors import DataError

FORMATS = ("PNG", "JPEG")
"""Formats that are decoded; pillow's others stay closed to data."""


def decode(encoded: Sequence[bytes | None], name: str) -> npt.NDArray[np.uint8]:
    """The images of an episode.

    Args:
        encoded: the files, one for each step.
        name: of the images, for messages.

    Returns:
        (images, height, width, channels), or (images, height, width) where they are grey.

    Raises:
        DataError: an image is missing, damaged, or of another size than the first.
    """
    found: npt.NDArray[np.uint8] | None = None
    for step, content in enumerate(encoded):
        if not isinstance(content, bytes):
            raise DataError(f"{name} lack the image of step {step}; expected its PNG or JPEG in the data")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                pixels = np.asarray(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{name} hold no image at step {step}: {error}; expected PNG or JPEG") from error
        if pixels.dtype != np.uint8:
            raise DataError(f"{name} hold an image of {pixels.dtype} at step {step}; expected 8 bits a channel")
        if found is None:
            found = np.empty((len(encoded), *pixels.shape), dtype=np.uint8)
        if pixels.shape != found.shape[1:]:
            raise DataError(
                f"{name} hold an image of {pixels.shape} at step {step}; expected {found.shape[1:]}, as step 0"
            )
        found[step] = pixels
    if found is None:
        raise DataError(f"{name} hold no image")
    return found
