// Threads of a GPU, on one of a CPU, by turns: a warp goes on until it waits for others.

#include <stddef.h>
#include <string.h>
#include <vector>
#include <ucontext.h>

struct Thread { ucontext_t at; bool done; std::vector<char> stack; };
struct Barrier { int arrived, passed; };
struct Index { int x; };
extern "C" Index threadIdx;
Index threadIdx;
static std::vector<Thread> threads;
static std::vector<Barrier> warps;
static Barrier block;
static ucontext_t scheduler;
static bool moved;
static void (*kernel)(ptrdiff_t);
static ptrdiff_t first;

static void thread() {
    kernel(first + threadIdx.x);
    moved = threads[threadIdx.x].done = true;
}
static void wait(Barrier& barrier, int all) {
    const int passed = barrier.passed;
    moved = true;
    if (++barrier.arrived == all) barrier.arrived = 0, barrier.passed++;
    while (barrier.passed == passed) swapcontext(&threads[threadIdx.x].at, &scheduler);
}
extern "C" void __syncthreads() { wait(block, threads.size()); }
extern "C" void shuffle(const void* own, size_t size, int other, void* taken) {
    static double given[1024];
    memcpy(&given[threadIdx.x], own, size);
    wait(warps[threadIdx.x / 32], 32);
    memcpy(taken, &given[threadIdx.x ^ other], size);
    wait(warps[threadIdx.x / 32], 32);
}
static bool go_on(size_t warp) {
    bool any = false;
    do {
        moved = false;
        for (size_t k = 32 * warp; k < 32 * warp + 32 && k < threads.size(); k++) {
            threadIdx.x = k;
            if (!threads[k].done) swapcontext(&scheduler, &threads[k].at);
        }
        any = any || moved;
    } while (moved);
    return any;
}
extern "C" bool launch(void (*called)(ptrdiff_t), ptrdiff_t count, ptrdiff_t most) {
    kernel = called;
    threads.resize(most < count ? most : count);
    for (first = 0; first < count; first += most) {
        warps.assign(threads.size() / 32 + 1, Barrier());
        block = Barrier();
        for (ptrdiff_t k = 0; k < (ptrdiff_t) threads.size(); k++) {
            Thread& own = threads[k];
            own.done = first + k >= count;
            own.stack.resize(1 << 15);
            getcontext(&own.at);
            own.at.uc_stack.ss_sp = own.stack.data();
            own.at.uc_stack.ss_size = own.stack.size();
            own.at.uc_link = &scheduler;
            makecontext(&own.at, thread, 0);
        }
        for (bool any = true; any;) {
            any = false;
            for (size_t warp = 0; warp < warps.size(); warp++) any = go_on(warp) || any;
        }
        for (Thread& own : threads) if (!own.done) return false;
    }
    return true;
}
