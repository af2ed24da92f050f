import numpy as np

from samadapt.figures import overlay_figure, save_figure, telling_slices


def maps():
    image = np.random.default_rng(0).random((1, 4, 20, 24))
    label = np.zeros((4, 20, 24), np.uint8)
    label[1:3, 5:12, 5:12] = 1
    return image, label


def test_rows_are_slices_and_columns_have_their_titles(tmp_path):
    image, label = maps()
    figure = overlay_figure(image, {"truth": label, "U-Net": 0 * label}, ("background", "LV"), [1, 2])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["truth", "U-Net", "", ""]
    outlined = [len(axis.collections) for axis in figure.axes]
    assert outlined == [1, 0, 1, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LV"]
    path = save_figure(figure, tmp_path / "a.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert list(tmp_path.iterdir()) == [path]


def test_colour_pictures_are_shown_in_colour():
    figure = overlay_figure(
        np.full((3, 1, 8, 8), 255.0), {"truth": np.zeros((1, 8, 8))}, ("background", "x"), [0]
    )
    assert figure.axes[0].images[0].get_array().shape == (8, 8, 3)


def test_telling_slices_hold_something():
    _, label = maps()
    assert telling_slices(label) == [1, 2]
    assert len(telling_slices(0 * label, count=2)) == 2
