// Pasting masks on a CPU: masks in parallel, large ones in strips.

#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "rows.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int64_t kRowsPerStrip = 256;

int32_t extents(const regionrt_extents_call* call) {
    for (int64_t i = 0; i < call->count; ++i) {
        const MaskPlace place = mask_place(call->boxes + 4 * i, call->side, call->height, call->width);
        int64_t* extent = call->extents + 4 * i;
        extent[0] = place.top;
        extent[1] = place.left;
        extent[2] = place.bottom - place.top;
        extent[3] = place.right - place.left;
    }
    return 0;
}

int32_t paste(const regionrt_paste_call* call) {
    const int64_t side = call->side, photo = (int64_t)call->height * call->width;
    const int64_t strips = (call->height + kRowsPerStrip - 1) / kRowsPerStrip;
    Failure failure;
    auto strip = [&](int64_t item) {
        const int64_t index = item / strips, from = item % strips * kRowsPerStrip;
        const MaskPlace place = mask_place(call->boxes + 4 * index, call->side, call->height, call->width);
        const int64_t to = smaller<int64_t>(from + kRowsPerStrip, call->height);
        const int64_t begin = larger(place.top, from), end = smaller(place.bottom, to);
        const int64_t width = place.right - place.left;
        const bool dense = call->offsets == nullptr;
        const int64_t stride = dense ? call->width : width;
        uint8_t* out = call->out + (dense ? index * photo : call->offsets[index] - place.top * stride - place.left);
        const bool clear = dense && !call->cleared;
        if (begin >= end || width == 0) {
            if (clear) memset(out + from * stride, 0, (size_t)((to - from) * stride));
            return;
        }
        MaskRows rows(call->masks + index * side * side, place, call->side, call->threshold);
        if (rows.failed()) return failure.note();
        if (clear) memset(out + from * stride, 0, (size_t)((begin - from) * stride));
        for (int64_t y = begin; y < end; ++y) {
            uint8_t* row = out + y * stride;
            if (clear) {
                memset(row, 0, (size_t)place.left);
                memset(row + place.right, 0, (size_t)(stride - place.right));
            }
            rows.row(y, row + place.left);
        }
        if (clear) memset(out + end * stride, 0, (size_t)((to - end) * stride));
    };
    parallel_for(call->count * strips, call->threads, strip);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
