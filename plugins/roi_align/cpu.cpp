// RegionRoiAlign on a CPU, from channels-last features: every step is a long run of channels.
//
// The average of a bin's samples is separable: of each axis the cells that the samples touch are listed once per RoI with
// their summed weights, neighbouring samples that share a cell merged, and a bin is the sum of a few cells. The maximum
// is not, and goes sample by sample.

#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../native/scratch.h"
#include "../native/vector.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int kRoisPerItem = 4;
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

template <class Value, class T, class Load>
static inline Value largest_sample(const T* cells, int64_t row_stride, int64_t channels, const Sample<double>* rows,
                                   int32_t row_count, const Sample<double>* columns, int32_t column_count, Load load_at) {
    Value best = {};
    for (int32_t r = 0; r < row_count; ++r) {
        for (int32_t c = 0; c < column_count; ++c) {
            Value value = {};
            if (rows[r].inside && columns[c].inside) {
                const float dy = (float)rows[r].weight, dx = (float)columns[c].weight;
                const float up = (float)(1 - rows[r].weight), left = (float)(1 - columns[c].weight);
                const T *upper = cells + rows[r].low * row_stride, *lower = cells + rows[r].high * row_stride;
                const int64_t low = columns[c].low * channels, high = columns[c].high * channels;
                value = (load_at(upper + low) * left + load_at(upper + high) * dx) * up +
                        (load_at(lower + low) * left + load_at(lower + high) * dx) * dy;
            }
            best = r + c == 0 ? value : greatest(best, value);
        }
    }
    return best;
}

// As `average_bins`, the maximum. `rows` and `columns` hold the samples of all bins.
template <class T, class Out>
static void largest_bins(const Map& map, const Sample<double>* rows, int32_t row_count, const Sample<double>* columns,
                         int32_t column_count, int32_t height, int32_t width, int64_t first, int64_t count, Out* out,
                         int64_t stride) {
    const int64_t channels = map.channels, row_stride = map.width * channels;
    const T* cells = static_cast<const T*>(map.cells) + first;
    for (int32_t i = 0; i < height; ++i) {
        for (int32_t j = 0; j < width; ++j, out += stride) {
            const Sample<double>*row = rows + i * row_count, *column = columns + j * column_count;
            int64_t c = 0;
            for (; c + kLanes <= count; c += kLanes) {
                store(out + c, largest_sample<Floats>(cells + c, row_stride, channels, row, row_count, column,
                                                      column_count, [](const T* at) { return load(at); }));
            }
            for (; c < count; ++c) {
                store_one(out + c, largest_sample<float>(cells + c, row_stride, channels, row, row_count, column,
                                                         column_count, [](const T* at) { return load_one(at); }));
            }
        }
    }
}

// out[channel * bins + bin] = in[bin * stride + channel]
template <class Out>
static void transpose_bins(const float* in, int64_t stride, int64_t bins, int64_t channels, Out* out) {
    for (int64_t channel = 0; channel < channels; ++channel) {
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
    Taps rows = {}, columns = {};
    Sample<double>*row_samples = nullptr, *column_samples = nullptr;
    if (call->maximum) {
        row_samples = space.samples.get();
        column_samples = row_samples + down_all;
        for (int64_t i = 0; i < down_all; ++i) {
            row_samples[i] = sample_at(down, (int32_t)(i / down.samples), (int32_t)(i % down.samples), map.height);
        }
        for (int64_t i = 0; i < across_all; ++i) {
            column_samples[i] =
                sample_at(across, (int32_t)(i / across.samples), (int32_t)(i % across.samples), map.width);
        }
    } else {
        rows = {space.taps.get(), space.starts.get()};
        columns = {rows.taps + 2 * down_all, rows.starts + height + 1};
        list_taps(down, height, map.height, rows);
        list_taps(across, width, map.width, columns);
    }
    auto compute = [&](int64_t first, int64_t count, auto* to, int64_t stride) {
        if (call->maximum) {
            largest_bins<T>(map, row_samples, down.samples, column_samples, across.samples, height, width, first, count,
                            to, stride);
        } else {
            average_bins<T>(map, rows, columns, height, width, first, count, to, stride);
        }
    };
    if (call->out_channels_last) {
        compute(0, channels, out, channels);
        return true;
    }
    for (int64_t first = 0; first < channels; first += kBlock) {  // a block of channels of all bins stays in the L1 cache
        const int64_t count = smaller(kBlock, channels - first);
        compute(first, count, space.bins.get(), kBlock);
        transpose_bins(space.bins.get(), kBlock, bins, count, out + first * bins);
    }
    return true;
}

template <class T, class Out>
static int32_t align(const regionrt_roi_align_call* call) {
    const int64_t rows = call->rows, bins = (int64_t)call->out_height * call->out_width;
    const int64_t per_image = (rows + kRoisPerItem - 1) / kRoisPerItem;
    Failure failure;
    auto few = [&](int64_t item) {
        const int64_t image = item / per_image, begin = item % per_image * kRoisPerItem;
        const int64_t end = smaller<int64_t>(begin + kRoisPerItem, rows);
        const int64_t real = larger<int64_t>(smaller<int64_t>(end, call->counts[image]), begin);
        Workspace space;
        if (!space.starts.resize(call->out_height + call->out_width + 2) || !space.bins.resize(bins * kBlock)) {
            return failure.note();
        }
        for (int64_t row = begin; row < real; ++row) {
            if (!align_roi<T, Out>(call, image, image * rows + row, space)) return failure.note();
        }
        Out* rest = static_cast<Out*>(call->out) + (image * rows + real) * bins * call->channels;
        memset(rest, 0, (size_t)((end - real) * bins * call->channels) * sizeof(Out));
    };
    parallel_for(call->images * per_image, call->threads, few);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t roi_align(const regionrt_roi_align_call* call) {
    const bool narrow_in = call->feature_type == REGIONRT_BFLOAT16, narrow_out = call->out_type == REGIONRT_BFLOAT16;
    if (narrow_in) return narrow_out ? align<bfloat16, bfloat16>(call) : align<bfloat16, float>(call);
    return narrow_out ? align<float, bfloat16>(call) : align<float, float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
