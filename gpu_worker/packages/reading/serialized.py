"""What torch.export.save writes of a program, as far as it is read: operations, their arguments, dtypes and shapes.

What else is there (guards in Python, symbolic expressions, the author's stack, signatures of modules) is not read at
all. Fields have torch's names. Source: torch/_export/serde/schema.py, schema 8.
"""

from typing import Annotated, Any

import msgspec

SCHEMA = 8
NODES_MAX = 100_000  # operations, those of graphs within graphs included
NESTED_MAX = 16  # graphs within each other
NAME_MAX = 256
MARKS_MAX = {b"{": 1_000_000, b"[": 1_000_000, b",": 3_000_000}  # of a text; a map takes up to 300 bytes of memory

_Name = Annotated[str, msgspec.Meta(max_length=NAME_MAX)]
_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Float = float | str  # JSON has no "NaN", "Infinity", "-Infinity"


class TooLarge(ValueError):
    """The graph has more values than any that is read."""


class StoredName(msgspec.Struct):
    """A value that was computed before, or is an input."""

    name: _Name


class OpenExtent(msgspec.Struct):
    """A symbolic extent."""

    expr_str: str = ""


class StoredExtent(msgspec.Struct):
    """An extent of a tensor, or its stride: a number, or open."""

    as_int: _Int | msgspec.UnsetType = msgspec.UNSET
    as_expr: OpenExtent | msgspec.UnsetType = msgspec.UNSET


class StoredNumber(msgspec.Struct):
    """A number that may be another one for each batch: by the name of what computes it, or itself."""

    as_name: _Name | msgspec.UnsetType = msgspec.UNSET
    as_int: _Int | msgspec.UnsetType = msgspec.UNSET
    as_float: _Float | msgspec.UnsetType = msgspec.UNSET
    as_bool: bool | msgspec.UnsetType = msgspec.UNSET


class StoredOptional(msgspec.Struct):
    """A tensor, or nothing."""

    as_tensor: StoredName | msgspec.UnsetType = msgspec.UNSET
    as_none: bool | msgspec.UnsetType = msgspec.UNSET


class StoredDevice(msgspec.Struct):
    """Where a tensor is."""

    type: _Name
    index: _Int | None = None


class StoredComplex(msgspec.Struct):
    """A complex number."""

    real: _Float
    imag: _Float


class StoredArgument(msgspec.Struct):
    """One argument or result: exactly one field is set. Kinds that are not listed are refused."""

    as_tensor: StoredName | msgspec.UnsetType = msgspec.UNSET
    as_int: _Int | msgspec.UnsetType = msgspec.UNSET
    as_ints: list[_Int] | msgspec.UnsetType = msgspec.UNSET
    as_float: _Float | msgspec.UnsetType = msgspec.UNSET
    as_bool: bool | msgspec.UnsetType = msgspec.UNSET
    as_sym_int: StoredNumber | msgspec.UnsetType = msgspec.UNSET
    as_sym_ints: list[StoredNumber] | msgspec.UnsetType = msgspec.UNSET
    as_tensors: list[StoredName] | msgspec.UnsetType = msgspec.UNSET
    as_none: bool | msgspec.UnsetType = msgspec.UNSET
    as_scalar_type: _Int | msgspec.UnsetType = msgspec.UNSET
    as_device: StoredDevice | msgspec.UnsetType = msgspec.UNSET
    as_string: str | msgspec.UnsetType = msgspec.UNSET
    as_optional_tensors: list[StoredOptional] | msgspec.UnsetType = msgspec.UNSET
    as_optional_tensor: StoredOptional | msgspec.UnsetType = msgspec.UNSET
    as_layout: _Int | msgspec.UnsetType = msgspec.UNSET
    as_memory_format: _Int | msgspec.UnsetType = msgspec.UNSET
    as_floats: list[_Float] | msgspec.UnsetType = msgspec.UNSET
    as_bools: list[bool] | msgspec.UnsetType = msgspec.UNSET
    as_strings: list[str] | msgspec.UnsetType = msgspec.UNSET
    as_sym_bool: StoredNumber | msgspec.UnsetType = msgspec.UNSET
    as_sym_bools: list[StoredNumber] | msgspec.UnsetType = msgspec.UNSET
    as_sym_float: StoredNumber | msgspec.UnsetType = msgspec.UNSET
    as_sym_floats: list[StoredNumber] | msgspec.UnsetType = msgspec.UNSET
    as_complex: StoredComplex | msgspec.UnsetType = msgspec.UNSET
    as_graph: "StoredPart | msgspec.UnsetType" = msgspec.UNSET

    def only(self) -> tuple[str, Any]:
        """Returns (kind, value). Raises: ValueError unless exactly one field is set."""
        found = [(kind, value) for kind in ARGUMENT_KINDS if (value := getattr(self, kind)) is not msgspec.UNSET]
        if len(found) != 1:
            raise ValueError(
                f"an argument is of {len(found)} of the kinds {', '.join(ARGUMENT_KINDS)}; it must be of one"
            )
        return found[0]


ARGUMENT_KINDS = StoredArgument.__struct_fields__


class StoredNamedArgument(msgspec.Struct):
    """An argument of an operation."""

    name: _Name  # as the operation has it; empty for operations that take graphs
    arg: StoredArgument
    kind: int | None = None  # POSITIONAL or KEYWORD


POSITIONAL, KEYWORD = 1, 2


class StoredCall(msgspec.Struct):
    """One operation of a graph."""

    target: _Name
    inputs: list[StoredNamedArgument]
    outputs: list[StoredArgument]
    name: _Name | None = None
    is_hop_single_tensor_return: bool | None = None


class StoredTensor(msgspec.Struct):
    """The dtype and the shape of a computed tensor."""

    dtype: _Int
    sizes: list[StoredExtent]
    strides: list[StoredExtent] = []
    storage_offset: StoredExtent = msgspec.field(default_factory=StoredExtent)
    requires_grad: bool = False


class StoredGraph(msgspec.Struct):
    """Operations in their order."""

    inputs: list[StoredArgument]
    outputs: list[StoredArgument]
    nodes: list[StoredCall]
    tensor_values: dict[_Name, StoredTensor] = {}
    is_single_tensor_return: bool = False


class StoredPart(msgspec.Struct):
    """A graph that an operation takes, as a branch or the body of a loop."""

    name: _Name
    graph: StoredGraph


class StoredInput(msgspec.Struct):
    """What an input of the graph is: exactly one field is set."""

    user_input: "StoredTarget | msgspec.UnsetType" = msgspec.UNSET
    parameter: "StoredTarget | msgspec.UnsetType" = msgspec.UNSET
    buffer: "StoredTarget | msgspec.UnsetType" = msgspec.UNSET
    tensor_constant: "StoredTarget | msgspec.UnsetType" = msgspec.UNSET


class StoredTarget(msgspec.Struct):
    """Where an input comes from, or an output goes: of these names, the one that fits its kind is set."""

    parameter_name: _Name = ""
    buffer_name: _Name = ""
    tensor_constant_name: _Name = ""
    user_input_name: _Name = ""


class StoredOutput(msgspec.Struct):
    """What an output of the graph is: exactly one field is set."""

    user_output: StoredTarget | msgspec.UnsetType = msgspec.UNSET
    buffer_mutation: StoredTarget | msgspec.UnsetType = msgspec.UNSET
    parameter_mutation: StoredTarget | msgspec.UnsetType = msgspec.UNSET
    user_input_mutation: StoredTarget | msgspec.UnsetType = msgspec.UNSET


class StoredSignature(msgspec.Struct):
    """What the graph's inputs and outputs are, in their order."""

    input_specs: list[StoredInput] = []
    output_specs: list[StoredOutput] = []


class StoredCallSignature(msgspec.Struct):
    """How the whole program is called: structures as JSON texts."""

    out_spec: str = ""


class StoredModuleCall(msgspec.Struct):
    """How one module of the program is called; the first is the whole."""

    signature: StoredCallSignature | None = None


class StoredGraphModule(msgspec.Struct):
    """A graph and what its inputs and outputs are."""

    graph: StoredGraph
    signature: StoredSignature = msgspec.field(default_factory=StoredSignature)
    module_call_graph: list[StoredModuleCall] = []


class StoredRange(msgspec.Struct):
    """The least and the largest value of an open extent; None if there is no such."""

    min_val: int | None = None
    max_val: int | None = None


class StoredSchema(msgspec.Struct):
    """The version of the schema."""

    major: int


class StoredProgram(msgspec.Struct):
    """A program as it is stored."""

    graph_module: StoredGraphModule
    schema_version: StoredSchema
    range_constraints: dict[_Name, StoredRange] = {}


class StoredPayload(msgspec.Struct):
    """One weight or constant."""

    path_name: _Name  # the entry that holds its bytes, or those of several
    use_pickle: bool
    tensor_meta: StoredTensor | None = None
    is_param: bool = False


class StoredPayloads(msgspec.Struct):
    """All weights, or all constants, by name."""

    config: dict[_Name, StoredPayload]


def decode(text: bytes) -> StoredProgram:
    """Returns the program of this JSON text; its operations are not checked yet.

    Raises: ValueError with a sentence for people; TooLarge, so that no short text takes very much memory.
    """
    for mark, most in MARKS_MAX.items():
        if text.count(mark) > most:
            raise TooLarge(f"the graph in it has more than {most} values")
    try:
        found = msgspec.json.decode(text, type=StoredProgram)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"the graph in it cannot be read: {error}") from None
    if found.schema_version.major != SCHEMA:
        raise ValueError(
            f"the graph in it is of schema {found.schema_version.major}; {SCHEMA} is read: export it again"
        )
    return found


def decode_payloads(text: bytes) -> dict[str, StoredPayload]:
    """Returns {name: where a weight or constant is}. Raises: ValueError with a sentence for people."""
    try:
        return msgspec.json.decode(text, type=StoredPayloads).config
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"the list of tensors in it cannot be read: {error}") from None
