"""gearmesh/cli/screens/tables.py: shapes as people read them."""

from gearmesh.cli.screens.tables import dims_text, tensor_text


def test_open_dimensions_are_shown_by_name_and_the_batch_as_ever() -> None:
    ids = {"name": "ids", "dtype": "int64", "shape": [-1, -1], "dim_names": ["batch", "seq"]}
    image = {"name": "x", "dtype": "uint8", "shape": [-1, 3, -1, -1], "dim_names": ["batch", "", "h", "w"]}
    assert tensor_text(ids) == "int64 [-1, seq]"
    assert tensor_text(image) == "uint8 [-1, 3, h, w]"
    assert tensor_text({"name": "y", "dtype": "float32", "shape": [-1, 10]}) == "float32 [-1, 10]"
    assert tensor_text({"name": "y", "dtype": "string", "shape": [-1]}) == "string [-1]"


def test_ranges_are_told_of_models_that_have_them() -> None:
    assert dims_text({"dims": {"h": [1, 480], "w": [32, 640]}}) == "h 1 to 480, w 32 to 640"
    assert dims_text({}) == ""
