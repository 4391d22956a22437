// RegionDetections on a CPU: softmax of blocks of RoIs in parallel, then each image's candidates.

#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "../nms/greedy.h"
#include "candidates.h"
#include "core.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

template <class T>
static bool detections_of_image(const regionrt_detections_call* call, int64_t image, const Probabilities& found) {
    const int64_t rows = call->rows, classes = call->classes, most = call->most;
    const int32_t* size = call->image_sizes + 2 * image;
    const int64_t columns = call->class_agnostic ? 1 : classes + 1;
    const T* all_deltas = static_cast<const T*>(call->box_deltas) + 4 * image * rows * columns;
    const float* rois = call->rois + 4 * image * rows;
    DetectionRules rules = {call->min_size, {}, (float)size[0], (float)size[1]};
    memcpy(rules.box_weights, call->box_weights, sizeof rules.box_weights);

    Scratch<Ranked> order(0);
    const int64_t above = found.above(image);
    const float* probabilities = found.of(image);
    const int64_t candidates = smaller<int64_t>(above, call->candidates);
    Kept kept(smaller(most, candidates), call->iou_threshold);
    if (kept.failed() || !found.rank(image, call->counts[image] * classes, call->score_threshold, order)) return false;
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
    Probabilities found(call->images, call->rows, call->classes);
    const T* logits = static_cast<const T*>(call->class_logits);
    if (found.failed() || !found.compute(logits, call->counts, call->score_threshold, call->threads)) {
        return REGIONRT_NO_MEMORY;
    }
    Failure failure;
    auto of_image = [&](int64_t image) {
        if (!detections_of_image<T>(call, image, found)) failure.note();
    };
    parallel_for(call->images, call->threads, of_image);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

int32_t detections(const regionrt_detections_call* call) {
    return call->logit_type == REGIONRT_BFLOAT16 ? detections_of<bfloat16>(call) : detections_of<float>(call);
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
