import numpy as np

from samadapt.figures import attention_figure, overlay_figure, range_title, save_figure, telling_slices


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


def test_attention_stands_beside_the_picture_with_its_range():
    values = np.linspace(0.5, 1.5, 80).reshape(8, 10)
    maps = {"stem": values, "stage1": np.full((8, 10), 1.0), "Grad-CAM": 0 * values}
    figure = attention_figure(np.full((1, 8, 10), 128.0), maps, "case 7")
    assert [axis.get_title() for axis in figure.axes] == [
        "image\n", "stem\n0.5 to 1.5", "stage1\nflat: 1", "Grad-CAM\nflat: 0",
    ]  # fmt: skip
    assert [len(axis.images) for axis in figure.axes] == [1, 2, 1, 1]  # what is flat has no colours
    assert np.array_equal(figure.axes[1].images[1].get_array(), values)
    assert figure.get_suptitle() == "case 7"
    colour = attention_figure(np.full((3, 8, 10), 255.0), maps, "")
    assert colour.axes[0].images[0].get_array().shape == (8, 10, 3)


def test_a_range_has_the_digits_that_tell_its_ends_apart():
    ranges = [(0.99984, 1.00031), (0.0, 0.2214), (0.0, 2e-7), (3.0, 412.0)]
    assert [range_title("x", np.array(ends)).split("\n")[1] for ends in ranges] == [
        "0.99984 to 1.00031", "0.00 to 0.22", "0 to 2e-07", "3 to 412",
    ]  # fmt: skip
