// CUDA kernels as plain C++, for tests: every thread of a block is a fiber, and one block runs after the other.
//
// Shared memory holds rubbish when a block begins. Fibers go on until they wait, in ascending or descending order
// (`regionrt_thread_order`): a barrier that is missing shows in one of the two. Threads that have returned count as
// arrived, as on the hardware. When no thread can go on, the launch ends with an error instead of waiting for ever.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

namespace cuda_on_cpu {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

struct Barrier {
    int arrived = 0, generation = 0;
};

struct Fiber {
    ucontext_t context;
    Dim thread;
    int number;
    bool done;
};

constexpr size_t kStack = 64 << 10, kShared = 48 << 10;
constexpr int kWarp = 32, kMostThreads = 1024;

inline Dim grid, block, block_index;
inline Fiber fibers[kMostThreads];
inline Fiber* running;
inline ucontext_t scheduler;
inline Barrier block_barrier, warp_barriers[kMostThreads / kWarp];
inline int threads, alive, alive_in_warp[kMostThreads / kWarp];
inline uint64_t exchange[kMostThreads];
inline bool progress, stuck, descending;
alignas(128) inline unsigned char shared_memory[kShared];
inline void (*body)(void**);
inline void** arguments;

inline void wait(Barrier& barrier, int needed) {
    const int generation = barrier.generation;
    if (++barrier.arrived >= needed) {
        barrier.arrived = 0;
        ++barrier.generation;
        progress = true;
    }
    while (barrier.generation == generation) swapcontext(&running->context, &scheduler);
}

inline void release(Barrier& barrier, int needed) {  // one thread fewer is waited for
    if (needed && barrier.arrived >= needed) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
}

inline void start() {
    body(arguments);
    const int warp = running->number / kWarp;
    running->done = progress = true;
    release(block_barrier, --alive);
    release(warp_barriers[warp], --alive_in_warp[warp]);
    swapcontext(&running->context, &scheduler);
}

inline char* stacks() {
    static char* memory = static_cast<char*>(mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return memory;
}

inline void run_block() {
    memset(shared_memory, 0xCB, kShared);
    block_barrier = {};
    alive = threads;
    for (int warp = 0; warp * kWarp < threads; ++warp) {
        warp_barriers[warp] = {};
        alive_in_warp[warp] = threads - warp * kWarp < kWarp ? threads - warp * kWarp : kWarp;
    }
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.number = i;
        fiber.done = false;
        fiber.thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks() + i * kStack;
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
    }
    while (alive && !stuck) {
        progress = false;
        for (int i = 0; i < threads; ++i) {
            running = &fibers[descending ? threads - 1 - i : i];
            if (!running->done) swapcontext(&scheduler, &running->context);
        }
        stuck = !progress;
    }
}

inline int launch(void (*kernel)(void**), const int32_t* grid_size, const int32_t* block_size, void** args) {
    grid = {(unsigned)grid_size[0], (unsigned)grid_size[1], (unsigned)grid_size[2]};
    block = {(unsigned)block_size[0], (unsigned)block_size[1], (unsigned)block_size[2]};
    threads = block_size[0] * block_size[1] * block_size[2];
    if (threads < 1 || threads > kMostThreads) return 2;
    body = kernel;
    arguments = args;
    stuck = false;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x && !stuck; ++x) {
                block_index = {x, y, z};
                run_block();
            }
        }
    }
    return stuck;
}

template <class T>
struct Call;
template <class... A>
struct Call<void (*)(A...)> {
    template <size_t... I>
    static void with(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<A>*>(args[I])...);
    }
    static void with(void (*kernel)(A...), void** args) { with(kernel, args, std::index_sequence_for<A...>{}); }
    static int32_t sizes(int32_t* each) {
        int32_t count = 0;
        ((each[count++] = (int32_t)sizeof(A)), ...);
        return count;
    }
};

}  // namespace cuda_on_cpu

#define gridDim cuda_on_cpu::grid
#define blockDim cuda_on_cpu::block
#define blockIdx cuda_on_cpu::block_index
#define threadIdx (cuda_on_cpu::running->thread)

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::block_barrier, cuda_on_cpu::alive); }

inline void __syncwarp(unsigned = ~0u) {
    const int warp = cuda_on_cpu::running->number / cuda_on_cpu::kWarp;
    cuda_on_cpu::wait(cuda_on_cpu::warp_barriers[warp], cuda_on_cpu::alive_in_warp[warp]);
}

inline unsigned __ballot_sync(unsigned, int predicate) {
    using namespace cuda_on_cpu;
    const int base = running->number / kWarp * kWarp;
    exchange[running->number] = predicate != 0;
    __syncwarp();
    unsigned votes = 0;
    for (int lane = 0; lane < kWarp && base + lane < threads; ++lane) votes |= (unsigned)exchange[base + lane] << lane;
    __syncwarp();
    return votes;
}

template <class T>
T shuffled(T value, int lane) {  // of this thread's warp
    using namespace cuda_on_cpu;
    memcpy(&exchange[running->number], &value, sizeof value);
    __syncwarp();
    T other;
    memcpy(&other, &exchange[running->number / kWarp * kWarp + lane], sizeof other);
    __syncwarp();
    return other;
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return shuffled(value, lane);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    return shuffled(value, cuda_on_cpu::running->number % cuda_on_cpu::kWarp ^ distance);
}

template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
    const int lane = cuda_on_cpu::running->number % cuda_on_cpu::kWarp;
    return shuffled(value, lane < distance ? lane : lane - distance);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int atomicAdd(int* address, int value) {
    const int before = *address;
    *address += value;
    return before;
}

// Static shared memory of a kernel is one struct, at the start of the pool.
#define REGIONRT_SHARED(Type, name)                                                        \
    static_assert(sizeof(Type) <= cuda_on_cpu::kShared, "a block has 48 KiB");             \
    Type& name = *reinterpret_cast<Type*>(cuda_on_cpu::shared_memory)

// `int32_t launch_<kernel>(grid, block, arguments)`, as cuLaunchKernel takes them; `int32_t parameters_<kernel>(sizes)`
// gives the number of its parameters and their bytes.
#define REGIONRT_EXPORT(kernel)                                                                              \
    extern "C" int32_t launch_##kernel(const int32_t* grid, const int32_t* block, void** arguments) {        \
        return cuda_on_cpu::launch([](void** a) { cuda_on_cpu::Call<decltype(&kernel)>::with(&kernel, a); }, \
                                   grid, block, arguments);                                                  \
    }                                                                                                        \
    extern "C" int32_t parameters_##kernel(int32_t* sizes) {                                                 \
        return cuda_on_cpu::Call<decltype(&kernel)>::sizes(sizes);                                           \
    }

extern "C" void regionrt_thread_order(int32_t descending) { cuda_on_cpu::descending = descending; }
