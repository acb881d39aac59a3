"""Packages that somebody wrote to harm whoever reads them: each does one thing to a sound copy of linear:1.

Whatever would run makes the folder `ran` beside the repository; no test may find it.
"""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.codes import PackageCode

ROOT = "graph/"
MODEL = "models/model.json"
UNSAFE, BAD, FAILED = PackageCode.UNSAFE_PACKAGE, PackageCode.BAD_PACKAGE, PackageCode.FORWARD_FAILED
Spoil = Callable[[Path, str], None]  # (the version's folder, code in Python that makes the folder `ran`)
Change = Callable[[dict[str, Any], str], None]  # (the graph's JSON, the code)


@dataclass(frozen=True, slots=True)
class Hostile:
    """One such package. `code`: how it is refused; None: it is harmless, as what is hostile in it is never read."""

    name: str
    spoil: Spoil
    code: PackageCode | None


class Bomb:
    """Whoever loads a pickle of it runs the code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.code,)


def pickled(code: str) -> bytes:
    """Returns a pickle that runs the code."""
    return pickle.dumps(Bomb(code))


def no_archive(folder: Path, code: str) -> None:
    (folder / "graph.pt2").write_bytes(pickled(code))


# -- archives ---------------------------------------------------------------------------------------------------------


def entries_of(file: Path) -> dict[str, bytes]:
    """Returns {entry: its bytes} of an archive."""
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(file: Path, entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The file is an archive of these entries."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def root_of(entries: Mapping[str, bytes]) -> str:
    """Returns the archive's folder."""
    return next(iter(entries)).partition("/")[0] + "/"


def with_entry(name: str, content: Callable[[str], bytes]) -> Spoil:
    """One more entry is in the archive, or another one in its place."""

    def spoil(folder: Path, code: str) -> None:
        file = folder / "graph.pt2"
        entries = entries_of(file)
        write_archive(file, entries | {root_of(entries) + name: content(code)})

    return spoil


def compressed(folder: Path, code: str) -> None:
    """Little on the disk is 64 MiB in memory."""
    file = folder / "graph.pt2"
    entries = entries_of(file)
    bomb = entries[root_of(entries) + MODEL] + b" " * (64 << 20)
    write_archive(file, entries | {root_of(entries) + MODEL: bomb}, zipfile.ZIP_DEFLATED)


def large_by_its_own_word(folder: Path, code: str) -> None:
    """The list of entries says that one has a terabyte."""
    file = folder / "graph.pt2"
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(MODEL.encode()))
    struct.pack_into("<II", content, at + 20, 0xFFFFFF00, 0xFFFFFF00)
    file.write_bytes(content)


def many_entries(folder: Path, code: str) -> None:
    """The list of entries says that it is longer than any that is read, and is."""
    file = folder / "graph.pt2"
    content = file.read_bytes()
    end = bytearray(content[-22:])
    struct.pack_into("<II", end, 12, 20 << 20, len(content) - 22)
    file.write_bytes(content[:-22] + bytes(20 << 20) + bytes(end))


def twice(folder: Path, code: str) -> None:
    """Two entries have one name: one for who checks, and one for who runs."""
    file = folder / "graph.pt2"
    entries = entries_of(file)
    text = entries[root_of(entries) + MODEL]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr(f"other/{MODEL}", text)


def encrypted(folder: Path, code: str) -> None:
    """The entries say that they are encrypted."""
    file = folder / "graph.pt2"
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(MODEL.encode()))
    content[at + 8] |= 1
    file.write_bytes(content)


def changed(file: Path, change: Change, code: str) -> None:
    """The graph's JSON in this archive is changed."""
    entries = entries_of(file)
    name = root_of(entries) + MODEL
    found = json.loads(entries[name])
    change(found, code)
    write_archive(file, entries | {name: json.dumps(found).encode()})


def graph(change: Change) -> Spoil:
    """The graph's JSON is changed."""
    return lambda folder, code: changed(folder / "graph.pt2", change, code)


def text(replaced: Callable[[bytes], bytes]) -> Spoil:
    """The text of the graph's JSON is changed."""

    def spoil(folder: Path, code: str) -> None:
        file = folder / "graph.pt2"
        entries = entries_of(file)
        name = root_of(entries) + MODEL
        write_archive(file, entries | {name: replaced(entries[name])})

    return spoil


def node(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the only operation of linear:1."""
    (only,) = found["graph_module"]["graph"]["nodes"]
    assert isinstance(only, dict)
    return only


def target(name: str) -> Spoil:
    """The graph calls something else."""
    return graph(lambda found, code: node(found).update(target=name))


def argument(kind: str, value: Any) -> Spoil:
    """The operation is given another argument in place of its input; `value` may be made of the code."""

    def change(found: dict[str, Any], code: str) -> None:
        node(found)["inputs"][0]["arg"] = {kind: value(code) if callable(value) else value}

    return graph(change)


def nested(depth: int) -> bytes:
    return b'{"x":' * depth + b"1" + b"}" * depth


def with_parts(found: dict[str, Any], code: str) -> None:
    """Graphs within graphs, more than anybody writes."""
    part = {"inputs": [], "outputs": [], "nodes": [], "tensor_values": {}}
    for _ in range(40):
        call = {"target": "torch.ops.higher_order.cond", "outputs": []}
        call["inputs"] = [{"name": "", "arg": {"as_graph": {"name": "g", "graph": part}}, "kind": 1}]
        part = {"inputs": [], "outputs": [], "nodes": [call], "tensor_values": {}}
    node(found).update(part["nodes"][0])


def named(found: dict[str, Any], code: str) -> None:
    """Names of values are code."""
    inner, outer = f"x\n    {code}\n    y", f"y = {code}"
    replaced = json.dumps(found).replace('"name": "linear"', json.dumps({"name": outer})[1:-1])
    replaced = replaced.replace('"flat_2"', json.dumps(inner))
    found.clear()
    found.update(json.loads(replaced))


def of_expressions(found: dict[str, Any], code: str) -> None:
    """Every open extent is an expression that would run when it is parsed."""
    for value in found["graph_module"]["graph"]["tensor_values"].values():
        for extent in value["sizes"]:
            if "as_expr" in extent:
                extent["as_expr"]["expr_str"] = code
    found["range_constraints"][code] = {"min_val": 1, "max_val": 8}


def of_structures(found: dict[str, Any], code: str) -> None:
    """Structures name modules to import, and what to call of them."""
    context = json.dumps({"default_factory_module": "os", "default_factory_name": "getcwd", "dict_context": "[]"})
    spec = json.dumps([1, {"type": "collections.defaultdict", "context": context, "children_spec": []}])
    for call in found["graph_module"]["module_call_graph"]:
        if call["signature"]:
            call["signature"].update(in_spec=spec, out_spec=spec)


ARCHIVES = (
    Hostile("a pickle of inputs", with_entry("data/sample_inputs/model.pt", pickled), UNSAFE),
    Hostile("a pickle of constants", with_entry("data/constants/model.pt", pickled), UNSAFE),
    Hostile("a pickle of weights", with_entry("data/weights/model.pt", pickled), UNSAFE),
    Hostile("an object", with_entry("data/constants/custom_obj_0", pickled), UNSAFE),
    Hostile("an opaque object", with_entry("data/constants/opaque_obj_0", pickled), UNSAFE),
    Hostile("a pickle as a tensor that nothing reads", with_entry("data/constants/tensor_0", pickled), None),
    Hostile("a compiled library", with_entry("data/aotinductor/model/m.so", lambda code: b"\x7fELF"), UNSAFE),
    Hostile("a module", with_entry("code.py", str.encode), UNSAFE),
    Hostile("another model", with_entry("models/other.json", lambda code: b"{}"), UNSAFE),
    Hostile("a path out of the archive", with_entry("../../code.py", str.encode), UNSAFE),
    Hostile("no notes", with_entry("extra/gearmesh.json", lambda code: b"[1]"), BAD),
    Hostile("notes as deep as nothing", with_entry("extra/gearmesh.json", lambda code: nested(100_000)), BAD),
    Hostile("a graph as large as a movie", compressed, UNSAFE),
    Hostile("an entry of a terabyte", large_by_its_own_word, UNSAFE),
    Hostile("a long list of entries", many_entries, UNSAFE),
    Hostile("two graphs", twice, UNSAFE),
    Hostile("encrypted entries", encrypted, UNSAFE),
    Hostile("no archive", no_archive, BAD),
)
TARGETS = (
    "os.system", "builtins.eval", "torch.load", "torch.hub.load", "torch.ops.load_library", "torch.classes.x.y",
    "_operator.attrgetter", "_operator.methodcaller", "_operator.call", "math.__loader__.load_module", "#x:y",
    "torch.ops.aten.from_file.default", "torch.ops.aten.save.default", "torch.ops.aten.set_.source_Storage",
    "torch.ops.aten.__class__.__base__", "torch.ops.aten.add.__class__", "torch.ops.aten.as_strided_.default",
    "torch.ops.aten._sparse_coo_tensor_unsafe.default", "torch.ops.aten.empty_strided.default", "torch.ops.prims.add",
    "torch.ops.higher_order.triton_kernel_wrapper_functional", "torch.ops.higher_order.__init__", "torch.ops.x.y.z",
    "torch._C._jit_get_operation", "torch.ops.aten.linear.default\n", "torch.ops.aten.linear",
)  # fmt: skip
GRAPHS = (
    *(Hostile(f"a call of {name!r}", target(name), UNSAFE) for name in TARGETS),
    Hostile("an operation that does not exist", target("torch.ops.aten.nothing_of_the_kind.default"), BAD),
    Hostile("an object as an argument", argument("as_custom_obj", {"name": "x", "class_fqn": "y"}), BAD),
    Hostile("a function as an argument", argument("as_operator", "os.system"), BAD),
    Hostile("two arguments in one", graph(lambda found, code: node(found)["inputs"][0]["arg"].update(as_int=1)), BAD),
    Hostile("code as an argument", argument("as_string", lambda code: f"'); {code}; ('"), FAILED),
    Hostile("a number of many digits", text(lambda t: t.replace(b'"major": 8', b'"major": ' + b"9" * 5000)), BAD),
    Hostile("an argument of 70 bits", argument("as_int", 2**70), BAD),
    Hostile("a dtype that is none", argument("as_scalar_type", 77), BAD),
    Hostile("a device that is none", argument("as_device", {"type": "os", "index": None}), BAD),
    Hostile("a number that is code", argument("as_float", lambda code: code), BAD),
    Hostile("an argument's name that is code", graph(
        lambda found, code: node(found)["inputs"][0].update(name=f"input={code}")), BAD),
    Hostile("a value that nothing computes", argument("as_tensor", {"name": "nothing"}), BAD),
    Hostile("an input twice", text(lambda t: t.replace(b'"flat_1"', b'"flat_0"')), BAD),
    Hostile("values named as code", graph(named), None),
    Hostile("extents that are code", graph(of_expressions), None),
    Hostile("guards that are code", graph(lambda found, code: found.update(guards_code=[code])), None),
    Hostile("structures that import", graph(of_structures), None),
    Hostile("notes that are code", graph(
        lambda found, code: node(found)["metadata"].update(nn_module_stack=code, torch_fn=code, custom=code)), None),
    Hostile("graphs forty deep", graph(with_parts), UNSAFE),
    Hostile("JSON as deep as nothing", text(lambda t: t[:-1] + b', "more": ' + nested(100_000) + b"}"), BAD),
    Hostile("values by the million", text(lambda t: t[:-1] + b', "more": [' + b"{}," * 1_000_000 + b"{}]}"), UNSAFE),
    Hostile("a schema of another year", text(lambda t: t.replace(b'"major": 8', b'"major": 9')), BAD),
    Hostile("no JSON", text(lambda t: b"\xff" + t), BAD),
)  # fmt: skip


# -- weights ----------------------------------------------------------------------------------------------------------


def header(change: Callable[[dict[str, Any]], object], *, length: int | None = None, more: int = 0) -> Spoil:
    """The header of weights.safetensors is changed: `length` is what it says, `more` bytes follow its data."""

    def spoil(folder: Path, code: str) -> None:
        file = folder / "weights.safetensors"
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        found = json.loads(content[8:end])
        change(found)
        made = json.dumps(found).encode()
        size = (len(made) if length is None else length).to_bytes(8, "little")
        file.write_bytes(size + made + content[end:] + bytes(more))

    return spoil


def tensor(name: str, **fields: Any) -> Spoil:
    """An entry of the header has other fields."""
    return header(lambda found: found[name].update(fields))


def same(found: dict[str, Any]) -> None:
    """Nothing is changed."""


def deep_header(folder: Path, code: str) -> None:
    made = nested(100_000)
    (folder / "weights.safetensors").write_bytes(len(made).to_bytes(8, "little") + made)


def sparse(folder: Path, code: str) -> None:
    """A terabyte of zeros, which takes no room on the disk."""
    made = json.dumps({"weight": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    with (folder / "weights.safetensors").open("wb") as file:
        file.write(len(made).to_bytes(8, "little") + made)
        file.truncate(8 + len(made) + (1 << 40))
    (folder / "graph.pt2").unlink()
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text().replace('graph = "graph.pt2"', 'factory = "torch.nn:Linear"'))


HEADERS = (
    Hostile("a header of all memory", header(same, length=2**62), BAD),
    Hostile("a header of more than it has", header(same, length=1 << 20), BAD),
    Hostile("a header as deep as nothing", deep_header, BAD),
    Hostile("tensors that overlap", tensor("weight", data_offsets=[0, 48]), BAD),
    Hostile("tensors with a gap", header(lambda found: found["bias"].update(data_offsets=[100, 112]), more=40), BAD),
    Hostile("a tensor behind the end", tensor("bias", data_offsets=[2**40, 2**40 + 12]), BAD),
    Hostile("a tensor that ends before it begins", tensor("bias", data_offsets=[12, 0]), BAD),
    Hostile("offsets below zero", tensor("bias", data_offsets=[-12, 0]), BAD),
    Hostile("an extent below zero", tensor("bias", shape=[-3]), BAD),
    Hostile("a shape of more than there is", tensor("bias", shape=[2**40]), BAD),
    Hostile("a shape whose product has no end", tensor("bias", shape=[2**61] * 30), BAD),
    Hostile("a shape of a thousand extents", tensor("bias", shape=[1] * 1000), BAD),
    Hostile("a shape of fractions", tensor("bias", shape=[3.0]), BAD),
    Hostile("a dtype of nothing", tensor("bias", dtype="OBJECT"), BAD),
    Hostile("a tensor of an unknown kind", tensor("bias", code="x"), BAD),
    Hostile("a name of a thousand letters", header(lambda found: found.update({"x" * 1000: found.pop("bias")})), BAD),
    Hostile("bytes that belong to nothing", header(same, more=1), BAD),
)


# -- model.toml -------------------------------------------------------------------------------------------------------


def manifest(old: str, new: str) -> Spoil:
    """model.toml has other text."""

    def spoil(folder: Path, code: str) -> None:
        file = folder / "model.toml"
        found = file.read_text()
        assert old in found
        file.write_text(found.replace(old, new.replace("CODE", code)))

    return spoil


FACTORY = 'factory = "torch.nn:Linear"\nfactory_args = '
GRAPH = 'graph = "graph.pt2"'
BARE, QUOTED = "a" + ".a" * 100_000, '"a"' + " . 'a'" * 100_000
LONG_KEYS = {
    "bare": f"{BARE} = 1", "quoted": f"{QUOTED} = 1", "in a table": f"x = {{{BARE} = 1}}", "of a table": f"[{BARE}]",
    "behind a text": f'x = "\\"#"\n{BARE} = 1', "behind lines": f"x = {chr(39) * 3}\n#{chr(39) * 3}\n{BARE} = 1",
}  # fmt: skip
FIELDS = "".join(f"k{i} = 1\n" for i in range(50_000))
LABELS = '"a",' * 100_001
MANIFESTS = (
    *(Hostile(f"a budget of {value}", manifest("slo_ms = 1000.0", f"slo_ms = {value}"), BAD)
      for value in ("nan", "inf", "-inf", "-1.0", "0.0", "1e300", '"CODE"')),
    *(Hostile(f"batches of {value}", manifest("batch_max = 8", f"batch_max = {value}"), BAD)
      for value in ("0", "-1", "1025", "9" * 30, "9" * 5000, "1.5", "true")),
    *(Hostile(f"rows of {value}"[:60], manifest("[-1, 4]", f"[-1, {value}]"), BAD)
      for value in ("4294967296, 4294967296", "0", "-4", "9" * 30, "2147483648", ", ".join(["1"] * 64))),
    Hostile("outputs of terabytes", manifest("[-1, 3]", "[-1, 1099511627776]"), BAD),
    Hostile("a name over two lines", manifest('name = "x"', 'name = "x\\nready"'), BAD),
    Hostile("more labels than classes", manifest("labels = []", f"labels = [{LABELS}]"), BAD),
    Hostile("values as deep as nothing", manifest("labels = []", f"labels = {'[' * 50_000}{']' * 50_000}"), UNSAFE),
    *(Hostile(f"a key of many parts, {kind}", manifest("labels = []", f"labels = []\n{line}"), UNSAFE)
      for kind, line in LONG_KEYS.items()),
    Hostile("fields by the thousand", manifest("labels = []", "labels = []\n" + FIELDS), BAD),
    Hostile("a text of megabytes", manifest("labels = []", f"labels = []\n#{' ' * (2 << 20)}"), UNSAFE),
    *(Hostile(f"a graph at {path}", manifest(GRAPH, f'graph = "{path}"'), BAD)
      for path in ("../../../other/1/graph.pt2", "/etc/passwd", "code.py", ".", "weights.safetensors", "x" * 200)),
    *(Hostile(f"a factory {name}", manifest(GRAPH, f'factory = "{name}"'), BAD)
      for name in ("os:system", "torch.nn:_reduction", "torch.nn:Linear.__init__", "torch.nn", "torch.nn:", "../x:y")),
    Hostile("a factory that fetches", manifest(GRAPH, FACTORY + "{pretrained = true}"), UNSAFE),
    Hostile("a factory of texts", manifest(GRAPH, FACTORY + '{device = "CODE"}'.replace("CODE", "x")), UNSAFE),
    Hostile("a factory of tables", manifest(GRAPH, FACTORY + "{x = {y = 1}}"), BAD),
)  # fmt: skip


# -- files ------------------------------------------------------------------------------------------------------------


def pipe(name: str) -> Spoil:
    """Whoever opens it waits for ever."""

    def spoil(folder: Path, code: str) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def link(name: str) -> Spoil:
    """A file of somebody else, which the link's author may not read."""

    def spoil(folder: Path, code: str) -> None:
        other = folder.parents[2] / f"somebody's {name}"
        (folder / name).rename(other)
        (folder / name).symlink_to(other)

    return spoil


def subfolder(name: str) -> Spoil:
    def spoil(folder: Path, code: str) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def linked_version(folder: Path, code: str) -> None:
    other = folder.parents[2] / "somebody's version"
    folder.rename(other)
    folder.symlink_to(other)


FILES = ("model.toml", "graph.pt2", "weights.safetensors", "example.safetensors")
ON_DISK = (
    *(Hostile(f"a pipe as {name}", pipe(name), UNSAFE) for name in FILES),
    *(Hostile(f"a link as {name}", link(name), UNSAFE) for name in FILES),
    *(Hostile(f"a folder as {name}", subfolder(name), UNSAFE) for name in FILES),
    Hostile("a link as the version", linked_version, UNSAFE),
)
# what no check without torch can see: workers refuse it
LATE = (
    Hostile("a factory of another library", manifest(GRAPH, 'factory = "torch.nn.functional:Callable"'), UNSAFE),
    Hostile("a factory that makes no module", manifest(GRAPH, 'factory = "torch.nn.parameter:Parameter"'), BAD),
)
ALL = (*ARCHIVES, *GRAPHS, *HEADERS, *MANIFESTS, *ON_DISK)
