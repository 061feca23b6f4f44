"""Where the gateway is promised to find a face."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

from examples.zoo.face_detection.data import FACE, portrait

Floats = npt.NDArray[np.float32]
STRIDE, WINDOW = 2, 12  # of the network, in pixels


def detect(zoo: Any, images: Floats) -> tuple[Floats, Floats]:
    """(probability [n, rows, columns], boxes [n, 4, rows, columns])."""
    image = triton.InferInput("image", list(images.shape), "FP32")
    image.set_data_from_numpy(np.ascontiguousarray(images))
    result = zoo.client.infer("face_detection", [image])
    return result.as_numpy("probability")[:, 0], result.as_numpy("boxes")


def frame(boxes: Floats, row: int, column: int) -> Floats:
    """Left, top, right and bottom of a window's face, in pixels."""
    corner = np.array([column, row, column, row], np.float32) * STRIDE
    window: Floats = corner + np.array([0, 0, WINDOW, WINDOW], np.float32)
    return window + boxes[:, row, column] * WINDOW


def overlap(one: Floats, other: tuple[int, ...]) -> float:
    """Intersection over union."""
    both = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(both.clip(min=0)))
    areas = [float(np.prod(np.subtract(box[2:], box[:2]))) for box in (one, other)]
    return shared / (sum(areas) - shared)


def test_the_face_is_found_where_it_is_and_nowhere_else(zoo: Any) -> None:
    (probability,), _ = detect(zoo, portrait()[np.newaxis])
    rows, columns = np.indices(probability.shape)
    x, y = columns * STRIDE + WINDOW / 2, rows * STRIDE + WINDOW / 2
    left, top, right, bottom = FACE
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    assert probability[inside].max() > 0.9
    row, column = np.unravel_index(probability.argmax(), probability.shape)
    assert inside[row, column]
    assert probability[x > right + WINDOW].max() < 0.1


def test_the_second_output_frames_the_face(zoo: Any) -> None:
    (probability,), (boxes,) = detect(zoo, portrait()[np.newaxis])
    row, column = np.unravel_index(probability.argmax(), probability.shape)
    assert overlap(frame(boxes, int(row), int(column)), FACE) > 0.5


def test_a_mirrored_face_is_found_on_the_other_side(zoo: Any) -> None:
    (plain, mirrored), _ = detect(zoo, np.stack([portrait(), portrait()[:, :, ::-1]]))
    middle = plain.shape[1] // 2
    assert plain[:, :middle].max() > 0.9 > plain[:, middle + 3 :].max()
    assert mirrored[:, middle:].max() > 0.9 > mirrored[:, : middle - 3].max()


def test_pictures_of_any_size_are_taken(zoo: Any) -> None:
    for height, width in ((12, 12), (36, 30), (33, 64)):
        probability, boxes = detect(zoo, portrait()[np.newaxis, :, :height, :width])
        assert probability.shape[1:] == boxes.shape[2:]
        assert boxes.shape[1] == 4


def test_a_plain_wall_is_no_face(zoo: Any) -> None:
    probability, _ = detect(zoo, np.full((1, 3, 64, 64), 127, np.float32))
    assert probability.max() < 0.1
