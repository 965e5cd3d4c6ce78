// Work on several threads: torch's own where they can be had. They spin for a while after each of torch's operations, and
// threads of ours would wait for their cores meanwhile: a step took twice the time.
#pragma once
#include <thread>
#include <vector>

// In torch's libgomp, which `import torch` makes visible; 0 where torch was built with another OpenMP.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);

template <class F>
void on_threads(long count, F& work) {  // work() shares out what there is by itself, however many threads call it
    if (count <= 1) return work();
    if (GOMP_parallel) return GOMP_parallel([](void* f) { (*(F*)f)(); }, &work, unsigned(count), 0);
    std::vector<std::thread> others;
    for (long i = 1; i < count; ++i) others.emplace_back([&] { work(); });
    work();
    for (auto& t : others) t.join();
}
