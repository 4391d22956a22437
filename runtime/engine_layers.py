"""The list of layers that TensorRT compiled: read it, count it, prove from it that the precision asked for was built.

With `ProfilingVerbosity.DETAILED` TensorRT prints one line per compiled layer:
`Name: …, LayerType: …, Inputs: [ { Name: …, Dimensions: […], …, Datatype: Half, … }], Constants: […], Outputs: […],
…, Metadata: [ONNX Layer: /conv1/Conv][ONNX Layer: /relu/Relu]`. TensorRT 10 writes `Format/Datatype` and
`Weights: {"Type": …}` instead of `Datatype` and `Constants`. TensorRT for RTX calls a convolution `correlation`, a
transposed one `deconv`, and what it compiles on the device from several operations `runtime_fusion`, with their
abbreviations in its name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errors import BackendError

LEAST_SHARE = 0.9
"""Share of a network's convolutions that must be shown in the precision asked for. Not 1: of a quantised net the
transposed convolution of a mask head and a first or last layer stay in floating point on purpose."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
CONVOLUTION, MATMUL, OTHER = "conv", "matmul", "other"
_WORDS = {CONVOLUTION: "convolutions", MATMUL: "matrix multiplications", "quantized": "quantised layers"}

_DTYPES = {
    **dict.fromkeys(("Float", "FP32"), "fp32"),
    **dict.fromkeys(("Half", "FP16"), "fp16"),
    **dict.fromkeys(("BFloat16", "BF16"), "bf16"),
    **dict.fromkeys(("FP8", "E4M3"), "fp8"),
    **dict.fromkeys(("FP4", "E2M1"), "fp4"),
    **{name: name.lower() for name in ("Int4", "Int8", "Int32", "Int64", "UInt8", "Bool")},
}
_FIELD = re.compile(
    r"(?:^|, )(Name|LayerType|Inputs|Constants|Outputs|Weights|ParameterType|TacticName|StreamId|Metadata): ?"
)
_DTYPE = re.compile(r"Data[Tt]ype\"?: \"?([^,}]*)")
_WEIGHT_TYPE = re.compile(r"\"?Type\"?: \"?(\w+)")
_DIMENSIONS = re.compile(r"Dimensions: \[([-\d,]*)\]")
_ONNX_NAME = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_FUSED_NAME = re.compile(r"__myl_([A-Za-z]+?)_myl\d")
_FUSED_CONVOLUTION = {"Corr", "Conv", "Deco"}
_FUSED_MATMUL = {"Fc", "Gemm", "Matm", "Bmm"}


@dataclass(frozen=True)
class EngineLayer:
    """One compiled layer: what kind of work it does, in which datatype it computes, from which ONNX nodes it came."""

    name: str
    layer_type: str  # TensorRT's own word: "correlation", "gemm", "kgen", "CaskConvolution", …
    kind: str  # "conv", "matmul" or "other"
    dtype: (
        str  # of the multiplications: "fp32", "fp16", …; "none" without tensors, "unknown" where the line does not say
    )
    onnx_nodes: tuple[str, ...]


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers of TensorRT's detailed list (the text that starts with `Layers:`).

    Raises BackendError for a text without layers and for any line of the list that does not read as a layer: a list
    that is only half understood proves nothing.
    """
    lines = text.strip().split(
        "\n"
    )  # not splitlines: TensorRT separates metadata by ASCII 30, which that splits at too
    if lines[0].strip() != "Layers:":
        raise BackendError(_unreadable(lines[0]))
    layers = []
    for line in lines[1:]:
        if not line.strip():
            break
        layers.append(_parse_layer(line.strip()))
    if not layers:
        raise BackendError(_unreadable("a list of no layers"))
    return tuple(layers)


def count_by_kind(layers: Iterable[EngineLayer]) -> dict[str, dict[str, int]]:
    """How many layers of each kind compute in each datatype: `{"conv": {"fp16": 53}, "matmul": {…}, "other": {…}}`."""
    counts: dict[str, dict[str, int]] = {CONVOLUTION: {}, MATMUL: {}, OTHER: {}}
    for layer in layers:
        of_kind = counts[layer.kind]
        of_kind[layer.dtype] = of_kind.get(layer.dtype, 0) + 1
    return counts


def work_by_dtype(layers: Iterable[EngineLayer], work: Mapping[str, float]) -> dict[str, float]:
    """`work` (multiplications and additions by ONNX node name) summed by the datatype that the node was compiled in.

    A node that no compiled convolution or matrix multiplication names counts as "unknown", one in several as "mixed".
    """
    found: dict[str, set[str]] = {node: set() for node in work}
    for layer in layers:
        if layer.kind in (CONVOLUTION, MATMUL):
            for node in layer.onnx_nodes:
                if node in found:
                    found[node].add(layer.dtype)
    total: dict[str, float] = {}
    for node, dtypes in found.items():
        dtype = "unknown" if not dtypes else "mixed" if len(dtypes) > 1 else next(iter(dtypes))
        total[dtype] = total.get(dtype, 0.0) + work[node]
    return total


def prove_precision(
    layers: Sequence[EngineLayer], convolutions: Sequence[str], precision: str, quantized: Sequence[str] = ()
) -> dict[str, object]:
    """Proof that at least `LEAST_SHARE` of the network's convolutions were compiled in `precision`.

    `convolutions` are the ONNX node names of the parsed network's (transposed) convolutions. Each must be named by
    compiled convolutions or matrix multiplications (which 1×1 convolutions become), all of them in that precision; one
    that is not found counts against the proof. A network without convolutions (a box head alone) is judged by its
    compiled matrix multiplications instead. `quantized`: names of the layers that the ONNX file has in 8 bits; then it
    is these, convolutions or not, that must be found in `precision`, and no others.
    Returns `{"of": "conv", "layers": …, "in_precision": …, "share": …}` for the birth certificate; raises BackendError.
    """
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r} cannot be proved: expected one of {', '.join(PRECISIONS)}")
    found: dict[str, set[str]]
    if convolutions or quantized:
        kind = "quantized" if quantized else CONVOLUTION
        found = {node: set() for node in quantized or convolutions}
        for layer in layers:
            if layer.kind in (CONVOLUTION, MATMUL):
                for node in layer.onnx_nodes:
                    if node in found:
                        found[node].add(layer.dtype)
    else:
        kind = MATMUL
        found = {layer.name: {layer.dtype} for layer in layers if layer.kind == MATMUL}
    if not found:
        raise BackendError(
            f"no proof that {precision} was built: the engine shows neither a convolution nor a matrix multiplication"
        )
    others = {node: "+".join(sorted(dtypes)) or "not found" for node, dtypes in found.items() if dtypes != {precision}}
    share = 1 - len(others) / len(found)
    if share < LEAST_SHARE:
        shown = ", ".join(f"{node} ({dtype})" for node, dtype in list(others.items())[:3])
        raise BackendError(
            f"asked for {precision}, but TensorRT's list of compiled layers shows only {len(found) - len(others)} of "
            f"{len(found)} {_WORDS[kind]} in it (at least "
            f"{LEAST_SHARE:.0%} are needed): {shown}{', …' if len(others) > 3 else ''}; is the ONNX file really "
            f"{precision}? Export it again with `regionrt export --precision {precision}`"
        )
    return {"of": kind, "layers": len(found), "in_precision": len(found) - len(others), "share": round(share, 4)}


def _parse_layer(line: str) -> EngineLayer:
    fields = _fields(line)
    if not {"Name", "LayerType", "Inputs", "Outputs"} <= fields.keys() or not fields["LayerType"]:
        raise BackendError(_unreadable(line))
    name, layer_type = fields["Name"], fields["LayerType"]
    nodes = _ONNX_NAME.findall(fields.get("Metadata", "")) or [part.strip() for part in name.split(" + ")]
    return EngineLayer(name, layer_type, _kind(name, layer_type), _compute_dtype(fields), tuple(nodes))


def _fields(line: str) -> dict[str, str]:
    marks = list(_FIELD.finditer(line))
    fields: dict[str, str] = {}
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(line)
        fields.setdefault(mark[1], line[mark.end() : end].strip())
    return fields


def _kind(name: str, layer_type: str) -> str:
    fused = _FUSED_NAME.match(name)
    operations = set(re.findall(r"[A-Z][a-z]*", fused[1])) if fused else set()
    lowered = layer_type.lower()
    if "conv" in lowered or lowered == "correlation" or operations & _FUSED_CONVOLUTION:
        return CONVOLUTION
    if "gemm" in lowered or "matrix" in lowered or "matmul" in lowered or operations & _FUSED_MATMUL:
        return MATMUL
    return OTHER


def _compute_dtype(fields: dict[str, str]) -> str:
    """The weights' datatype where an input has it too (a fused residual may come first), else the first input's."""
    inputs = [dtype for _, dtype in _tensors(fields["Inputs"])]
    weights = _weight_dtype(fields)
    if weights in inputs:
        return weights
    if inputs:
        return inputs[0]
    outputs = [dtype for _, dtype in _tensors(fields["Outputs"])]
    return outputs[0] if outputs else "none"


def _weight_dtype(fields: dict[str, str]) -> str:
    if "Weights" in fields:
        found = _WEIGHT_TYPE.search(fields["Weights"])
        return _dtype(found[1]) if found else "unknown"
    constants = _tensors(fields.get("Constants", ""))
    return max(constants, default=(0, "unknown"))[1]  # the largest constant is the weights: others are bias and scales


def _tensors(section: str) -> list[tuple[int, str]]:
    """(number of elements, datatype) of each tensor in a section."""
    tensors = []
    for part in section.split("{ Name:")[1:]:
        dimensions, dtype = _DIMENSIONS.search(part), _DTYPE.search(part)
        elements = 1
        for size in dimensions[1].split(",") if dimensions and dimensions[1] else ():
            elements *= abs(int(size))
        tensors.append((elements, _dtype(dtype[1]) if dtype else "unknown"))
    return tensors


def _dtype(text: str) -> str:
    return next((_DTYPES[word] for word in re.findall(r"\w+", text) if word in _DTYPES), "unknown")


def _unreadable(found: str) -> str:
    return (
        "no proof of the precision built: expected TensorRT's detailed list of compiled layers (`Layers:` and one "
        f"`Name: …, LayerType: …, Inputs: […], …, Outputs: […]` per line), found {found.strip()[:160]!r}; this version "
        "of TensorRT writes it in another way, report it with the output of `regionrt doctor`"
    )
