// What our TensorRT plugins (IPluginV3) have in common: attributes, errors, launching a kernel. An op is a struct `Op`
// (plugins/<op>/tensorrt_plugin.cpp) without state; its attributes, and all that TensorRT asks for, stand here.
//
// Plain C++: the kernels are compiled apart, from plugins/*/kernel.cu, and are called by their addresses. For tests they
// are compiled for the CPU (REGIONRT_ON_CPU), and a plugin then computes there. TensorRT is not linked.
#pragma once

#include <NvInferRuntime.h>

#include <stdint.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace regionrt {

constexpr char kNamespace[] = "regionrt";
constexpr char kVersion[] = "1";

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

// To the logger of whoever called, or to standard error where TensorRT gave none.
void tell_error(const char* plugin, const std::string& what) noexcept;

// A kernel of plugins/*/kernel.cu. On a GPU it is nvcc's host function of that name, whose address stands for the
// kernel; its parameters are not declared here: they are passed by address, in the order of kernel.cu.
#if defined(REGIONRT_ON_CPU)
using Kernel = int32_t (*)(const int32_t*, const int32_t*, void**);
#define REGIONRT_DECLARE_KERNEL(name) extern "C" int32_t launch_##name(const int32_t*, const int32_t*, void**)
#define REGIONRT_KERNEL(name) (&launch_##name)
#else
using Kernel = const void*;
#define REGIONRT_DECLARE_KERNEL(name) extern "C" void name()
#define REGIONRT_KERNEL(name) (reinterpret_cast<const void*>(&name))
#endif

struct Grid {
    int32_t x, y, z;
};

// Arguments of a kernel: pointers, and int32 scalars (a float as its bits).
class Arguments {
public:
    void add(const void* pointer) { values_.push_back({pointer}); }
    void add(int32_t number) {
        Value value{nullptr};
        value.number = number;
        values_.push_back(value);
    }
    void add(float number);
    // Empty, or what CUDA says against it.
    std::string launch(Kernel kernel, Grid grid, int32_t block, cudaStream_t stream);

private:
    union Value {
        const void* pointer;
        int32_t number;
    };
    std::vector<Value> values_;
};

// Attributes visit themselves by name: to declare, read and write them.
class Declare {
public:
    explicit Declare(std::vector<PluginField>& fields) : fields_(fields) {}
    void operator()(const char* name, const int32_t&) { add(name, PluginFieldType::kINT32); }
    void operator()(const char* name, const float&) { add(name, PluginFieldType::kFLOAT32); }
    void operator()(const char* name, const std::vector<float>&) { add(name, PluginFieldType::kFLOAT32); }

private:
    void add(const char* name, PluginFieldType type) { fields_.emplace_back(name, nullptr, type, 1); }
    std::vector<PluginField>& fields_;
};

class Write {
public:
    explicit Write(std::vector<PluginField>& fields) : fields_(fields) {}
    void operator()(const char* name, const int32_t& value) { add(name, &value, PluginFieldType::kINT32, 1); }
    void operator()(const char* name, const float& value) { add(name, &value, PluginFieldType::kFLOAT32, 1); }
    void operator()(const char* name, const std::vector<float>& values) {
        add(name, values.data(), PluginFieldType::kFLOAT32, (int32_t)values.size());
    }

private:
    void add(const char* name, const void* data, PluginFieldType type, int32_t length) {
        fields_.emplace_back(name, data, type, length);
    }
    std::vector<PluginField>& fields_;
};

class Read {  // keeps the first error
public:
    explicit Read(const PluginFieldCollection& from) : from_(from) {}
    void operator()(const char* name, int32_t& value);
    void operator()(const char* name, float& value);
    void operator()(const char* name, std::vector<float>& values);
    std::string error;

private:
    const PluginField* find(const char* name, PluginFieldType type, bool many);
    const PluginFieldCollection& from_;
};

template <class Op>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    explicit Plugin(const typename Op::Attributes& attributes) : attributes_(attributes) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override { return guarded([&] { return new Plugin(attributes_); }); }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t inputs, const DynamicPluginTensorDesc*,
                            int32_t outputs) noexcept override {
        return counts(inputs, outputs) ? 0 : -1;
    }
    int32_t getOutputDataTypes(DataType* types, int32_t outputs, const DataType* given,
                               int32_t inputs) const noexcept override {
        if (!counts(inputs, outputs)) return -1;
        types[0] = Op::output_type(given);
        return 0;
    }
    int32_t getOutputShapes(const DimsExprs* given, int32_t inputs, const DimsExprs*, int32_t, DimsExprs* shapes,
                            int32_t outputs, IExprBuilder& expressions) noexcept override {
        if (!counts(inputs, outputs)) return -1;
        for (int32_t i = 0; i < inputs; ++i) {
            if (given[i].nbDims != Op::dimensions(i)) {
                tell_error(Op::kName, "input " + std::to_string(i) + ": expected " + std::to_string(Op::dimensions(i)) +
                                          " dimensions, found " + std::to_string(given[i].nbDims));
                return -1;
            }
        }
        shapes[0] = Op::output_shape(attributes_, given, expressions);
        return 0;
    }
    bool supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override {
        return counts(inputs, outputs) && Op::takes(place, tensors);
    }

    int32_t onShapeChange(const PluginTensorDesc* given, int32_t inputs, const PluginTensorDesc*,
                          int32_t outputs) noexcept override {
        return counts(inputs, outputs) && passes([&] { return Op::why_not(attributes_, given); }) ? 0 : -1;
    }
    int32_t enqueue(const PluginTensorDesc* given, const PluginTensorDesc*, const void* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return passes([&] { return Op::launch(attributes_, given, inputs, outputs[0], stream); }) ? 0 : -1;
    }
    const PluginFieldCollection* getFieldsToSerialize() noexcept override {
        return guarded([&] {
            fields_.clear();
            attributes_.visit(Write(fields_));
            collection_ = {(int32_t)fields_.size(), fields_.data()};
            return &collection_;
        });
    }

private:
    static bool counts(int32_t inputs, int32_t outputs) noexcept {
        if (inputs == Op::kInputs && outputs == 1) return true;
        tell_error(Op::kName, "expected " + std::to_string(Op::kInputs) + " inputs and 1 output, found " +
                                  std::to_string(inputs) + " and " + std::to_string(outputs));
        return false;
    }
    template <class Check>
    static bool passes(const Check& check) noexcept {
        try {
            const std::string error = check();
            if (error.empty()) return true;
            tell_error(Op::kName, error);
        } catch (const std::exception& error) {
            tell_error(Op::kName, error.what());
        }
        return false;
    }
    template <class Make>
    static auto guarded(const Make& make) noexcept -> decltype(make()) {
        try {
            return make();
        } catch (const std::exception& error) {
            tell_error(Op::kName, error.what());
            return nullptr;
        }
    }

    typename Op::Attributes attributes_;
    std::vector<PluginField> fields_;  // point into attributes_
    PluginFieldCollection collection_{};
};

template <class Op>
class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    Creator() {
        attributes_.visit(Declare(fields_));
        collection_ = {(int32_t)fields_.size(), fields_.data()};
    }
    // From a node of the graph or from an engine: both give all attributes.
    nvinfer1::IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        try {
            typename Op::Attributes attributes;
            const PluginFieldCollection none{};
            Read read(fields ? *fields : none);
            attributes.visit(read);
            std::string error = read.error;
            if (error.empty()) error = Op::why_not(attributes);
            if (error.empty()) return new Plugin<Op>(attributes);
            tell_error(Op::kName, std::string(name ? name : "") + ": " + error);
        } catch (const std::exception& error) {
            tell_error(Op::kName, error.what());
        }
        return nullptr;
    }
    const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    typename Op::Attributes attributes_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_{};
};

// The creators of each op's file.
std::vector<nvinfer1::IPluginCreatorInterface*> roi_align_creators();
std::vector<nvinfer1::IPluginCreatorInterface*> nms_creators();

}  // namespace regionrt
