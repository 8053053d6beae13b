"""A checkpoint's image processor, as the step `images` computes it.

transformers makes it of preprocessor_config.json; what it makes of pictures is compared with ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from build_scripts.checkpoint_folder import Checkpoint
from build_scripts.errors import BuildError
from build_scripts.quiet import quiet
from python_mp.steps.image_processor import Processor

FILE = "preprocessor_config.json"
SIZES = (640, 480), (33, 57), (17, 5), (224, 224), (500, 501)
"""Width and height of the pictures to compare."""
CONVNEXT_CROPS_BELOW = 384


def load(checkpoint: Checkpoint) -> Processor:
    """Raises BuildError where transformers cannot make it, or it does what ours does not."""
    theirs = _auto(checkpoint)
    try:
        ours = _ours(theirs.to_dict())
        _compare(ours, theirs)
    except Exception as error:  # of Pillow, NumPy and transformers
        raise BuildError(
            f"{checkpoint.file(FILE)}: the step images resizes, crops, scales and normalises; a"
            f" {type(theirs).__name__} with these settings does something else ({error})."
        ) from None
    return ours


def pictures(count: int, seed: int) -> list[Image.Image]:
    """Coloured noise of many sizes, smooth enough that resizing leaves something of it."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 6, 8, 3), np.uint8)
    sizes = random.integers(16, 400, (count, 2)).tolist()
    return [Image.fromarray(each).resize(size) for each, size in zip(small, sizes, strict=True)]


def _auto(checkpoint: Checkpoint) -> Any:
    if not checkpoint.file(FILE).is_file():
        raise BuildError(f"The checkpoint {checkpoint.path} has no {FILE}.")
    with quiet():
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                checkpoint.path, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # of many libraries, some with no class of their own
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BuildError(
                f"transformers cannot load the image processor of {checkpoint.path}: {reason}"
            ) from None


def _ours(said: Mapping[str, Any]) -> Processor:
    said = {**said, **_of_convnext(said)}
    crop = _sides(said["crop_size"]) if said.get("do_center_crop") else None
    size = _sides(said["size"]) if said.get("do_resize") else None
    if crop and (not size or any(a < b for a, b in zip(size, crop, strict=False))):
        raise ValueError(f"it crops to {crop} what may be smaller")
    normalises = bool(said.get("do_normalize"))
    return Processor(
        size=size,
        resample=int(said.get("resample", Image.Resampling.BILINEAR)),
        crop=crop if crop is None else (crop[0], crop[-1]),
        scale=float(said["rescale_factor"]) if said.get("do_rescale") else 1.0,
        mean=_colors(said["image_mean"]) if normalises else None,
        std=_colors(said["image_std"]) if normalises else None,
    )


def _of_convnext(said: Mapping[str, Any]) -> dict[str, Any]:
    """What its `crop_pct` amounts to: a small picture is the middle of a larger one."""
    if "crop_pct" not in said:
        return {}
    side = int(said["size"]["shortest_edge"])
    square = {"height": side, "width": side}
    if side >= CONVNEXT_CROPS_BELOW:
        return {"size": square}
    larger = {"shortest_edge": int(side / said["crop_pct"])}
    return {"size": larger, "do_center_crop": True, "crop_size": square}


def _sides(said: Mapping[str, int]) -> tuple[int, ...]:
    """Height and width, or the shorter side alone."""
    given = {name: value for name, value in said.items() if value is not None}
    if given.keys() == {"shortest_edge"}:
        return (int(given["shortest_edge"]),)
    if given.keys() == {"height", "width"}:
        return int(given["height"]), int(given["width"])
    raise ValueError(f"its size is {given}")


def _colors(said: Any) -> tuple[float, ...]:
    return tuple(map(float, said)) if hasattr(said, "__iter__") else (float(said),) * 3


def _compare(ours: Processor, theirs: Any) -> None:
    shapes = set()
    for size, image in zip(SIZES, pictures(len(SIZES), 2), strict=True):
        shown = image.resize(size)
        wanted = theirs(images=shown, return_tensors="np")["pixel_values"][0]
        found = ours.pixels("a picture", shown)
        shapes.add(found.shape)
        if found.shape != wanted.shape or np.abs(found - wanted).max() > 1e-5:
            raise ValueError(f"of a picture of {size} it makes other pixels")
    if shapes != {ours.shape}:
        raise ValueError("pictures of other sizes become pixels of other sizes")
