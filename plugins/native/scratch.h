// Memory for the time of one item of work. No std::vector: its code, compiled for AVX-512 in one file, could be merged
// by the linker with the same code in another and then run on CPUs without it.
#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace regionrt {
namespace REGIONRT_VARIANT {

// Elements without constructors, uninitialised, aligned for any vector. `failed` when there is no memory.
template <class T>
class Scratch {
  public:
    explicit Scratch(int64_t count) : data_(allocate(count)) {}
    ~Scratch() { free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    bool failed() const { return data_ == nullptr; }
    T* get() const { return data_; }
    T& operator[](int64_t index) const { return data_[index]; }

    bool resize(int64_t count) {  // what it held is lost
        free(data_);
        data_ = allocate(count);
        return data_ != nullptr;
    }

  private:
    static T* allocate(int64_t count) {
        const size_t bytes = ((size_t)(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
        return static_cast<T*>(aligned_alloc(64, bytes));
    }

    T* data_;
};

// Whether any item of a parallel call ran out of memory.
class Failure {
  public:
    void note() { __atomic_store_n(&noted_, 1, __ATOMIC_RELAXED); }
    bool noted() const { return __atomic_load_n(&noted_, __ATOMIC_RELAXED) != 0; }

  private:
    int noted_ = 0;
};

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
