// RegionPyramidPool on a CPU, from channels-last features: every step is a long run of channels. A level whose bins divide
// those of another takes that one's maxima: of {6, 3, 2, 1} only the first reads the map.

#include "../native/largest.h"
#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../native/scratch.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int kWindowsPerItem = 8;

// What each level is made from, and in which order: finer ones first.
struct Pyramid {
    int32_t levels, bins[kMostPyramidLevels], order[kMostPyramidLevels];
    int32_t from[kMostPyramidLevels];    // a level, or −1: the map
    int64_t first[kMostPyramidLevels];   // where its bins begin among all
    int64_t all;                         // bins
};

static Pyramid plan(const regionrt_pyramid_pool_call* call) {
    Pyramid plan = {};
    plan.levels = call->levels;
    for (int32_t i = 0; i < plan.levels; ++i) {
        plan.bins[i] = call->bins[i];
        plan.first[i] = plan.all;
        plan.all += (int64_t)plan.bins[i] * plan.bins[i];
        int32_t at = i;
        for (; at > 0 && plan.bins[plan.order[at - 1]] < plan.bins[i]; --at) plan.order[at] = plan.order[at - 1];
        plan.order[at] = i;
    }
    for (int32_t k = 0; k < plan.levels; ++k) {
        const int32_t level = plan.order[k];
        plan.from[level] = -1;
        for (int32_t finer = 0; finer < k; ++finer) {  // the last is the smallest
            if (plan.bins[plan.order[finer]] % plan.bins[level] == 0) plan.from[level] = plan.order[finer];
        }
    }
    return plan;
}

// All bins of one RoI, [Σb², C]; false where its window is empty.
template <class T>
static bool pool_window(const regionrt_pyramid_pool_call* call, const Pyramid& plan, int64_t image, const float* roi,
                        float* out) {
    const Range down = window_of(roi[1], roi[3], call->spatial_scale, call->height);
    const Range across = window_of(roi[0], roi[2], call->spatial_scale, call->width);
    if (down.begin >= down.end || across.begin >= across.end) return false;
    const int64_t channels = call->channels, row_stride = call->width * channels;
    const T* map = static_cast<const T*>(call->feature) + image * call->height * row_stride;
    for (int32_t k = 0; k < plan.levels; ++k) {
        const int32_t level = plan.order[k], bins = plan.bins[level], from = plan.from[level];
        float* bin = out + plan.first[level] * channels;
        for (int32_t i = 0; i < bins; ++i) {
            for (int32_t j = 0; j < bins; ++j, bin += channels) {
                if (from >= 0) {
                    const int32_t size = plan.bins[from] / bins;
                    const int64_t finer = plan.first[from] + (int64_t)(i * plan.bins[from] + j) * size;
                    largest_cells(out + finer * channels, plan.bins[from] * channels, channels, size, size, bin);
                    continue;
                }
                const Range rows = pyramid_bin(down, i, bins), columns = pyramid_bin(across, j, bins);
                const T* corner = map + rows.begin * row_stride + columns.begin * channels;
                largest_cells(corner, row_stride, channels, rows.end - rows.begin, columns.end - columns.begin, bin);
            }
        }
    }
    return true;
}

template <class T, class Out>
static int32_t pool_pyramids(const regionrt_pyramid_pool_call* call) {
    const Pyramid levels = plan(call);
    const int64_t rows = call->rows, channels = call->channels, size = levels.all * channels;
    Failure failure;
    auto few = [&](int64_t item) {
        const int64_t begin = item * kWindowsPerItem;
        const int64_t end = smaller<int64_t>(begin + kWindowsPerItem, rows * call->images);
        Scratch<float> bins(size);
        if (bins.failed()) return failure.note();
        for (int64_t index = begin; index < end; ++index) {
            const int64_t image = index / rows;
            const float* roi = call->rois + 4 * index;
            Out* out = static_cast<Out*>(call->out) + index * size;
            if (index - image * rows >= call->counts[image] || has_nan(roi) ||
                !pool_window<T>(call, levels, image, roi, bins.get())) {
                memset(out, 0, (size_t)size * sizeof(Out));
            } else if (call->out_channels_last) {
                for (int64_t i = 0; i < size; ++i) store_one(out + i, bins[i]);
            } else {
                for (int32_t level = 0; level < levels.levels; ++level) {
                    const int64_t first = levels.first[level] * channels;
                    const int64_t of_level = (int64_t)levels.bins[level] * levels.bins[level];
                    channels_first(bins.get() + first, of_level, channels, out + first);
                }
            }
        }
    };
    parallel_for((rows * call->images + kWindowsPerItem - 1) / kWindowsPerItem, call->threads, few);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t pyramid_pool(const regionrt_pyramid_pool_call* call) {
    const bool narrow_in = call->feature_type == REGIONRT_BFLOAT16, narrow_out = call->out_type == REGIONRT_BFLOAT16;
    if (narrow_in) return narrow_out ? pool_pyramids<bfloat16, bfloat16>(call) : pool_pyramids<bfloat16, float>(call);
    return narrow_out ? pool_pyramids<float, bfloat16>(call) : pool_pyramids<float, float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
