// From class logits to the pairs of row and class that score enough, best first: what detections and merging begin with.
#pragma once

#include "../native/order.h"
#include "../native/parallel.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int64_t kRowsPerBlock = 64;

// Probabilities [K] of one row from its logits [K+1]; `exponents` [K+1] is scratch.
template <class T>
static void softmax(const T* logits, int64_t classes, double* exponents, float* probabilities) {
    float largest = load_one(logits);
    for (int64_t k = 1; k <= classes; ++k) largest = larger(largest, load_one(logits + k));
    for (int64_t k = 0; k <= classes; ++k) exponents[k] = shifted_exp(load_one(logits + k), largest);
    double sum = 0;  // one after the other: the same on every CPU. A NaN makes the whole row NaN
    for (int64_t k = 0; k <= classes; ++k) sum += exponents[k];
    for (int64_t k = 0; k < classes; ++k) probabilities[k] = probability_of(exponents[k + 1], sum);
}

struct EveryRow {
    bool operator()(int64_t, int64_t) const { return true; }
};

// The probabilities [N, P, K] of all images, and how many of each image's pairs are above a threshold.
class Probabilities {
  public:
    Probabilities(int64_t images, int64_t rows, int64_t classes)
        : rows_(rows), classes_(classes), values_(images * rows * classes), above_(images * blocks()), images_(images) {}

    bool failed() const { return values_.failed() || above_.failed(); }

    // Of logits [N, P, K+1]; of each image the first counts[n] rows, or all where `counts` is null; 0, which is above no
    // threshold, in rows of which counted(image, row) is false. False without memory.
    template <class T, class Counted = EveryRow>
    bool compute(const T* all_logits, const int32_t* counts, float threshold, int threads, Counted counted = {}) {
        Failure failure;
        auto of_block = [&](int64_t index) {
            const int64_t image = index / blocks(), start = index % blocks() * kRowsPerBlock;
            const int64_t end = smaller<int64_t>(start + kRowsPerBlock, counts == nullptr ? rows_ : counts[image]);
            const T* logits = all_logits + image * rows_ * (classes_ + 1);
            Scratch<double> exponents(classes_ + 1);
            if (exponents.failed()) return failure.note();
            int64_t enough = 0;
            for (int64_t row = start; row < end; ++row) {
                float* of_row = values_.get() + (image * rows_ + row) * classes_;
                if (!counted(image, row)) {
                    memset(of_row, 0, (size_t)classes_ * sizeof(float));
                    continue;
                }
                softmax(logits + row * (classes_ + 1), classes_, exponents.get(), of_row);
                for (int64_t k = 0; k < classes_; ++k) enough += of_row[k] > threshold;
            }
            above_[index] = enough;
        };
        parallel_for(images_ * blocks(), images_ * rows_ * classes_ < 4096 ? 1 : threads, of_block);
        return !failure.noted();
    }

    int64_t above(int64_t image) const {
        int64_t enough = 0;
        for (int64_t block = 0; block < blocks(); ++block) enough += above_[image * blocks() + block];
        return enough;
    }

    const float* of(int64_t image) const { return values_.get() + image * rows_ * classes_; }

    // The pairs of one image above the threshold, best first, of its first `pairs` ones; false without memory.
    bool rank(int64_t image, int64_t pairs, float threshold, Scratch<Ranked>& order) const {
        const int64_t enough = above(image);
        const float* probabilities = of(image);
        Scratch<Ranked> spare(enough);
        if (spare.failed() || !order.resize(enough)) return false;
        int64_t at = 0;
        for (int64_t i = 0; i < pairs; ++i) {
            if (probabilities[i] > threshold) order[at++] = {rank_of(probabilities[i]), (int32_t)i};
        }
        sort_ranked(order.get(), spare.get(), enough);
        return true;
    }

  private:
    int64_t blocks() const { return (rows_ + kRowsPerBlock - 1) / kRowsPerBlock; }

    int64_t rows_, classes_;
    Scratch<float> values_;
    Scratch<int64_t> above_;
    int64_t images_;
};

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
