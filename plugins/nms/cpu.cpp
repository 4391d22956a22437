// RegionNms on a CPU: the boxes of each image class by class, classes and images in parallel.

#include "../native/order.h"
#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "greedy.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

static Box<float> box_at(const float* boxes, int64_t index) {
    const float* box = boxes + 4 * index;
    return {box[0], box[1], box[2], box[3]};
}

// The boxes order[0 … count−1] of one image, all of one class, best first.
static bool nms_of_class(const float* boxes, const Ranked* order, int64_t count, float threshold, uint8_t* keep) {
    Kept kept(count, threshold);
    if (kept.failed()) return false;
    for (int64_t i = 0; i < count; ++i) {
        const Box<float> box = box_at(boxes, order[i].index);
        const bool stays = !kept.suppresses(box);
        keep[order[i].index] = stays;
        if (stays) kept.add(box, 0);
    }
    return true;
}

struct Segment {
    int64_t image, start, count;  // in the order of that image
};

int32_t nms(const regionrt_nms_call* call) {
    const int64_t rows = call->rows, all = rows * call->images;
    Scratch<Ranked> order(all), spare(rows);
    Scratch<Segment> segments(all);
    if (order.failed() || spare.failed() || segments.failed()) return REGIONRT_NO_MEMORY;
    int64_t found = 0;
    for (int64_t image = 0; image < call->images; ++image) {
        const int32_t* classes = call->classes + image * rows;
        Ranked* mine = order.get() + image * rows;
        int64_t valid = 0;
        bool sorted = true;
        for (int64_t i = 0; i < rows; ++i) {
            call->keep[image * rows + i] = 0;
            if (classes[i] < 0) continue;
            sorted &= valid == 0 || mine[valid - 1].rank <= (uint32_t)classes[i];
            mine[valid++] = {(uint32_t)classes[i], (int32_t)i};
        }
        if (!sorted) sort_ranked(mine, spare.get(), valid);  // by class; stable: each class stays sorted by score
        for (int64_t start = 0, end; start < valid; start = end) {
            for (end = start + 1; end < valid && mine[end].rank == mine[start].rank;) ++end;
            segments[found++] = {image, image * rows + start, end - start};
        }
    }
    Failure failure;
    auto one = [&](int64_t index) {
        const Segment& segment = segments[index];
        if (!nms_of_class(call->boxes + 4 * segment.image * rows, order.get() + segment.start, segment.count,
                          call->iou_threshold, call->keep + segment.image * rows)) {
            failure.note();
        }
    };
    parallel_for(found, all < 256 ? 1 : call->threads, one);
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
