// RegionNms on a GPU: one block is one class of one image; exactly greedy, in one launch without workspace.
//
// Launch: grid (num_classes, N), block 256. Inputs, int32 scalars, output, as TensorRT's plugins pass them. Q <= 4096.
// Compile without fused multiply-add: what is kept must not depend on it.
#include "../native/block.cuh"

namespace regionrt {

struct NmsShared {
    int32_t members[kMostBoxes];  // places of this class's boxes, in order
    uint8_t dead[kMostBoxes];
    Places places;
    Suppression suppression;
};

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
    const auto box_at = [&](int32_t i) {
        const float* box = boxes + 4 * shared.members[i];
        return Box<float>{box[0], box[1], box[2], box[3]};
    };
    suppress(shared.suppression, shared.dead, count, count, threshold, box_at, [](int32_t, int32_t) { return true; });
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) keep[shared.members[i]] = !shared.dead[i];
}

}  // namespace regionrt

extern "C" __global__ void __launch_bounds__(256) nms(const float* boxes, const int32_t* classes, int32_t rows,
                                                       int32_t num_classes, int32_t iou_threshold, uint8_t* keep) {
    regionrt::nms_of_class(boxes, classes, rows, num_classes, regionrt::float_of(iou_threshold), keep);
}
REGIONRT_EXPORT(nms)
