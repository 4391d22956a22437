"""Write ONNX files that share one external-data file, so that several forms of a model cost its weights once."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

INLINE_BELOW = 1024  # bytes; smaller tensors stay in the ONNX file
_PAGE, _LINE = 4096, 64  # large tensors begin on a page, so that a runtime can map them; the others on a cache line


def write_models(folder: Path, models: Mapping[str, ir.Model], weights: str = "weights.bin") -> None:
    """Write `models` (file name -> model) and their `weights` into `folder`. Equal tensors are stored once.

    The models' tensors are replaced by references to the file: use them no further than this folder lives.
    """
    places: dict[tuple[str, str], tuple[int, int]] = {}
    with open(folder / weights, "wb") as file:
        for model in models.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < INLINE_BELOW:
                    continue
                data = tensor.tobytes()
                key = (hashlib.sha256(data).hexdigest(), str(tensor.dtype))
                if key not in places:
                    align = _PAGE if len(data) >= 16 * _PAGE else _LINE
                    file.write(b"\0" * (-file.tell() % align))
                    places[key] = (file.tell(), len(data))
                    file.write(data)
                offset, length = places[key]
                value.const_value = ir.ExternalTensor(
                    weights, offset, length, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=folder
                )
    for name, model in models.items():
        ir.save(model, folder / name)
