"""Pictures of predicted masks: colours at known pixels, grey where nothing is judged, eight at most, a legend."""

import numpy as np
import pytest

from a2mim.evaluation.seg_pictures import (
    GAP,
    HEADER,
    IGNORED,
    PICTURES,
    SIDE,
    class_labels,
    colours,
    draw,
    drawn_rows,
    legend,
    seen,
)

IGNORE = 255
COLUMN = SIDE + GAP


def test_at_most_eight_images_are_drawn_and_always_the_same():
    assert drawn_rows(3) == [0, 1, 2] and drawn_rows(8) == list(range(8))
    rows = drawn_rows(1000)
    assert len(set(rows)) == PICTURES == 8 and rows == sorted(rows) == drawn_rows(1000)
    assert rows != list(range(8)) and max(rows) < 1000


def test_every_pixel_has_the_colour_of_its_class_and_ignored_ones_are_grey():
    truth = np.array([[0, 1], [IGNORE, 2]]).repeat(20, 0).repeat(20, 1)
    guess = np.array([[1, 1], [2, 2]]).repeat(20, 0).repeat(20, 1)
    image = np.full((40, 40, 3), (10, 200, 30), np.uint8)
    labels = class_labels(4, None)
    picture = draw(image, truth, guess, labels, IGNORE)
    table = [tuple(rgb) for rgb in colours(4).tolist()]
    near, far = SIDE // 4, 3 * SIDE // 4
    quarters = [(x, HEADER + y) for y in (near, far) for x in (near, far)]
    told = [[picture.getpixel((column * COLUMN + x, y)) for x, y in quarters] for column in range(3)]
    assert told[0] == [(10, 200, 30)] * 4
    assert told[1] == [table[0], table[1], IGNORED, table[2]]
    assert told[2] == [table[1], table[1], IGNORED, table[2]]  # what is not judged is not shown as an answer
    found = legend(seen(truth, guess, IGNORE), labels, IGNORE)
    assert [one["label"] for one in found] == ["class 0", "class 1", "class 2", "ignored"]
    assert found[1]["colour"] == "#{:02x}{:02x}{:02x}".format(*table[1])
    swatches = {rgb for _, rgb in picture.crop((0, HEADER + SIDE + GAP, *picture.size)).getcolors(1 << 16)}
    assert {*table[:3], IGNORED} <= swatches and table[3] not in swatches


def test_classes_have_different_colours_and_none_is_grey():
    table = colours(150)
    assert len({tuple(rgb) for rgb in table.tolist()}) == 150
    assert (table.max(1).astype(int) - table.min(1) > 60).all()


@pytest.mark.parametrize("shape", [(1, 400), (300, 2), (7, 5)])
def test_any_shape_and_any_names_make_a_picture(shape):
    names = ["a\n\x1b[2J" + "long " * 200, "", *("class of a long name" for _ in range(98))]
    truth = np.arange(shape[0] * shape[1]).reshape(shape) % 100
    picture = draw(np.zeros((*shape, 3), np.uint8), truth, truth, class_labels(100, names), IGNORE)
    assert picture.width == 3 * SIDE + 2 * GAP and picture.height < 400
    assert class_labels(2, names[:2])[1] == "class 1"


def test_an_ignored_id_inside_the_classes_stands_once_in_the_legend():
    assert [one["label"] for one in legend({0, 1}, class_labels(2, ["sky", "tree"]), 0)] == ["1 tree", "ignored"]
