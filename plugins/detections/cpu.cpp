// RegionDetections on a CPU: softmax of blocks of RoIs in parallel, then each image's candidates.

#include "../native/order.h"
#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../nms/greedy.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

constexpr int64_t kRowsPerBlock = 64;

// Probabilities [K] of one RoI from its logits [K+1]; `exponents` [K+1] is scratch.
template <class T>
static void softmax(const T* logits, int64_t classes, double* exponents, float* probabilities) {
    float largest = load_one(logits);
    for (int64_t k = 1; k <= classes; ++k) largest = larger(largest, load_one(logits + k));
    for (int64_t k = 0; k <= classes; ++k) exponents[k] = shifted_exp(load_one(logits + k), largest);
    double sum = 0;  // one after the other: the same on every CPU. A NaN makes the whole row NaN
    for (int64_t k = 0; k <= classes; ++k) sum += exponents[k];
    for (int64_t k = 0; k < classes; ++k) probabilities[k] = probability_of(exponents[k + 1], sum);
}

// The candidates of one image, best first, of `above` pairs (RoI, class) that score enough; false without memory.
static bool rank_candidates(const regionrt_detections_call* call, const float* probabilities, int64_t pairs,
                            int64_t above, Scratch<Ranked>& order) {
    Scratch<Ranked> spare(above);
    if (spare.failed() || !order.resize(above)) return false;
    int64_t at = 0;
    for (int64_t i = 0; i < pairs; ++i) {
        if (probabilities[i] > call->score_threshold) order[at++] = {rank_of(probabilities[i]), (int32_t)i};
    }
    sort_ranked(order.get(), spare.get(), above);
    return true;
}

template <class T>
static bool detections_of_image(const regionrt_detections_call* call, int64_t image, const float* probabilities,
                                int64_t above) {
    const int64_t rows = call->rows, classes = call->classes, most = call->most;
    const int32_t* size = call->image_sizes + 2 * image;
    const int64_t columns = call->class_agnostic ? 1 : classes + 1;
    const T* all_deltas = static_cast<const T*>(call->box_deltas) + 4 * image * rows * columns;
    const float* rois = call->rois + 4 * image * rows;
    DetectionRules rules = {call->min_size, {}, (float)size[0], (float)size[1]};
    memcpy(rules.box_weights, call->box_weights, sizeof rules.box_weights);

    Scratch<Ranked> order(0);
    const int64_t candidates = smaller<int64_t>(above, call->candidates);
    Kept kept(smaller(most, candidates), call->iou_threshold);
    if (kept.failed() || !rank_candidates(call, probabilities, call->counts[image] * classes, above, order)) return false;
    float* boxes = call->boxes + 4 * image * most;
    float* scores = call->scores + image * most;
    int32_t* labels = call->labels + image * most;
    int32_t* roi_index = call->roi_index + image * most;
    for (int64_t i = 0; i < candidates && kept.count() < most; ++i) {
        const int64_t pair = order[i].index, roi = pair / classes, label = pair % classes + 1;
        const float* corner = rois + 4 * roi;
        const T* delta = all_deltas + 4 * (roi * columns + (call->class_agnostic ? 0 : label));
        const Box<float> box =
            detection_box(load_one(delta), load_one(delta + 1), load_one(delta + 2), load_one(delta + 3),
                          {corner[0], corner[1], corner[2], corner[3]}, rules);
        if (!large_enough(box, rules.min_size) || kept.suppresses(box, (int32_t)label)) continue;
        const int64_t at = kept.count();
        memcpy(boxes + 4 * at, &box, sizeof box);
        scores[at] = probabilities[pair];
        labels[at] = (int32_t)label;
        roi_index[at] = (int32_t)roi;
        kept.add(box, (int32_t)label);
    }
    memset(boxes + 4 * kept.count(), 0, (size_t)(most - kept.count()) * 4 * sizeof(float));
    for (int64_t at = kept.count(); at < most; ++at) {
        scores[at] = -1;
        labels[at] = roi_index[at] = -1;
    }
    call->num_detections[image] = (int32_t)kept.count();
    call->overflow[image] = (int32_t)(above - candidates);
    return true;
}

template <class T>
static int32_t detections_of(const regionrt_detections_call* call) {
    const int64_t rows = call->rows, classes = call->classes, pairs = rows * classes;
    const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
    Scratch<float> probabilities(call->images * pairs);
    Scratch<int64_t> above(call->images * blocks);
    if (probabilities.failed() || above.failed()) return REGIONRT_NO_MEMORY;
    Failure failure;
    auto of_block = [&](int64_t index) {
        const int64_t image = index / blocks, start = index % blocks * kRowsPerBlock;
        const int64_t end = smaller<int64_t>(start + kRowsPerBlock, call->counts[image]);
        const T* logits = static_cast<const T*>(call->class_logits) + image * rows * (classes + 1);
        Scratch<double> exponents(classes + 1);
        if (exponents.failed()) return failure.note();
        int64_t enough = 0;
        for (int64_t row = start; row < end; ++row) {
            float* of_row = probabilities.get() + image * pairs + row * classes;
            softmax(logits + row * (classes + 1), classes, exponents.get(), of_row);
            for (int64_t k = 0; k < classes; ++k) enough += of_row[k] > call->score_threshold;
        }
        above[index] = enough;
    };
    parallel_for(call->images * blocks, call->images * pairs < 4096 ? 1 : call->threads, of_block);
    if (failure.noted()) return REGIONRT_NO_MEMORY;
    auto of_image = [&](int64_t image) {
        int64_t enough = 0;
        for (int64_t block = 0; block < blocks; ++block) enough += above[image * blocks + block];
        if (!detections_of_image<T>(call, image, probabilities.get() + image * pairs, enough)) failure.note();
    };
    parallel_for(call->images, call->threads, of_image);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t detections(const regionrt_detections_call* call) {
    return call->logit_type == REGIONRT_BFLOAT16 ? detections_of<bfloat16>(call) : detections_of<float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
