// RegionNmsPlugin for TensorRT: boxes float32 [N, Q, 4] sorted by score, classes int32 [N, Q] -> keep bool [N, Q].
#include "../native/tensorrt_plugin.h"

namespace regionrt {

REGIONRT_DECLARE_KERNEL(nms);

namespace {

struct Nms {
    static constexpr char kName[] = "RegionNmsPlugin";
    static constexpr int32_t kInputs = 2;
    static constexpr int32_t kMostBoxes = 4096;  // of one image: block.cuh
    static constexpr int32_t kBlock = 1024;      // threads

    struct Attributes {
        float iou_threshold = 0;
        int32_t num_classes = 0;

        template <class Visitor>
        void visit(Visitor&& visitor) {
            visitor("iou_threshold", iou_threshold);
            visitor("num_classes", num_classes);
        }
    };

    static std::string why_not(const Attributes& attributes) {
        if (attributes.num_classes >= 1 && attributes.num_classes <= 65535) return "";
        return "num_classes: expected 1 to 65535, found " + std::to_string(attributes.num_classes);
    }

    static int32_t dimensions(int32_t input) { return input == 0 ? 3 : 2; }
    static DataType output_type(const DataType*) { return DataType::kBOOL; }
    static DimsExprs output_shape(const Attributes&, const DimsExprs* inputs, IExprBuilder&) { return inputs[1]; }

    static bool takes(int32_t place, const DynamicPluginTensorDesc* tensors) {
        constexpr DataType types[] = {DataType::kFLOAT, DataType::kINT32, DataType::kBOOL};
        return tensors[place].desc.type == types[place] && tensors[place].desc.format == TensorFormat::kLINEAR;
    }

    static std::string why_not(const Attributes&, const PluginTensorDesc* inputs) {
        const auto &boxes = inputs[0].dims, &classes = inputs[1].dims;
        if (boxes.d[0] != classes.d[0] || boxes.d[1] != classes.d[1] || boxes.d[2] != 4) {
            return "expected boxes [N, Q, 4] and classes [N, Q] of the same N and Q";
        }
        if (boxes.d[1] <= kMostBoxes) return "";
        return "expected at most " + std::to_string(kMostBoxes) + " boxes an image, found " + std::to_string(boxes.d[1]) +
               ": export with fewer candidates";
    }

    static std::string launch(const Attributes& attributes, const PluginTensorDesc* descriptions,
                              const void* const* inputs, void* output, cudaStream_t stream) {
        const int32_t images = (int32_t)descriptions[1].dims.d[0], rows = (int32_t)descriptions[1].dims.d[1];
        if (images == 0 || rows == 0) return "";
        Arguments arguments;
        arguments.add(inputs[0]);
        arguments.add(inputs[1]);
        arguments.add(rows);
        arguments.add(attributes.num_classes);
        arguments.add(attributes.iou_threshold);
        arguments.add(output);
        return arguments.launch(REGIONRT_KERNEL(nms), {attributes.num_classes, images, 1}, kBlock, stream);
    }
};

}  // namespace

std::vector<nvinfer1::IPluginCreatorInterface*> nms_creators() {
    static Creator<Nms> creator;
    return {&creator};
}

}  // namespace regionrt
