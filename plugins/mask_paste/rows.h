// A mask's pixels row by row: each row of the RoI's mask is widened to the photo once, and each row of the photo mixes
// two of those. Pasting stores the rows, run-length encoding only compares each with the one above.
#pragma once

#include "../native/scratch.h"
#include "../native/vector.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

class MaskRows {
  public:
    MaskRows(const float* mask, const MaskPlace& place, int32_t side, float threshold)
        : place_(place), side_(side), width_(place.right - place.left), taps_(width_),
          memory_(2 * padded(width_) + side * (int64_t)(side + 2) + side + 2), threshold_(threshold) {
        if (failed()) return;
        held_[0] = memory_.get();
        held_[1] = held_[0] + padded(width_);
        framed_ = held_[1] + padded(width_);
        zeros_ = framed_ + side * (int64_t)(side + 2);
        for (int64_t x = 0; x < width_; ++x) {
            taps_[x] = linear_tap(place.left - place.x0 + x, side + 2, place.width);
        }
        for (int32_t row = 0; row < side; ++row) {
            for (int32_t column = 0; column < side + 2; ++column) {
                framed_[row * (side + 2) + column] = framed(mask, side, row + 1, column);
            }
        }
        for (int32_t column = 0; column < side + 2; ++column) zeros_[column] = 0.0f;
    }

    bool failed() const { return taps_.failed() || memory_.failed(); }
    int64_t width() const { return width_; }

    // Row `y` of the photo into out [width()]: 1 where the probability is above the threshold, else 0.
    void row(int64_t y, uint8_t* out) {
        const LinearTap tap = linear_tap(y - place_.y0, side_ + 2, place_.height);
        const float* upper = widened(tap.low, tap.high);
        const float* lower = widened(tap.high, tap.low);
        const Floats low_weight = spread(1 - tap.weight), high_weight = spread(tap.weight);
        const Floats threshold = spread(threshold_);
        int64_t x = 0;
        for (; x + kLanes <= width_; x += kLanes) {
            const Ints above = mix(load(upper + x), load(lower + x), low_weight, high_weight) > threshold;
            store_as(out + x, __builtin_convertvector(bits_as<Words>(above) & 1, Bytes));
        }
        for (; x < width_; ++x) out[x] = mix(upper[x], lower[x], 1 - tap.weight, tap.weight) > threshold_;
    }

  private:
    static int64_t padded(int64_t width) { return (width + kLanes) / kLanes * kLanes; }

    // Row `row` of the framed mask at the width of the photo. The row `keep` stays in memory.
    const float* widened(int32_t row, int32_t keep) {
        for (int i = 0; i < 2; ++i) {
            if (holds_[i] == row) return held_[i];
        }
        const int slot = holds_[0] == keep ? 1 : 0;
        holds_[slot] = row;
        const float* source = row > 0 && row <= side_ ? framed_ + (row - 1) * (int64_t)(side_ + 2) : zeros_;
        float* out = held_[slot];
        const LinearTap* taps = taps_.get();
        for (int64_t x = 0; x < width_; ++x) {
            out[x] = mix(source[taps[x].low], source[taps[x].high], 1 - taps[x].weight, taps[x].weight);
        }
        return out;
    }

    const MaskPlace place_;
    const int32_t side_;
    const int64_t width_;
    Scratch<LinearTap> taps_;
    Scratch<float> memory_;
    float *held_[2] = {}, *framed_ = nullptr, *zeros_ = nullptr;
    int32_t holds_[2] = {-1, -1};
    const float threshold_;
};

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
