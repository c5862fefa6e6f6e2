"""The information plane: a trace and a dashed front per setting, percent on the axis, size by student error."""

from backend.domain.remem_results import PlanePoint
from dashboard.figures.information_plane import LARGEST, SMALLEST, information_plane, marker_size


def point(setting, teacher_error, excess, student_error, *, on_front=False):
    return PlanePoint(
        setting=setting,
        seed=0,
        lr=0.1,
        rho=0.05 if setting in ("sam", "both") else 0.0,
        mlp_weight=1.0,
        stop_point=500,
        teacher_error=teacher_error,
        excess_nats=excess,
        student_error=student_error,
        on_front=on_front,
    )


POINTS = [
    point("baseline", 0.3, 0.02, 0.4, on_front=True),
    point("baseline", 0.2, 0.03, 0.2, on_front=True),
    point("baseline", 0.4, 0.05, 0.3),
    point("sam", 0.25, 0.01, None, on_front=True),
]


def test_points_and_fronts():
    drawn = information_plane(POINTS, "light")
    dots, front, sam, _ = drawn.data
    assert list(dots.x) == [30, 20, 40]
    assert list(dots.y) == [0.02, 0.03, 0.05]
    assert list(dots.marker.size) == [LARGEST, SMALLEST, (LARGEST + SMALLEST) / 2]
    assert (front.line.dash, list(front.x), list(front.y)) == ("dash", [20, 30], [0.03, 0.02])
    assert (sam.name, list(sam.marker.size)) == ("SAM", [SMALLEST])
    assert "student error none" in sam.text[0]


def test_one_size_when_all_students_are_alike():
    assert marker_size(0.3, [0.3, 0.3]) == SMALLEST


def test_nothing_to_show():
    assert "No teacher" in information_plane([], "dark").layout.annotations[0].text
