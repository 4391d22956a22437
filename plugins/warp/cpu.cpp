// RegionWarp on a CPU, from channels-last images: each output row is first mixed of two rows of the image, in long runs,
// then sampled along them.

#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../native/scratch.h"
#include "../native/vector.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

// out[i] = upper[i] · (1 − weight) + lower[i] · weight
template <class T>
static void mix_rows(const T* upper, const T* lower, float weight, int64_t count, float* out) {
    const float rest = 1.0f - weight;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        store(out + i, load(upper + i) * spread(rest) + load(lower + i) * spread(weight));
    }
    for (; i < count; ++i) out[i] = load_one(upper + i) * rest + load_one(lower + i) * weight;
}

// One RoI: [h, w, C] where `last`, else [C, h, w].
template <class T, class Out>
static void warp_roi(const regionrt_warp_call* call, int64_t image, const float* roi, WarpTap* taps, float* mixed, Out* out) {
    const int64_t channels = call->channels, row_stride = call->width * channels;
    const int32_t height = call->out_height, width = call->out_width;
    const T* pixels = static_cast<const T*>(call->pixels) + image * call->height * row_stride;
    const WarpAxis down = warp_axis(roi[1], roi[3], height, call->context);
    const WarpAxis across = warp_axis(roi[0], roi[2], width, call->context);
    int32_t begin = width, end = 0;  // of the samples inside; positions rise
    for (int32_t j = 0; j < width; ++j) {
        taps[j] = warp_tap(across, j, call->width);
        if (taps[j].low < 0) continue;
        begin = smaller(begin, j);
        end = j + 1;
    }
    memset(out, 0, (size_t)(channels * height * width) * sizeof(Out));
    if (begin >= end) return;
    const int64_t first = taps[begin].low, count = (taps[end - 1].high + 1 - first) * channels;
    for (int32_t i = 0; i < height; ++i) {
        const WarpTap y = warp_tap(down, i, call->height);
        if (y.low < 0) continue;
        const T* row = pixels + first * channels;
        mix_rows(row + y.low * row_stride, row + y.high * row_stride, y.weight, count, mixed);
        for (int64_t c = 0; c < channels; ++c) {
            Out* to = call->out_channels_last ? out + (int64_t)i * width * channels + c : out + (c * height + i) * width;
            const int64_t stride = call->out_channels_last ? channels : 1;
            const float* from = mixed + c - first * channels;
            for (int32_t j = begin; j < end; ++j) {
                const float weight = taps[j].weight;
                const float low = from[taps[j].low * channels], high = from[taps[j].high * channels];
                store_one(to + j * stride, low * (1.0f - weight) + high * weight);
            }
        }
    }
}

template <class T, class Out>
static int32_t warp_all(const regionrt_warp_call* call) {
    const int64_t rows = call->rows, size = (int64_t)call->channels * call->out_height * call->out_width;
    Failure failure;
    auto one = [&](int64_t index) {
        const int64_t image = index / rows;
        const float* roi = call->rois + 4 * index;
        Out* out = static_cast<Out*>(call->out) + index * size;
        if (index - image * rows >= call->counts[image] || has_nan(roi)) {
            memset(out, 0, (size_t)size * sizeof(Out));
            return;
        }
        Scratch<WarpTap> taps(call->out_width);
        Scratch<float> mixed((int64_t)call->width * call->channels);
        if (taps.failed() || mixed.failed()) return failure.note();
        warp_roi<T>(call, image, roi, taps.get(), mixed.get(), out);
    };
    parallel_for(rows * call->images, call->threads, one);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t warp(const regionrt_warp_call* call) {
    const bool narrow_in = call->image_type == REGIONRT_BFLOAT16, narrow_out = call->out_type == REGIONRT_BFLOAT16;
    if (narrow_in) return narrow_out ? warp_all<bfloat16, bfloat16>(call) : warp_all<bfloat16, float>(call);
    return narrow_out ? warp_all<float, bfloat16>(call) : warp_all<float, float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
