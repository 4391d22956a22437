// RegionRoiPool on a CPU, from channels-last features: every step is a long run of channels.

#include "../native/largest.h"
#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../native/scratch.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int kRoisPooledPerItem = 8;

// All bins of one RoI, [h, w, C].
template <class T, class Out>
static void pool_roi(const regionrt_roi_pool_call* call, int64_t image, const float* roi, Out* out) {
    const int64_t channels = call->channels, row_stride = call->width * channels;
    const T* map = static_cast<const T*>(call->feature) + image * call->height * row_stride;
    const RoiAxis down = roi_axis(roi[1], roi[3], call->spatial_scale, call->out_height);
    const RoiAxis across = roi_axis(roi[0], roi[2], call->spatial_scale, call->out_width);
    for (int32_t i = 0; i < call->out_height; ++i) {
        const Range rows = bin_of(down, i, call->height);
        for (int32_t j = 0; j < call->out_width; ++j, out += channels) {
            const Range columns = bin_of(across, j, call->width);
            const T* corner = map + rows.begin * row_stride + columns.begin * channels;
            largest_cells(corner, row_stride, channels, rows.end - rows.begin, columns.end - columns.begin, out);
        }
    }
}

template <class T, class Out>
static int32_t pool(const regionrt_roi_pool_call* call) {
    const int64_t rows = call->rows, bins = (int64_t)call->out_height * call->out_width, size = bins * call->channels;
    Failure failure;
    auto few = [&](int64_t item) {
        const int64_t begin = item * kRoisPooledPerItem;
        const int64_t end = smaller<int64_t>(begin + kRoisPooledPerItem, rows * call->images);
        Scratch<float> spare(call->out_channels_last ? 0 : size);
        if (spare.failed()) return failure.note();
        for (int64_t index = begin; index < end; ++index) {
            const int64_t image = index / rows;
            const float* roi = call->rois + 4 * index;
            Out* out = static_cast<Out*>(call->out) + index * size;
            if (index - image * rows >= call->counts[image] || has_nan(roi)) {
                memset(out, 0, (size_t)size * sizeof(Out));
            } else if (call->out_channels_last) {
                pool_roi<T>(call, image, roi, out);
            } else {
                pool_roi<T>(call, image, roi, spare.get());
                channels_first(spare.get(), bins, call->channels, out);
            }
        }
    };
    parallel_for((rows * call->images + kRoisPooledPerItem - 1) / kRoisPooledPerItem, call->threads, few);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t roi_pool(const regionrt_roi_pool_call* call) {
    const bool narrow_in = call->feature_type == REGIONRT_BFLOAT16, narrow_out = call->out_type == REGIONRT_BFLOAT16;
    if (narrow_in) return narrow_out ? pool<bfloat16, bfloat16>(call) : pool<bfloat16, float>(call);
    return narrow_out ? pool<float, bfloat16>(call) : pool<float, float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
