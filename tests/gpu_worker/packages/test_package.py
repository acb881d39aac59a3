"""A package on disk: what is read of it, and what is reported of a broken one."""

import errno
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpu_worker.packages.package import Package, read_package
from gpu_worker.packages.stored import ALIGNMENT, Weight
from mesh.errors import PackageError
from mesh.names import NAME, VERSION
from tests.gpu_worker.conftest import Repository
from tests.messages import names

MANIFEST = """
batch_max = 8
[architecture]
graph = "graph.pt2"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, 4]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 3]
"""


@pytest.fixture
def copy(repository: Repository, tmp_path: Path) -> Path:
    """A repository of one package, "linear", without an example, to be broken."""
    shutil.copytree(repository.folder / "linear", tmp_path / "linear")
    (tmp_path / "linear" / "1" / "example.safetensors").unlink()
    return tmp_path


def faults(folder: Path, ref: str = "linear:1", allow: tuple[str, ...] = ()) -> list[str]:
    """Returns what is wrong with the package."""
    with pytest.raises(PackageError) as caught:
        read_package(folder, ref, allow)
    return caught.value.faults


def write(folder: Path, manifest: str) -> Path:
    (folder / "linear" / "1" / "model.toml").write_text(manifest)
    return folder


def rewrite(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The archive has its entries changed by `change`."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


# -- a good one -------------------------------------------------------------------------------------------------------


def test_a_package_tells_what_a_client_may_send_and_how_its_weights_are_laid_out(repository: Repository) -> None:
    package = repository.package("linear:1")
    assert [(t.name, t.dtype, t.shape) for t in package.spec.inputs] == [("x", "float32", (-1, 4))]
    assert [(t.name, t.dtype, t.shape) for t in package.spec.outputs] == [("y", "float32", (-1, 3))]
    assert package.spec.batch_max == 8
    assert package.layout == (
        Weight("weight", "F32", (3, 4), 0, 48),
        Weight("bias", "F32", (3,), ALIGNMENT, 12),
    )
    assert package.image_bytes == 2 * ALIGNMENT
    assert package.weights_file == repository.folder / "linear" / "1" / "weights.safetensors"


def test_every_tensor_of_the_image_is_aligned_and_none_overlaps_the_next(repository: Repository) -> None:
    for ref in repository.modules:
        package = repository.package(ref)
        ends = [0] + [weight.offset + weight.size for weight in package.layout]
        assert all(weight.offset % ALIGNMENT == 0 for weight in package.layout)
        assert all(weight.offset >= end for weight, end in zip(package.layout, ends, strict=False))
        assert package.image_bytes >= ends[-1]


@pytest.mark.parametrize(("page_bytes", "pages"), [(511, 2), (512, 1), (513, 1), (256, 2), (1 << 20, 1)])
def test_an_image_takes_as_many_pages_as_it_needs(repository: Repository, page_bytes: int, pages: int) -> None:
    assert repository.package("linear:1").pages(page_bytes) == pages


def test_a_model_without_weights_takes_one_page(repository: Repository) -> None:
    package = repository.package("echo:1")
    assert (package.layout, package.image_bytes, package.pages(1 << 20)) == ((), 0, 1)


def test_a_batch_normalisation_behind_a_convolution_is_folded_into_it(repository: Repository) -> None:
    assert [weight.name for weight in repository.package("folded:1").layout] == [
        "0.weight", "0.bias", "4.weight", "4.bias",
    ]  # fmt: skip


def test_settings_of_the_manifest_have_defaults(copy: Path) -> None:
    spec = read_package(write(copy, MANIFEST.replace("batch_max = 8", "")), "linear:1", ()).spec
    assert (spec.batch_max, spec.slo_ms, spec.cacheable, spec.labels) == (32, 1000.0, True, ())
    manifest = 'slo_ms = 5.5\ncache = false\nlabels = ["a", "b"]\ndescription = "why"\n' + MANIFEST
    spec = read_package(write(copy, manifest), "linear:1", ()).spec
    assert (spec.slo_ms, spec.cacheable, spec.labels) == (5.5, False, ("a", "b"))


# -- architectures ----------------------------------------------------------------------------------------------------


def test_packages_that_differ_in_their_weights_alone_share_an_architecture(repository: Repository) -> None:
    shared = repository.package("linear:1").architecture
    assert repository.package("linear:2").architecture == shared
    assert repository.package("twin:1").architecture == shared
    assert repository.package("linear:1").architecture == shared


def test_other_graphs_and_other_layouts_are_other_architectures(repository: Repository) -> None:
    refs = ["linear:1", "other:1", "two:1", "echo:1", "constant:1", "tall:1", "folded:1"]
    assert len({repository.package(ref).architecture for ref in refs}) == len(refs)


def test_other_inputs_or_outputs_are_another_architecture(repository: Repository, copy: Path) -> None:
    shared = repository.package("linear:1").architecture
    assert read_package(write(copy, MANIFEST), "linear:1", ()).architecture == shared
    for old, new in (('name = "x"', 'name = "xx"'), ("[-1, 3]", "[-1, 3, 1]"), ('"float32"', '"int32"')):
        assert read_package(write(copy, MANIFEST.replace(old, new)), "linear:1", ()).architecture != shared


def test_a_factory_s_arguments_are_part_of_its_architecture(copy: Path) -> None:
    def hashed(architecture: str) -> str:
        manifest = MANIFEST.replace('graph = "graph.pt2"', architecture)
        return read_package(write(copy, manifest), "linear:1", ("torch.nn",)).architecture

    one = hashed('factory = "torch.nn:Linear"\nfactory_args = {in_features = 4, out_features = 3}')
    same = hashed('factory = "torch.nn:Linear"\nfactory_args = {out_features = 3, in_features = 4}')
    other = hashed('factory = "torch.nn:Linear"\nfactory_args = {in_features = 4, out_features = 2}')
    assert one == same != other


# -- broken ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", ["linear", "linear:", ":1", "linear:one", "-linear:1", "../linear:1", "a/b:1", ""])
def test_a_ref_that_names_no_place_in_the_repository_is_refused(copy: Path, ref: str) -> None:
    assert names(faults(copy, ref)[0], NAME.pattern, VERSION.pattern)


def test_a_package_that_is_not_there_is_named(copy: Path) -> None:
    with pytest.raises(PackageError) as caught:
        read_package(copy, "linear:7", ())
    assert str(copy / "linear" / "7") in caught.value.faults[0]  # a note about the model shows the first fault alone


@pytest.mark.parametrize("file", ["model.toml", "graph.pt2", "weights.safetensors"])
def test_a_missing_file_is_named(copy: Path, file: str) -> None:
    (copy / "linear" / "1" / file).unlink()
    (fault,) = faults(copy)
    assert fault.startswith(f"{file}: ")


@pytest.mark.parametrize("file", ["weights.safetensors", "example.safetensors"])
def test_a_file_that_cannot_be_opened_is_not_said_to_be_missing(copy: Path, file: str) -> None:
    path = copy / "linear" / "1" / file
    path.unlink(missing_ok=True)
    path.symlink_to(path)  # which nobody can open, root neither
    (fault,) = faults(copy)
    assert names(fault, f"{file}: ", os.strerror(errno.ELOOP))


@pytest.mark.parametrize("size", [0, 7, 60, 187])
def test_weights_that_are_cut_short_are_refused(copy: Path, size: int) -> None:
    file = copy / "linear" / "1" / "weights.safetensors"
    content = file.read_bytes()
    assert size < len(content)
    file.write_bytes(content[:size])
    (fault,) = faults(copy)
    assert fault.startswith("weights.safetensors: ")


def test_weights_that_the_graph_does_not_take_or_lack_are_named(copy: Path) -> None:
    file = copy / "linear" / "1" / "weights.safetensors"
    tensors = load_file(file)
    save_file({"weight": tensors["weight"], "extra": tensors["bias"], "another": tensors["bias"]}, file)
    lacking, strange = faults(copy)
    assert names(lacking, "weights.safetensors", "bias")
    assert names(strange, "weights.safetensors", "another, extra")


def test_a_file_of_no_weights_at_all_is_refused_if_the_graph_takes_some(copy: Path) -> None:
    save_file({}, copy / "linear" / "1" / "weights.safetensors")
    (fault,) = faults(copy)
    assert "weight, bias" in fault


def test_weights_of_a_kind_that_cannot_be_laid_out_are_named(copy: Path) -> None:
    file = copy / "linear" / "1" / "weights.safetensors"
    save_file(load_file(file) | {"bias": np.zeros(3, np.complex64)}, file)
    (fault,) = faults(copy)
    assert "bias" in fault
    assert "C64" in fault


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("batch_max = 8", "batch_max = 0", "batch_max"),
        ("batch_max = 8", "batch_max = 1025", "batch_max"),
        ("batch_max = 8", 'batch_max = "8"', "batch_max"),
        ("batch_max = 8", "slo_ms = 0", "slo_ms"),
        ("batch_max = 8", "slo_ms = 600001", "slo_ms"),
        ("batch_max = 8", "batchmax = 8", "batchmax"),
        ('graph = "graph.pt2"', 'grahp = "graph.pt2"', "grahp"),
        ('name = "x"', 'nome = "x"', "nome"),
        ('name = "x"', 'name = ""', "inputs[0].name"),
        ('dtype = "float32"\nshape = [-1, 4]', 'dtype = "float32"', "inputs[0]"),
        ("shape = [-1, 3]", "shape = [1.5, 3]", "outputs[0].shape[0]"),
        ("shape = [-1, 3]", 'shape = ["a", 3]', "outputs y: shape"),
        ("[architecture]", "[arcitecture]", "arcitecture"),
        ("[[inputs]]", "[[input]]", "input"),
        ("[[outputs]]", "outputs = [", "line"),
    ],
)
def test_a_wrong_or_unknown_key_of_the_manifest_is_named(copy: Path, old: str, new: str, fault: str) -> None:
    assert old in MANIFEST
    told = faults(write(copy, MANIFEST.replace(old, new, 1)))
    assert all(sentence.startswith("model.toml: ") for sentence in told)
    assert fault in told[0]


def test_every_fault_of_a_manifest_is_told_at_once(copy: Path) -> None:
    broken = MANIFEST.replace("batch_max = 8", 'batch_max = 0\nslo_ms = -3\ncolour = "red"')
    broken = broken.replace("shape = [-1, 4]", "shape = [3, 4]").replace('name = "y"', "name = 5")
    assert [told.split(":")[1].strip() for told in faults(write(copy, broken))] == [
        "colour", "outputs[0].name", "batch_max", "slo_ms", "inputs x",
    ]  # fmt: skip


def test_a_manifest_of_more_tensors_than_a_model_may_have_is_refused(copy: Path) -> None:
    many = "".join(f'\n[[outputs]]\nname = "y{i}"\ndtype = "float32"\nshape = [-1, 3]\n' for i in range(64))
    (fault,) = faults(write(copy, MANIFEST + many))
    assert fault.startswith("model.toml: outputs")


@pytest.mark.parametrize("batch_max", [1, 1024])
def test_the_largest_batch_may_be_small_or_large(copy: Path, batch_max: int) -> None:
    manifest = MANIFEST.replace("batch_max = 8", f"batch_max = {batch_max}")
    assert read_package(write(copy, manifest), "linear:1", ()).spec.batch_max == batch_max


def test_a_manifest_that_is_no_text_is_refused(copy: Path) -> None:
    (copy / "linear" / "1" / "model.toml").write_bytes(b"\xff\xfe\x00")
    (fault,) = faults(copy)
    assert fault.startswith("model.toml: ")


@pytest.mark.parametrize("shape", ["[]", "[4]", "[4, -1]", "[-1, 0]", "[-1, -1]", "[-1, 4, -2]"])
def test_a_shape_has_the_batch_first_and_then_positive_extents(copy: Path, shape: str) -> None:
    (fault,) = faults(write(copy, MANIFEST.replace("[-1, 4]", shape)))
    assert fault.startswith("model.toml: inputs x: shape")


def test_a_dtype_that_cannot_travel_is_named_with_those_that_can(copy: Path) -> None:
    (fault,) = faults(write(copy, MANIFEST.replace("float32", "bfloat16", 1)))
    assert fault.startswith("model.toml: inputs x: dtype")
    assert names(fault, "'bfloat16'", "float32,")


def test_a_name_that_occurs_twice_is_refused(copy: Path) -> None:
    twice = MANIFEST + '[[outputs]]\nname = "y"\ndtype = "float32"\nshape = [-1, 3]\n'
    (fault,) = faults(write(copy, twice))
    assert fault.startswith("model.toml: outputs: ")


def test_a_factory_is_called_only_if_it_is_allowed(copy: Path) -> None:
    manifest = MANIFEST.replace('graph = "graph.pt2"', 'factory = "os:system"')
    for allow, told in ((("torch.nn",), "torch.nn"), ((), "nothing")):
        (fault,) = faults(write(copy, manifest), allow=allow)
        assert fault.startswith("model.toml: architecture.factory 'os:system'")
        assert names(fault, f"GEARMESH_FACTORY_ALLOW has {told}")


@pytest.mark.parametrize("architecture", ["", 'graph = "graph.pt2"\nfactory = "torch.nn:Linear"'])
def test_an_architecture_is_either_a_graph_or_a_factory(copy: Path, architecture: str) -> None:
    (fault,) = faults(write(copy, MANIFEST.replace('graph = "graph.pt2"', architecture)), allow=("torch.nn",))
    assert fault.startswith("model.toml: architecture: ")


@pytest.mark.parametrize("graph", ["../1/graph.pt2", "../2/graph.pt2", "/etc/passwd", "sub/graph.pt2", "."])
def test_a_graph_lies_in_the_version_s_own_folder(copy: Path, graph: str) -> None:
    (copy / "linear" / "1" / "sub").mkdir()
    shutil.copy(copy / "linear" / "1" / "graph.pt2", copy / "linear" / "1" / "sub")
    (fault,) = faults(write(copy, MANIFEST.replace("graph.pt2", graph)))
    assert fault.startswith(f"{graph}: ")
    assert names(fault, "1/")


def test_a_graph_that_is_no_archive_is_refused(copy: Path) -> None:
    (copy / "linear" / "1" / "graph.pt2").write_bytes(b"not a zip file")
    assert faults(copy)[0].startswith("graph.pt2: ")


def test_a_graph_that_is_cut_short_is_refused(copy: Path) -> None:
    file = copy / "linear" / "1" / "graph.pt2"
    file.write_bytes(file.read_bytes()[:-100])
    assert faults(copy)[0].startswith("graph.pt2: ")


def drop_order(entries: dict[str, bytes]) -> None:
    for name in [name for name in entries if name.endswith("gearmesh.json")]:
        del entries[name]


def test_a_graph_that_our_export_did_not_write_is_refused(copy: Path) -> None:
    rewrite(copy / "linear" / "1" / "graph.pt2", drop_order)
    assert faults(copy)[0].startswith("graph.pt2: ")
    assert names(faults(copy)[0], "gearmesh.json")


def test_a_graph_whose_list_of_weights_is_damaged_is_refused(repository: Repository, tmp_path: Path) -> None:
    for number, order in enumerate(["{}", "[]", "7", "not json", '{"weights": 7}', '{"weights": null}']):

        def damage(entries: dict[str, bytes], order: str = order) -> None:
            (name,) = [name for name in entries if name.endswith("gearmesh.json")]
            entries[name] = order.encode()

        folder = tmp_path / str(number)
        shutil.copytree(repository.folder / "linear", folder / "linear")
        rewrite(folder / "linear" / "1" / "graph.pt2", damage)
        assert faults(folder)[0].startswith("graph.pt2: "), order


def test_all_faults_are_told_at_once(copy: Path) -> None:
    manifest = MANIFEST.replace("[-1, 4]", "[4]").replace('"float32"', '"float"').replace("graph.pt2", "other.pt2")
    (copy / "linear" / "1" / "weights.safetensors").unlink()
    told = faults(write(copy, manifest))
    assert [fault.split(":")[0] for fault in told] == [
        "model.toml", "model.toml", "model.toml", "other.pt2", "weights.safetensors",
    ]  # fmt: skip


def test_a_broken_manifest_does_not_hide_what_else_is_wrong(copy: Path) -> None:
    (copy / "linear" / "1" / "model.toml").unlink()
    (copy / "linear" / "1" / "weights.safetensors").unlink()
    assert {fault.split(":")[0] for fault in faults(copy)} == {"model.toml", "weights.safetensors"}


def test_the_error_reads_as_one_sentence_or_as_a_list_for_a_person(copy: Path) -> None:
    for file in ("weights.safetensors", "graph.pt2"):
        (copy / "linear" / "1" / file).unlink()
        with pytest.raises(PackageError) as caught:
            read_package(copy, "linear:1", ())
        lines = str(caught.value).splitlines()
        assert len(lines) == (1 if len(caught.value.faults) == 1 else 1 + len(caught.value.faults))
        assert all(fault in str(caught.value) for fault in [caught.value.code, *caught.value.faults])


def test_a_version_s_own_manifest_goes_before_the_one_of_all_versions(copy: Path) -> None:
    own, shared = copy / "linear" / "1" / "model.toml", copy / "linear" / "model.toml"
    shared.write_text(MANIFEST.replace("batch_max = 8", "batch_max = 5"))
    assert read_package(copy, "linear:1", ()).spec.batch_max == 8
    own.unlink()
    assert read_package(copy, "linear:1", ()).spec.batch_max == 5


def test_a_package_can_be_read_again_and_is_equal(repository: Repository) -> None:
    first: Package = repository.package("linear:1")
    assert first == repository.package("linear:1")
    assert first != repository.package("linear:2")
