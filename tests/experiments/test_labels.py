import numpy as np
import pytest

from aaren_rl.experiments.comparison.labels import GAP, place

AREA = np.array([0.0, 0.0, 600.0, 600.0])


def boxes(middles, sizes):
    return np.concatenate([middles - sizes / 2, middles + sizes / 2], 1)


def overlap(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return max(0.0, sides[0]) * max(0.0, sides[1])


def crowd(seed, names=24):
    """Circles of very different sizes, half of them in a quarter of the picture."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(60, 540, (names, 2))
    centres[: names // 2] = rng.uniform(200, 440, (names // 2, 2))
    return centres, rng.choice([1.5, 4.0, 22.0], names), np.stack([rng.uniform(25, 110, names), np.full(names, 11)], 1)


@pytest.mark.parametrize("seed", range(5))
def test_names_of_a_crowd_lie_apart_inside_and_off_the_circles(seed):
    centres, radii, sizes = crowd(seed)
    bars = np.array([[x - 1, y - 60, x + 1, y + 60] for x, y in centres])
    found = boxes(place(centres, radii, sizes, bars, AREA), sizes)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= 600).all()
    for name, box in enumerate(found):
        assert all(overlap(box, other) == 0 for other in found[name + 1 :])
        nearest = np.clip(centres, box[:2], box[2:])
        assert (np.linalg.norm(nearest - centres, axis=1) >= radii).all()


def test_a_name_alone_touches_its_circle():
    sizes = np.array([[60.0, 10.0]])
    for centre in ([300.0, 300.0], [5.0, 300.0], [595.0, 595.0], [300.0, 2.0]):
        (middle,) = place(np.array([centre]), np.array([8.0]), sizes, np.empty((0, 4)), AREA)
        (box,) = boxes(middle[None], sizes)
        assert (box[:2] >= 0).all()
        assert (box[2:] <= 600).all()
        nearest = np.clip(centre, box[:2], box[2:])
        assert 8 <= np.linalg.norm(nearest - centre) <= (8 + GAP) * 2**0.5 + 1e-9


def test_a_name_keeps_off_what_is_drawn():
    # All to the right of the circle and above it.
    covered = np.array([[310.0, 0.0, 600.0, 600.0], [0.0, 302.0, 600.0, 600.0]])
    sizes = np.array([[60.0, 10.0]])
    middle = place(np.array([[300.0, 300.0]]), np.array([2.0]), sizes, covered, AREA)
    assert overlap(boxes(middle, sizes)[0], covered[0]) == overlap(boxes(middle, sizes)[0], covered[1]) == 0


def test_equal_circles_are_named_apart():
    centres, sizes = np.full((6, 2), 300.0), np.full((6, 2), [50.0, 10.0])
    found = boxes(place(centres, np.full(6, 5.0), sizes, np.empty((0, 4)), AREA), sizes)
    assert all(overlap(found[i], found[j]) == 0 for i in range(6) for j in range(i))
