// RegionRoiAlignPlugin1 to 5 for TensorRT, by the number of levels: levels [N, C, Hl, Wl], rois float32 [N, P, 4], counts
// int32 [N] -> [N·P, C, h, w] in the levels' type.
#include <math.h>

#include "../native/slices.h"
#include "../native/tensorrt_plugin.h"

namespace regionrt {

#define REGIONRT_KERNELS(L)                             \
    REGIONRT_DECLARE_KERNEL(roi_align_nchw_f32_##L);    \
    REGIONRT_DECLARE_KERNEL(roi_align_nchw_f16_##L);    \
    REGIONRT_DECLARE_KERNEL(roi_align_nchw_bf16_##L);   \
    REGIONRT_DECLARE_KERNEL(roi_align_nhwc_f32_##L);    \
    REGIONRT_DECLARE_KERNEL(roi_align_nhwc_f16_##L);    \
    REGIONRT_DECLARE_KERNEL(roi_align_nhwc_bf16_##L);
REGIONRT_KERNELS(1)
REGIONRT_KERNELS(2)
REGIONRT_KERNELS(3)
REGIONRT_KERNELS(4)
REGIONRT_KERNELS(5)

namespace {

Kernel kernel_for(int32_t levels, bool channels_last, DataType type) {
#define REGIONRT_ROW(L)                                                                                          \
    {                                                                                                            \
        {REGIONRT_KERNEL(roi_align_nchw_f32_##L), REGIONRT_KERNEL(roi_align_nchw_f16_##L),                       \
         REGIONRT_KERNEL(roi_align_nchw_bf16_##L)},                                                              \
            {REGIONRT_KERNEL(roi_align_nhwc_f32_##L), REGIONRT_KERNEL(roi_align_nhwc_f16_##L),                   \
             REGIONRT_KERNEL(roi_align_nhwc_bf16_##L)},                                                          \
    }
    static const Kernel kernels[5][2][3] = {REGIONRT_ROW(1), REGIONRT_ROW(2), REGIONRT_ROW(3), REGIONRT_ROW(4),
                                            REGIONRT_ROW(5)};
    return kernels[levels - 1][channels_last][type == DataType::kFLOAT ? 0 : type == DataType::kHALF ? 1 : 2];
}

template <int32_t L>
struct RoiAlign {
    static constexpr char kName[] = {'R', 'e', 'g', 'i', 'o', 'n', 'R', 'o', 'i', 'A', 'l',     'i',
                                     'g', 'n', 'P', 'l', 'u', 'g', 'i', 'n', '0' + L, '\0'};
    static constexpr int32_t kInputs = L + 2, kRois = L, kCounts = L + 1, kOutput = L + 2;

    struct Attributes {
        std::vector<float> spatial_scales, level_areas;
        int32_t output_height = 0, output_width = 0, sampling_ratio = 0, aligned = 0, maximum = 0;

        template <class Visitor>
        void visit(Visitor&& visitor) {
            visitor("spatial_scales", spatial_scales);
            visitor("level_areas", level_areas);
            visitor("output_height", output_height);
            visitor("output_width", output_width);
            visitor("sampling_ratio", sampling_ratio);
            visitor("aligned", aligned);
            visitor("maximum", maximum);
        }
    };

    static std::string why_not(const Attributes& attributes) {
        if (attributes.spatial_scales.size() != L || attributes.level_areas.size() != L) {
            return "expected " + std::to_string(L) + " spatial_scales and level_areas, found " +
                   std::to_string(attributes.spatial_scales.size()) + " and " +
                   std::to_string(attributes.level_areas.size());
        }
        if (attributes.output_height < 1 || attributes.output_width < 1) {
            return "expected an output of at least 1×1, found " + std::to_string(attributes.output_height) + "×" +
                   std::to_string(attributes.output_width);
        }
        return "";
    }

    static int32_t dimensions(int32_t input) { return input < L ? 4 : input == kRois ? 3 : 1; }
    static DataType output_type(const DataType* inputs) { return inputs[0]; }
    static DimsExprs output_shape(const Attributes& attributes, const DimsExprs* inputs, IExprBuilder& expressions) {
        DimsExprs shape;
        shape.nbDims = 4;
        shape.d[0] = expressions.operation(nvinfer1::DimensionOperation::kPROD, *inputs[kRois].d[0], *inputs[kRois].d[1]);
        shape.d[1] = inputs[0].d[1];
        shape.d[2] = expressions.constant(attributes.output_height);
        shape.d[3] = expressions.constant(attributes.output_width);
        return shape;
    }

    // Channels last where a cell's channels fill whole vectors of 16 bytes; levels and output alike.
    static bool takes(int32_t place, const DynamicPluginTensorDesc* tensors) {
        const PluginTensorDesc& tensor = tensors[place].desc;
        if (place == kRois) return tensor.type == DataType::kFLOAT && tensor.format == TensorFormat::kLINEAR;
        if (place == kCounts) return tensor.type == DataType::kINT32 && tensor.format == TensorFormat::kLINEAR;
        const PluginTensorDesc& first = tensors[0].desc;
        if (place > 0) return tensor.type == first.type && tensor.format == first.format;
        const int64_t channels = tensor.dims.nbDims == 4 ? tensor.dims.d[1] : 0;
        switch (tensor.type) {
            case DataType::kFLOAT:
                return tensor.format == TensorFormat::kLINEAR ||
                       (tensor.format == TensorFormat::kHWC && channels > 0 && channels % 4 == 0);
            case DataType::kHALF:
            case DataType::kBF16:
                return tensor.format == TensorFormat::kLINEAR ||
                       (tensor.format == TensorFormat::kHWC8 && channels > 0 && channels % 8 == 0);
            default: return false;
        }
    }

    static std::string why_not(const Attributes&, const PluginTensorDesc* inputs) {
        const auto &first = inputs[0].dims, &rois = inputs[kRois].dims;
        for (int32_t level = 1; level < L; ++level) {
            const auto& map = inputs[level].dims;
            if (map.d[0] == first.d[0] && map.d[1] == first.d[1]) continue;
            return "expected levels of the same N and C, level " + std::to_string(level) + " has others";
        }
        if (rois.d[0] != first.d[0] || inputs[kCounts].dims.d[0] != first.d[0] || rois.d[2] != 4) {
            return "expected rois [N, P, 4] and counts [N] of the levels' N";
        }
        return rois.d[0] <= 65535 ? "" : "expected at most 65535 images, found " + std::to_string(rois.d[0]);
    }

    static std::string launch(const Attributes& attributes, const PluginTensorDesc* descriptions,
                              const void* const* inputs, void* output, cudaStream_t stream) {
        const auto& rois = descriptions[kRois].dims;
        const int32_t images = (int32_t)rois.d[0], most = (int32_t)rois.d[1];
        const int32_t channels = (int32_t)descriptions[0].dims.d[1];
        if (images == 0 || most == 0 || channels == 0) return "";
        Arguments arguments;
        for (int32_t input = 0; input < kInputs; ++input) arguments.add(inputs[input]);
        for (int32_t level = 0; level < L; ++level) {
            arguments.add((int32_t)descriptions[level].dims.d[2]);
            arguments.add((int32_t)descriptions[level].dims.d[3]);
        }
        for (float scale : attributes.spatial_scales) arguments.add(scale);
        for (int32_t level = 1; level < L; ++level) arguments.add(attributes.level_areas[level]);
        arguments.add(NAN);  // no area reaches it
        for (int32_t number : {channels, attributes.output_height, attributes.output_width, attributes.sampling_ratio,
                               attributes.aligned, attributes.maximum}) {
            arguments.add(number);
        }
        arguments.add(output);
        const bool channels_last = descriptions[0].format != TensorFormat::kLINEAR;
        const int64_t values = (int64_t)channels * attributes.output_height * attributes.output_width;
        const Grid grid = {most, images, slices((int64_t)images * most, values)};
        return arguments.launch(kernel_for(L, channels_last, descriptions[0].type), grid, kRegionBlock, stream);
    }
};

}  // namespace

std::vector<nvinfer1::IPluginCreatorInterface*> roi_align_creators() {
    static Creator<RoiAlign<1>> one;
    static Creator<RoiAlign<2>> two;
    static Creator<RoiAlign<3>> three;
    static Creator<RoiAlign<4>> four;
    static Creator<RoiAlign<5>> five;
    return {&one, &two, &three, &four, &five};
}

}  // namespace regionrt
