// The entries of the plugin library: `IPluginRegistry::loadLibrary` and `trtexec --dynamicPlugins=` call them.
#include <stdio.h>
#include <string.h>

#include <atomic>

#include "tensorrt_plugin.h"

namespace regionrt {

namespace {
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};
}

void tell_error(const char* plugin, const std::string& what) noexcept {
    char line[512];
    snprintf(line, sizeof line, "regionrt plugin %s: %s", plugin, what.c_str());
    nvinfer1::ILoggerFinder* finder = logger_finder;
    nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
    if (logger) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line);
    } else {
        fprintf(stderr, "%s\n", line);
    }
}

void Arguments::add(float number) {
    int32_t bits;
    memcpy(&bits, &number, sizeof bits);
    add(bits);
}

std::string Arguments::launch(Kernel kernel, Grid grid, int32_t block, cudaStream_t stream) {
    std::vector<void*> addresses;
    for (Value& value : values_) addresses.push_back(&value);
#if defined(REGIONRT_ON_CPU)
    (void)stream;
    const int32_t blocks[3] = {grid.x, grid.y, grid.z}, threads[3] = {block, 1, 1};
    return kernel(blocks, threads, addresses.data()) == 0 ? "" : "the kernel's threads wait for ever";
#else
    const cudaError_t status = cudaLaunchKernel(kernel, dim3(grid.x, grid.y, grid.z), dim3(block), addresses.data(), 0, stream);
    return status == cudaSuccess ? "" : std::string("its kernel was not launched: ") + cudaGetErrorString(status);
#endif
}

const PluginField* Read::find(const char* name, PluginFieldType type, bool many) {
    for (int32_t i = 0; i < from_.nbFields; ++i) {
        const PluginField& field = from_.fields[i];
        if (!field.name || strcmp(field.name, name) != 0) continue;
        if (field.type == type && field.data && (many ? field.length >= 1 : field.length == 1)) return &field;
        if (error.empty()) {
            error = std::string("attribute ") + name + ": expected " + (many ? "numbers" : "one number") + " of type " +
                    std::to_string((int)type) + " (PluginFieldType), found " + std::to_string(field.length) +
                    " of type " + std::to_string((int)field.type);
        }
        return nullptr;
    }
    if (error.empty()) {
        error = std::string("attribute ") + name + " is missing: this library is of another version of regionrt than the " +
                "graph or engine; build both with the same";
    }
    return nullptr;
}

void Read::operator()(const char* name, int32_t& value) {
    const PluginField* field = find(name, PluginFieldType::kINT32, false);
    if (field) memcpy(&value, field->data, sizeof value);
}

void Read::operator()(const char* name, float& value) {
    const PluginField* field = find(name, PluginFieldType::kFLOAT32, false);
    if (field) memcpy(&value, field->data, sizeof value);
}

void Read::operator()(const char* name, std::vector<float>& values) {
    const PluginField* field = find(name, PluginFieldType::kFLOAT32, true);
    if (!field) return;
    values.resize((size_t)field->length);
    memcpy(values.data(), field->data, values.size() * sizeof(float));
}

}  // namespace regionrt

#define REGIONRT_ENTRY extern "C" __attribute__((visibility("default")))

REGIONRT_ENTRY nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
REGIONRT_ENTRY void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static const std::vector<nvinfer1::IPluginCreatorInterface*> all = [] {
        auto creators = regionrt::roi_align_creators();
        for (auto* creator : regionrt::nms_creators()) creators.push_back(creator);
        return creators;
    }();
    count = (int32_t)all.size();
    return all.data();
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { regionrt::logger_finder = finder; }
