// What TensorRT does with a plugin, for tests without TensorRT: a C face for ctypes around the plugin library's objects.
// Shapes come as eight numbers a tensor, the first of which is the number of dimensions.
#include <stdio.h>

#include <deque>

#include "../../plugins/native/tensorrt_plugin.h"

using namespace nvinfer1;

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(ILoggerFinder* finder);

namespace {

std::string told;

class Logger : public ILogger {
    void log(Severity, const char* text) noexcept override { told = text; }
};

class Finder : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger_; }

private:
    Logger logger_;
};

class Size : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    explicit Size(int64_t value) : value_(value) { IDimensionExpr::mImpl = this; }
    bool isConstant() const override { return true; }
    bool isSizeTensor() const override { return false; }
    int64_t getConstantValue() const override { return value_; }

private:
    int64_t value_;
};

class Sizes : public IExprBuilder, public apiv::VExprBuilder {
public:
    Sizes() { IExprBuilder::mImpl = this; }
    const IDimensionExpr* constant(int64_t value) override { return &all_.emplace_back(value); }
    const IDimensionExpr* operation(DimensionOperation what, const IDimensionExpr& a, const IDimensionExpr& b) override {
        if (what != DimensionOperation::kPROD) return nullptr;
        return constant(a.getConstantValue() * b.getConstantValue());
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override { return nullptr; }

private:
    std::deque<Size> all_;
};

template <class T>
T* part(void* plugin, PluginCapabilityType type) {
    return static_cast<T*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}
IPluginV3OneCore* core(void* plugin) { return part<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }
IPluginV3OneBuild* building(void* plugin) { return part<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* running(void* plugin) { return part<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }

std::vector<DynamicPluginTensorDesc> describe(int32_t count, const int64_t* shapes, const int32_t* types, const int32_t* formats) {
    std::vector<DynamicPluginTensorDesc> tensors((size_t)count);
    for (int32_t i = 0; i < count; ++i) {
        PluginTensorDesc& tensor = tensors[i].desc;
        tensor.dims.nbDims = (int32_t)shapes[8 * i];
        for (int32_t d = 0; d < tensor.dims.nbDims; ++d) tensor.dims.d[d] = shapes[8 * i + 1 + d];
        tensor.type = static_cast<DataType>(types[i]);
        tensor.format = static_cast<TensorFormat>(formats[i]);
        tensor.scale = 1;
        tensors[i].min = tensors[i].opt = tensors[i].max = tensor.dims;
    }
    return tensors;
}

}  // namespace

extern "C" {

const char* last_error() {
    static std::string kept;
    kept = told;
    told.clear();
    return kept.c_str();
}

IPluginCreatorV3One* creator(int32_t index) {
    static Finder finder;
    setLoggerFinder(&finder);
    int32_t count = 0;
    IPluginCreatorInterface* const* all = getCreators(count);
    return index < count ? static_cast<IPluginCreatorV3One*>(all[index]) : nullptr;
}
const char* interface_of(IPluginCreatorV3One* creator) { return creator->getInterfaceInfo().kind; }
const char* name_of(IPluginCreatorV3One* creator) { return creator->getPluginName(); }
const char* namespace_of(IPluginCreatorV3One* creator) { return creator->getPluginNamespace(); }
const char* version_of(IPluginCreatorV3One* creator) { return creator->getPluginVersion(); }
const PluginFieldCollection* fields_of(IPluginCreatorV3One* creator) { return creator->getFieldNames(); }
void* create(IPluginCreatorV3One* creator, const PluginFieldCollection* fields, int32_t phase) {
    return creator->createPlugin("a node", fields, static_cast<TensorRTPhase>(phase));
}

void destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }
void* clone_of(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
void* attach(void* plugin) { return running(plugin)->attachToContext(nullptr); }
const PluginFieldCollection* serialized(void* plugin) { return running(plugin)->getFieldsToSerialize(); }
const char* plugin_name(void* plugin) { return core(plugin)->getPluginName(); }

int32_t output_type(void* plugin, int32_t inputs, const int32_t* types) {
    std::vector<DataType> given;
    for (int32_t i = 0; i < inputs; ++i) given.push_back(static_cast<DataType>(types[i]));
    DataType found;
    if (building(plugin)->getNbOutputs() != 1) return -2;
    return building(plugin)->getOutputDataTypes(&found, 1, given.data(), inputs) == 0 ? (int32_t)found : -1;
}

int32_t output_shape(void* plugin, int32_t inputs, const int64_t* shapes, int64_t* found) {
    Sizes sizes;
    std::vector<DimsExprs> given((size_t)inputs);
    for (int32_t i = 0; i < inputs; ++i) {
        given[i].nbDims = (int32_t)shapes[8 * i];
        for (int32_t d = 0; d < given[i].nbDims; ++d) given[i].d[d] = sizes.constant(shapes[8 * i + 1 + d]);
    }
    DimsExprs shape{};
    if (building(plugin)->getOutputShapes(given.data(), inputs, nullptr, 0, &shape, 1, sizes) != 0) return -1;
    for (int32_t d = 0; d < shape.nbDims; ++d) found[d] = shape.d[d]->getConstantValue();
    return shape.nbDims;
}

int32_t takes(void* plugin, int32_t place, int32_t inputs, const int64_t* shapes, const int32_t* types, const int32_t* formats) {
    const auto tensors = describe(inputs + 1, shapes, types, formats);
    return building(plugin)->supportsFormatCombination(place, tensors.data(), inputs, 1);
}

// Tensors: the inputs, then the output.
int32_t run(void* plugin, int32_t inputs, const int64_t* shapes, const int32_t* types, const int32_t* formats, void** data) {
    const auto tensors = describe(inputs + 1, shapes, types, formats);
    if (building(plugin)->configurePlugin(tensors.data(), inputs, &tensors[(size_t)inputs], 1) != 0) return 1;
    std::vector<PluginTensorDesc> plain;
    for (const auto& tensor : tensors) plain.push_back(tensor.desc);
    if (running(plugin)->onShapeChange(plain.data(), inputs, &plain[(size_t)inputs], 1) != 0) return 2;
    return running(plugin)->enqueue(plain.data(), &plain[(size_t)inputs], data, data + inputs, nullptr, nullptr) ? 3 : 0;
}
}
