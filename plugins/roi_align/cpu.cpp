// RegionRoiAlign on a CPU, from channels-last features: every step is a long run of channels.
//
// The average of a bin's samples is separable: of each axis the cells that the samples touch are listed once per RoI with
// their summed weights, neighbouring samples that share a cell merged, and a bin is the sum of a few cells. The maximum
// is not, and goes sample by sample.

#include "../native/order.h"
#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../native/scratch.h"
#include "../native/vector.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int kRoisPerItem = 8;
constexpr int kVectors = 8;                       // accumulators that fit the registers
constexpr int64_t kBlock = kVectors * kLanes;     // channels at a time

struct Tap {
    int32_t cell;
    float weight;
};

// The taps of one axis: those of bin b are taps[starts[b] … starts[b + 1] − 1].
struct Taps {
    Tap* taps;
    int32_t* starts;
};

static void list_taps(const Axis<double>& axis, int32_t bins, int32_t size, Taps out) {
    int32_t count = 0;
    for (int32_t bin = 0; bin < bins; ++bin) {
        const int32_t begin = out.starts[bin] = count;
        double pending[2] = {0, 0};  // weights of the last two taps, rounded when they are complete
        const double share = 1.0 / axis.samples;
        auto add = [&](int32_t cell, double weight) {
            if (count > begin && out.taps[count - 1].cell == cell) {
                pending[1] += weight;
            } else if (count > begin + 1 && out.taps[count - 2].cell == cell) {
                pending[0] += weight;
            } else {
                if (count > begin + 1) out.taps[count - 2].weight = (float)pending[0];
                pending[0] = pending[1];
                pending[1] = weight;
                out.taps[count++].cell = cell;
            }
        };
        for (int32_t index = 0; index < axis.samples; ++index) {
            const Sample<double> sample = sample_at(axis, bin, index, size);
            if (!sample.inside) continue;
            add(sample.low, (1 - sample.weight) * share);
            add(sample.high, sample.weight * share);
        }
        if (count > begin) out.taps[count - 1].weight = (float)pending[1];
        if (count > begin + 1) out.taps[count - 2].weight = (float)pending[0];
    }
    out.starts[bins] = count;
}

struct Map {
    const void* cells;  // [H, W, C] of one image
    int32_t height, width;
    int64_t channels;
};

// Channels `first` … of one bin, averaged: `V` vectors of them.
template <int V, class T, class Out>
static inline void average(const T* cells, int64_t row_stride, int64_t channels, const Tap* rows, int32_t row_count,
                           const Tap* columns, int32_t column_count, Out* out) {
    Floats sum[V] = {};
    for (int32_t r = 0; r < row_count; ++r) {
        const T* row = cells + rows[r].cell * row_stride;
        for (int32_t c = 0; c < column_count; ++c) {
            const T* cell = row + columns[c].cell * channels;
            const Floats weight = spread(rows[r].weight * columns[c].weight);
            for (int v = 0; v < V; ++v) sum[v] = multiply_add(weight, load(cell + v * kLanes), sum[v]);
        }
    }
    for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
}

template <class T, class Out>
static inline void average_one(const T* cells, int64_t row_stride, int64_t channels, const Tap* rows, int32_t row_count,
                               const Tap* columns, int32_t column_count, Out* out) {
    float sum = 0;
    for (int32_t r = 0; r < row_count; ++r) {
        for (int32_t c = 0; c < column_count; ++c) {
            const float value = load_one(cells + rows[r].cell * row_stride + columns[c].cell * channels);
            sum = multiply_add(rows[r].weight * columns[c].weight, value, sum);
        }
    }
    store_one(out, sum);
}

// The average of bins [h, w] for channels `first` … `first + count − 1` into out[bin * stride + channel − first].
template <class T, class Out>
static void average_bins(const Map& map, const Taps& rows, const Taps& columns, int32_t height, int32_t width,
                         int64_t first, int64_t count, Out* out, int64_t stride) {
    const int64_t channels = map.channels, row_stride = map.width * channels;
    const T* cells = static_cast<const T*>(map.cells) + first;
    for (int32_t i = 0; i < height; ++i) {
        const Tap* row = rows.taps + rows.starts[i];
        const int32_t row_count = rows.starts[i + 1] - rows.starts[i];
        for (int32_t j = 0; j < width; ++j, out += stride) {
            const Tap* column = columns.taps + columns.starts[j];
            const int32_t column_count = columns.starts[j + 1] - columns.starts[j];
            int64_t c = 0;
            for (; c + kBlock <= count; c += kBlock) {
                average<kVectors>(cells + c, row_stride, channels, row, row_count, column, column_count, out + c);
            }
            for (; c + kLanes <= count; c += kLanes) {
                average<1>(cells + c, row_stride, channels, row, row_count, column, column_count, out + c);
            }
            for (; c < count; ++c) {
                average_one(cells + c, row_stride, channels, row, row_count, column, column_count, out + c);
            }
        }
    }
}

// As NumPy's maximum: a NaN wins, and stays.
static inline Floats greatest(Floats a, Floats b) {
    const Ints take = (b > a) | (b != b);
    return take ? b : a;
}

static inline float greatest(float a, float b) { return b > a || b != b ? b : a; }

// The samples of one axis that are inside the map: those of bin b are samples[starts[b] … starts[b + 1] − 1].
struct Inside {
    const Sample<double>* samples;
    const int32_t* starts;
    int32_t wanted;  // per bin, with those outside, which are zero
};

static Inside list_inside(const Axis<double>& axis, int32_t bins, int32_t size, Sample<double>* samples, int32_t* starts) {
    int32_t count = 0;
    for (int32_t bin = 0; bin < bins; ++bin) {
        starts[bin] = count;
        for (int32_t index = 0; index < axis.samples; ++index) {
            const Sample<double> sample = sample_at(axis, bin, index, size);
            if (sample.inside) samples[count++] = sample;
        }
    }
    starts[bins] = count;
    return {samples, starts, axis.samples};
}

template <class Value, class T, class Load>
static inline Value largest_sample(const T* cells, int64_t row_stride, int64_t channels, const Inside& rows, int32_t i,
                                   const Inside& columns, int32_t j, Load load_at) {
    const int32_t row_end = rows.starts[i + 1], column_end = columns.starts[j + 1];
    bool first = row_end - rows.starts[i] == rows.wanted && column_end - columns.starts[j] == columns.wanted;
    Value best = {};  // zero is among the samples unless all are inside
    for (int32_t r = rows.starts[i]; r < row_end; ++r) {
        const Sample<double>& down = rows.samples[r];
        const T *upper = cells + down.low * row_stride, *lower = cells + down.high * row_stride;
        const float dy = (float)down.weight, up = (float)(1 - down.weight);
        for (int32_t c = columns.starts[j]; c < column_end; ++c) {
            const Sample<double>& across = columns.samples[c];
            const float dx = (float)across.weight, left = (float)(1 - across.weight);
            const int64_t low = across.low * channels, high = across.high * channels;
            const Value value = (load_at(upper + low) * left + load_at(upper + high) * dx) * up +
                                (load_at(lower + low) * left + load_at(lower + high) * dx) * dy;
            best = first ? value : greatest(best, value);
            first = false;
        }
    }
    return best;
}

// As `average_bins`, the maximum.
template <class T, class Out>
static void largest_bins(const Map& map, const Inside& rows, const Inside& columns, int32_t height, int32_t width,
                         int64_t first, int64_t count, Out* out, int64_t stride) {
    const int64_t channels = map.channels, row_stride = map.width * channels;
    const T* cells = static_cast<const T*>(map.cells) + first;
    for (int32_t i = 0; i < height; ++i) {
        for (int32_t j = 0; j < width; ++j, out += stride) {
            int64_t c = 0;
            for (; c + kLanes <= count; c += kLanes) {
                store(out + c, largest_sample<Floats>(cells + c, row_stride, channels, rows, i, columns, j,
                                                      [](const T* at) { return load(at); }));
            }
            for (; c < count; ++c) {
                store_one(out + c, largest_sample<float>(cells + c, row_stride, channels, rows, i, columns, j,
                                                         [](const T* at) { return load_one(at); }));
            }
        }
    }
}

// out[channel * bins + bin] = in[bin * stride + channel], in squares of four where there are as many
template <class Out>
static void transpose_bins(const float* in, int64_t stride, int64_t bins, int64_t channels, Out* out) {
    int64_t channel = 0;
    for (; channel + 4 <= channels; channel += 4) {
        int64_t bin = 0;
        for (; bin + 4 <= bins; bin += 4) {
            transpose_square(in + bin * stride + channel, stride, out + channel * bins + bin, bins);
        }
        for (; bin < bins; ++bin) {
            for (int64_t c = channel; c < channel + 4; ++c) store_one(out + c * bins + bin, in[bin * stride + c]);
        }
    }
    for (; channel < channels; ++channel) {
        for (int64_t bin = 0; bin < bins; ++bin) store_one(out + channel * bins + bin, in[bin * stride + channel]);
    }
}

// What one thread needs for its RoIs. Adaptive sampling knows only per RoI how many samples there are.
struct Workspace {
    Scratch<Tap> taps{0};
    Scratch<int32_t> starts{0};
    Scratch<Sample<double>> samples{0};
    Scratch<float> bins{0};
    int64_t room = 0;

    bool fit(int64_t wanted, bool maximum) {
        if (wanted <= room) return true;
        room = wanted;
        return maximum ? samples.resize(room) : taps.resize(2 * room);
    }
};

template <class T, class Out>
static bool align_roi(const regionrt_roi_align_call* call, int64_t image, int64_t index, Workspace& space) {
    const float* roi = call->rois + 4 * index;
    const int32_t height = call->out_height, width = call->out_width, level = level_of(roi, call->area_thresholds,
                                                                                      call->thresholds);
    const int64_t channels = call->channels, bins = (int64_t)height * width;
    const int64_t cells = (int64_t)call->heights[level] * call->widths[level];
    const Map map = {static_cast<const T*>(call->features[level]) + image * cells * channels, call->heights[level],
                     call->widths[level], channels};
    const double scale = call->spatial_scales[level];
    const bool aligned = call->aligned != 0;
    const Axis<double> down = axis_of(roi[1], roi[3], scale, aligned, height, call->sampling_ratio);
    const Axis<double> across = axis_of(roi[0], roi[2], scale, aligned, width, call->sampling_ratio);
    Out* out = static_cast<Out*>(call->out) + index * bins * channels;
    if (down.samples == 0 || across.samples == 0 || cells == 0) {
        memset(out, 0, (size_t)(bins * channels) * sizeof(Out));
        return true;
    }
    const int64_t down_all = (int64_t)height * down.samples, across_all = (int64_t)width * across.samples;
    if (!space.fit(down_all + across_all, call->maximum)) return false;
    int32_t *row_starts = space.starts.get(), *column_starts = row_starts + height + 1;
    Taps rows = {}, columns = {};
    Inside row_samples = {}, column_samples = {};
    if (call->maximum) {
        row_samples = list_inside(down, height, map.height, space.samples.get(), row_starts);
        column_samples = list_inside(across, width, map.width, space.samples.get() + down_all, column_starts);
    } else {
        rows = {space.taps.get(), row_starts};
        columns = {space.taps.get() + 2 * down_all, column_starts};
        list_taps(down, height, map.height, rows);
        list_taps(across, width, map.width, columns);
    }
    auto compute = [&](int64_t first, int64_t count, auto* to, int64_t stride) {
        if (call->maximum) {
            largest_bins<T>(map, row_samples, column_samples, height, width, first, count, to, stride);
        } else {
            average_bins<T>(map, rows, columns, height, width, first, count, to, stride);
        }
    };
    if (call->out_channels_last) {
        compute(0, channels, out, channels);
        return true;
    }
    // All channels of a bin at once, although they then leave the L1 cache before they are transposed: a map's cell is read
    // in one piece.
    compute(0, channels, space.bins.get(), channels);
    transpose_bins(space.bins.get(), channels, bins, channels, out);
    return true;
}

// The order in which RoIs are read: level by level, in bands of the image from left to right. Neighbours share cells, which
// are then still in the L2 cache: a level's map is far larger.
static bool order_rois(const regionrt_roi_align_call* call, Scratch<Ranked>& order, int64_t* found) {
    const int64_t all = (int64_t)call->images * call->rows;
    Scratch<Ranked> spare(all);
    if (spare.failed() || !order.resize(all)) return false;
    int64_t count = 0;
    for (int64_t image = 0; image < call->images; ++image) {
        const int64_t first = count;
        for (int64_t row = 0; row < call->counts[image]; ++row) {
            const int64_t index = image * call->rows + row;
            const float* roi = call->rois + 4 * index;
            const int32_t level = level_of(roi, call->area_thresholds, call->thresholds);
            const float scale = (float)call->spatial_scales[level];
            const auto cell = [&](float position, float divisor, float most) {  // NaN: 0
                position = position * 0.5f * scale / divisor;
                return (uint32_t)(position > 0.0f ? smaller(position, most) : 0.0f);
            };
            const uint32_t band = cell(roi[1] + roi[3], 8.0f, 4095.0f), along = cell(roi[0] + roi[2], 1.0f, 65535.0f);
            order[count++] = {(uint32_t)level << 28 | band << 16 | along, (int32_t)index};
        }
        sort_ranked(order.get() + first, spare.get(), count - first);
    }
    *found = count;
    return true;
}

template <class T, class Out>
static int32_t align(const regionrt_roi_align_call* call) {
    const int64_t rows = call->rows, bins = (int64_t)call->out_height * call->out_width;
    const int64_t size = bins * call->channels;
    Scratch<Ranked> order(0);
    int64_t count = 0;
    if (!order_rois(call, order, &count)) return REGIONRT_NO_MEMORY;
    Failure failure;
    auto few = [&](int64_t item) {
        const int64_t begin = item * kRoisPerItem, end = smaller<int64_t>(begin + kRoisPerItem, count);
        Workspace space;
        if (!space.starts.resize(call->out_height + call->out_width + 2) || !space.bins.resize(bins * call->channels)) {
            return failure.note();
        }
        for (int64_t i = begin; i < end; ++i) {
            const int64_t index = order[i].index;
            if (!align_roi<T, Out>(call, index / rows, index, space)) return failure.note();
        }
    };
    parallel_for((count + kRoisPerItem - 1) / kRoisPerItem, call->threads, few);
    for (int64_t image = 0; image < call->images; ++image) {
        Out* rest = static_cast<Out*>(call->out) + (image * rows + call->counts[image]) * size;
        memset(rest, 0, (size_t)((rows - call->counts[image]) * size) * sizeof(Out));
    }
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t roi_align(const regionrt_roi_align_call* call) {
    const bool narrow_in = call->feature_type == REGIONRT_BFLOAT16, narrow_out = call->out_type == REGIONRT_BFLOAT16;
    if (narrow_in) return narrow_out ? align<bfloat16, bfloat16>(call) : align<bfloat16, float>(call);
    return narrow_out ? align<float, bfloat16>(call) : align<float, float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
