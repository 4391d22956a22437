"""`load_with_library.py LIBRARY`: what loading an engine with our plugins registers where the C++ library was built.

A program of its own: a plugin registry belongs to its process.
"""

import sys
from pathlib import Path

import tensorrt_rtx as trt

from regionrt.runtime.engine_plugins import registration
from regionrt.runtime.errors import BackendError

registration.LIBRARY = Path(sys.argv[1])
needed = [
    {"name": name, "namespace": "regionrt", "version": "1", "kind": registration.IN_PROCESS, "op": op}
    for name, op in (("RegionRoiAlignPlugin4", "roi_align"), ("RegionNmsPlugin", "nms"))
]
try:
    registration.register_to_load(trt, needed, None)  # type: ignore[arg-type]  # no kernel is to be compiled
    registration.register_to_load(trt, needed, None)  # type: ignore[arg-type]  # nor is anything registered twice
except BackendError as error:
    sys.exit(str(error))
creators = trt.get_plugin_registry().all_creators
print(" ".join(f"{each.name}" for each in creators if each.plugin_namespace == "regionrt"))
