// Where RoIAlign reads: a RoI's level, its bins, and the two cells and weights behind each sample along one axis, beside
// reference.py, which defines it. A bin is a grid of samples, and a sample the product of its two axes, so that everything
// here is about one axis at a time. `Real` is the type of the geometry: float64 costs nothing on a CPU and takes the
// reference's side at the edge of a map; float32 suits a GPU.
#pragma once

#include "../native/portable.h"

namespace regionrt {

// The level that a RoI's area (canvas px², float32) selects: how many thresholds it reaches. NaN: the first.
REGIONRT_HD int32_t level_of(const float* roi, const float* thresholds, int32_t count) {
    const float area = (roi[2] - roi[0]) * (roi[3] - roi[1]);
    int32_t level = 0;
    for (int32_t i = 0; i < count; ++i) level += area >= thresholds[i];
    return level;
}

constexpr int32_t kMostSamples = 65536;  // per bin and axis: bins of more cells are sampled no finer

// One axis of a RoI in cells of its map, cut into bins.
template <class Real>
struct Axis {
    Real start, bin;
    int32_t samples;  // per bin; 0: none, the bin is zero
};

template <class Real>
REGIONRT_HD Axis<Real> axis_of(float low, float high, Real scale, bool aligned, int32_t bins, int32_t sampling_ratio) {
    const Real shift = aligned ? (Real)0.5 : (Real)0;
    const Real start = (Real)low * scale - shift;
    Real length = ((Real)high * scale - shift) - start;
    if (!aligned && length < (Real)1) length = (Real)1;
    const Real bin = length / (Real)bins;
    int32_t samples = sampling_ratio;
    if (sampling_ratio <= 0) {  // ceil(bin), without a library
        samples = bin > 0 ? (bin < (Real)kMostSamples ? (int32_t)bin : kMostSamples) : 0;
        if (samples < kMostSamples && bin > (Real)samples) ++samples;
    }
    return {start, bin, samples};
}

// A sample reads cells `low` and `high` of an axis, the second with weight `weight`, the first with the rest. Further
// than one cell outside the map (or NaN): not `inside`, and zero.
template <class Real>
struct Sample {
    int32_t low, high;
    Real weight;
    bool inside;
};

template <class Real>
REGIONRT_HD Sample<Real> sample_at(const Axis<Real>& axis, int32_t bin, int32_t index, int32_t size) {
    Real position = axis.start + ((Real)bin + ((Real)index + (Real)0.5) / (Real)axis.samples) * axis.bin;
    if (!(position >= (Real)-1 && position <= (Real)size)) return {0, 0, (Real)0, false};
    const Real last = (Real)(size - 1);
    position = position < 0 ? (Real)0 : position > last ? last : position;
    const int32_t low = (int32_t)position;
    return {low, low + 1 < size ? low + 1 : low, position - (Real)low, true};
}

}  // namespace regionrt
