// RegionNms on a GPU: one block is one class of one image; exactly greedy, in one launch without workspace.
//
// Launch: grid (num_classes, N), block of whole warps, 1024 threads at most. Inputs, int32 scalars, output, as TensorRT's
// plugins pass them. Q <= 4096. Compile without fused multiply-add: what is kept must not depend on it.
#include "greedy.cuh"

namespace regionrt {

struct NmsShared {
    int32_t members[kMostBoxes];  // places of this class's boxes, in order
    uint8_t dead[kMostBoxes];     // by place among the members
    Places places;
    Box<float> boxes[2][32];  // of this tile and of the next
    float areas[2][32];
    uint32_t better[32];  // bit i of j: box i of the tile would suppress box j
    uint32_t kept;
};

// As `overlaps`, without the division where a product tells.
REGIONRT_DEVICE bool suppresses(const Box<float>& a, float area_a, const Box<float>& b, float area_b, float threshold,
                                float low) {
    return may_overlap(a, area_a, b, area_b, low) && overlaps(a, area_a, b, area_b, threshold);
}

// Greedy NMS of the `count` members, best first, 32 at a time: dead[i] is set for who is suppressed.
REGIONRT_DEVICE void suppress(NmsShared& shared, const float* boxes, int32_t count, float threshold) {
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const float low = low_threshold(threshold);
    const auto box_at = [&](int32_t i) {
        const float* box = boxes + 4 * (int64_t)shared.members[i];
        return Box<float>{box[0], box[1], box[2], box[3]};
    };
    const auto load = [&](int32_t start) {  // by the last warp: the first is busy
        if (warp != warps - 1 || start + lane >= count) return;
        const Box<float> box = box_at(start + lane);
        shared.boxes[start / 32 % 2][lane] = box;
        shared.areas[start / 32 % 2][lane] = area(box);
    };
    load(0);
    __syncthreads();
    for (int32_t start = 0; start < count; start += 32) {
        const Box<float>(&tile)[32] = shared.boxes[start / 32 % 2];
        const float(&areas)[32] = shared.areas[start / 32 % 2];
        const int32_t size = smaller(32, count - start);
        for (int32_t row = warp; row < size; row += warps) {
            const bool hit = lane < row && suppresses(tile[lane], areas[lane], tile[row], areas[row], threshold, low);
            const unsigned votes = __ballot_sync(~0u, hit);
            if (lane == 0) shared.better[row] = votes;
        }
        __syncthreads();
        if (warp == 0) {
            const bool alive = lane < size && !shared.dead[start + lane];
            const uint32_t kept = kept_of_warp(alive, lane < size ? shared.better[lane] : 0);
            if (lane < size) shared.dead[start + lane] = !(kept >> lane & 1u);
            if (lane == 0) shared.kept = kept;
        }
        load(start + 32);
        __syncthreads();
        for (int32_t i = start + 32 + threadIdx.x; i < count; i += blockDim.x) {
            if (shared.dead[i]) continue;
            const Box<float> box = box_at(i);
            const float size_px = area(box);
            bool gone = false;
            for (uint32_t kept = shared.kept; kept && !gone; kept &= kept - 1) {
                const int32_t row = __ffs((int)kept) - 1;
                gone = suppresses(tile[row], areas[row], box, size_px, threshold, low);
            }
            if (gone) shared.dead[i] = 1;
        }
        __syncthreads();
    }
}

REGIONRT_DEVICE void nms_of_class(const float* boxes, const int32_t* classes, int32_t rows, int32_t num_classes,
                                  float threshold, uint8_t* keep) {
    REGIONRT_SHARED(NmsShared, shared);
    const int32_t label = blockIdx.x;
    boxes += (int64_t)blockIdx.y * rows * 4;
    classes += (int64_t)blockIdx.y * rows;
    keep += (int64_t)blockIdx.y * rows;
    int32_t count = 0;
    for (int32_t start = 0; start < rows; start += blockDim.x) {
        const int32_t i = start + threadIdx.x;
        const int32_t found = i < rows ? classes[i] : -1;
        const bool mine = i < rows && found == label;
        int32_t total;
        const int32_t at = count + place_of(shared.places, mine, total);
        if (mine) {
            shared.members[at] = i;
            shared.dead[at] = 0;
        }
        if (i < rows && label == 0 && (found < 0 || found >= num_classes)) keep[i] = 0;  // padding: nobody's else
        count += total;
    }
    __syncthreads();
    suppress(shared, boxes, count, threshold);
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) keep[shared.members[i]] = !shared.dead[i];
}

}  // namespace regionrt

extern "C" __global__ void __launch_bounds__(1024, 1) nms(const float* boxes, const int32_t* classes, int32_t rows,
                                                        int32_t num_classes, int32_t iou_threshold, uint8_t* keep) {
    regionrt::nms_of_class(boxes, classes, rows, num_classes, regionrt::float_of(iou_threshold), keep);
}
REGIONRT_EXPORT(nms)
