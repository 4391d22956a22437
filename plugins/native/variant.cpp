// All ops, compiled once for each variant: REGIONRT_VARIANT names it, the compiler's flags say which instructions it has.
//
// Everything is in a namespace of the variant's name, and nothing of the C++ library is used: code shared between files
// (templates, inline functions) is merged by the linker, and what was compiled for AVX-512 would then run everywhere.

#include "../detections/cpu.cpp"
#include "../mask_paste/cpu.cpp"
#include "../mask_paste/rle.cpp"
#include "../max_unpool/cpu.cpp"
#include "../merge/cpu.cpp"
#include "../nms/cpu.cpp"
#include "../proposals/cpu.cpp"
#include "../pyramid_pool/cpu.cpp"
#include "../resize/cpu.cpp"
#include "../roi_align/cpu.cpp"
#include "../roi_pool/cpu.cpp"
#include "../warp/cpu.cpp"
#include "table.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

extern const Table table = {roi_align, roi_pool, pyramid_pool, warp, nms,    proposals, detections,
                            merge,     paste,    extents,      rle,  resize, max_pool,  max_unpool};

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
