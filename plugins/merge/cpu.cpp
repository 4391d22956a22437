// RegionMerge on a CPU: softmax of blocks of windows in parallel, then each image's candidates, class by class.

#include "../detections/candidates.h"
#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

// The boxes of one class. Each knows the nearest of those behind it, so that a merge looks at few pairs again.
class Merger {
  public:
    explicit Merger(int64_t most) : boxes_(most), sums_(most), places_(most), next_(most), least_(most) {}

    bool failed() const {
        return boxes_.failed() || sums_.failed() || places_.failed() || next_.failed() || least_.failed();
    }

    void clear() { count_ = 0; }
    int64_t count() const { return count_; }
    bool alive(int64_t i) const { return next_[i] != kGone; }
    const Box<float>& box(int64_t i) const { return boxes_[i]; }
    float sum(int64_t i) const { return sums_[i]; }
    int32_t place(int64_t i) const { return places_[i]; }

    void add(const Box<float>& box, float confidence, int32_t place) {
        boxes_[count_] = box;
        sums_[count_] = confidence;
        next_[count_] = kNone;
        places_[count_++] = place;
    }

    // Until the nearest two are further apart than `threshold`.
    void merge(float threshold) {
        for (int64_t i = 0; i < count_; ++i) look(i);
        while (true) {
            int64_t i = -1;
            for (int64_t k = 0; k < count_; ++k) {
                if (next_[k] >= 0 && least_[k] <= threshold && (i < 0 || least_[k] < least_[i])) i = k;
            }
            if (i < 0) return;
            const int32_t j = next_[i];
            boxes_[i] = mean_box(boxes_[i], sums_[i], boxes_[j], sums_[j]);
            sums_[i] += sums_[j];
            next_[j] = kGone;
            look(i);
            for (int64_t k = 0; k < j; ++k) {
                if (k == i || !alive(k)) continue;
                if (next_[k] == i || next_[k] == j) {
                    look(k);
                } else if (k < i) {
                    const float score = match_score(boxes_[k], boxes_[i]);
                    if (next_[k] == kNone || score < least_[k] || (score == least_[k] && i < next_[k])) {
                        least_[k] = score;
                        next_[k] = (int32_t)i;
                    }
                }
            }
        }
    }

  private:
    static constexpr int32_t kNone = -1, kGone = -2;

    // The nearest of those behind i that are left; of equal ones the first.
    void look(int64_t i) {
        next_[i] = kNone;
        for (int64_t k = i + 1; k < count_; ++k) {
            if (!alive(k)) continue;
            const float score = match_score(boxes_[i], boxes_[k]);
            if (next_[i] == kNone || score < least_[i]) {
                least_[i] = score;
                next_[i] = (int32_t)k;
            }
        }
    }

    Scratch<Box<float>> boxes_;
    Scratch<float> sums_;
    Scratch<int32_t> places_;
    Scratch<int32_t> next_;
    Scratch<float> least_;
    int64_t count_ = 0;
};

template <class T>
static bool merged_image(const regionrt_merge_call* call, int64_t image, const Probabilities& found) {
    const int64_t rows = call->rows, classes = call->classes, most = call->most;
    const int64_t columns = call->class_agnostic ? 1 : classes;
    const int32_t* size = call->image_sizes + 2 * image;
    const T* edges = static_cast<const T*>(call->box_edges) + 4 * image * rows * columns;
    const float* probabilities = found.of(image);
    const int64_t above = found.above(image), candidates = smaller<int64_t>(above, call->candidates);

    Scratch<Ranked> order(0);
    Scratch<Box<float>> boxes(candidates);
    Scratch<float> sums(candidates);
    Scratch<int32_t> labels(candidates);  // 0: no box, or merged into another
    Merger merger(candidates);
    if (boxes.failed() || sums.failed() || labels.failed() || merger.failed() ||
        !found.rank(image, rows * classes, call->window_threshold, order)) {
        return false;
    }
    for (int64_t i = 0; i < candidates; ++i) {
        const int64_t pair = order[i].index, window = pair / classes, label = pair % classes;
        const float* corner = call->windows + 4 * window;
        const T* edge = edges + 4 * (window * columns + (call->class_agnostic ? 0 : label));
        boxes[i] = clip(box_in_window(load_one(edge), load_one(edge + 1), load_one(edge + 2), load_one(edge + 3),
                                      {corner[0], corner[1], corner[2], corner[3]}),
                        (float)size[0], (float)size[1]);
        sums[i] = probabilities[pair];
        labels[i] = large_enough(boxes[i], call->min_size) ? (int32_t)label + 1 : 0;
    }
    for (int32_t label = 1; label <= classes; ++label) {
        merger.clear();
        for (int64_t i = 0; i < candidates; ++i) {
            if (labels[i] == label) merger.add(boxes[i], sums[i], (int32_t)i);
        }
        merger.merge(call->merge_threshold);
        for (int64_t k = 0; k < merger.count(); ++k) {
            const int32_t i = merger.place(k);
            boxes[i] = merger.box(k);
            sums[i] = merger.sum(k);
            if (!merger.alive(k)) labels[i] = 0;
        }
    }

    int64_t left = 0;
    for (int64_t i = 0; i < candidates; ++i) {
        if (labels[i] != 0 && sums[i] / (1.0f + sums[i]) > call->score_threshold) {
            order[left++] = {rank_of(sums[i]), (int32_t)i};
        }
    }
    Scratch<Ranked> spare(left);
    if (spare.failed()) return false;
    sort_ranked(order.get(), spare.get(), left);
    const int64_t number = smaller(left, most);
    for (int64_t at = 0; at < most; ++at) {
        const bool is = at < number;
        const int64_t i = is ? order[at].index : 0;
        const Box<float> box = is ? boxes[i] : Box<float>{0, 0, 0, 0};
        memcpy(call->boxes + 4 * (image * most + at), &box, sizeof box);
        call->scores[image * most + at] = is ? sums[i] / (1.0f + sums[i]) : -1.0f;
        call->labels[image * most + at] = is ? labels[i] : -1;
    }
    call->num_detections[image] = (int32_t)number;
    call->overflow[image] = (int32_t)(above - candidates);
    return true;
}

template <class T>
static int32_t merge_of(const regionrt_merge_call* call) {
    Probabilities found(call->images, call->rows, call->classes);
    const T* logits = static_cast<const T*>(call->class_logits);
    auto counted = [&](int64_t image, int64_t row) {
        const float* corner = call->windows + 4 * row;
        const int32_t* size = call->image_sizes + 2 * image;
        return in_image({corner[0], corner[1], corner[2], corner[3]}, (float)size[0], (float)size[1]);
    };
    if (found.failed() || !found.compute(logits, nullptr, call->window_threshold, call->threads, counted)) {
        return REGIONRT_NO_MEMORY;
    }
    Failure failure;
    auto of_image = [&](int64_t image) {
        if (!merged_image<T>(call, image, found)) failure.note();
    };
    parallel_for(call->images, call->threads, of_image);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t merge(const regionrt_merge_call* call) {
    return call->logit_type == REGIONRT_BFLOAT16 ? merge_of<bfloat16>(call) : merge_of<float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
