// Greedy NMS on a CPU: the boxes kept so far stand in columns, and each next box is compared with a vector of them at a
// time. Early outs: a box is done with at the first vector that suppresses it, and all is done when enough are kept.
#pragma once

#include "../native/scratch.h"
#include "../native/vector.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

// The boxes kept so far, at most `most` of them. Lanes that hold no box yet are NaN, which overlaps nothing.
class Kept {
  public:
    Kept(int64_t most, float iou_threshold)
        : columns_(5 * padded(most)), classes_(padded(most)), stride_(padded(most)),
          threshold_(spread(iou_threshold)), low_(spread(low_threshold(iou_threshold))) {
        if (failed()) return;
        for (int64_t i = 0; i < 5 * stride_; ++i) columns_[i] = __builtin_nanf("");
        for (int64_t i = 0; i < stride_; ++i) classes_[i] = -1;
    }

    bool failed() const { return columns_.failed() || classes_.failed(); }
    int64_t count() const { return count_; }

    // Whether a box of any class that was kept suppresses `box`.
    bool suppresses(const Box<float>& box) const {
        return search(box, [](int64_t) { return ~Ints{}; });
    }

    // Whether a kept box of class `label` does.
    bool suppresses(const Box<float>& box, int32_t label) const {
        return search(box, [&](int64_t at) { return load_as<Ints>(classes_.get() + at) == label; });
    }

    void add(const Box<float>& box, int32_t label) {
        float* column = columns_.get() + count_;
        column[0] = box.x1;
        column[stride_] = box.y1;
        column[2 * stride_] = box.x2;
        column[3 * stride_] = box.y2;
        column[4 * stride_] = area(box);
        classes_[count_++] = label;
    }

    void clear() {
        for (int row = 0; row < 5; ++row) {
            for (int64_t i = 0; i < count_; ++i) columns_[row * stride_ + i] = __builtin_nanf("");
        }
        count_ = 0;
    }

  private:
    static int64_t padded(int64_t most) { return (most + kLanes) / kLanes * kLanes; }

    template <class Mask>
    bool search(const Box<float>& box, const Mask& mask) const {
        const Box<Floats> one = {spread(box.x1), spread(box.y1), spread(box.x2), spread(box.y2)};
        const Floats one_area = spread(area(box));
        for (int64_t at = 0; at < count_; at += kLanes) {
            const float* column = columns_.get() + at;
            const Box<Floats> kept = {load(column), load(column + stride_), load(column + 2 * stride_),
                                      load(column + 3 * stride_)};
            const Floats kept_area = load(column + 4 * stride_);
            if (!any(may_overlap(kept, kept_area, one, one_area, low_))) continue;
            if (any(overlaps(kept, kept_area, one, one_area, threshold_) & mask(at))) return true;
        }
        return false;
    }

    Scratch<float> columns_;  // x1, y1, x2, y2, area
    Scratch<int32_t> classes_;
    int64_t stride_, count_ = 0;
    Floats threshold_, low_;
};

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
