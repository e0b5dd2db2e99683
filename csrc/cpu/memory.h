// Memory for large results, kept for the next one when a tensor is freed. The C library returns
// such blocks to the system, and the first touch of new pages costs more than what the kernels
// write to them: with the memory recycled, a training step on CRAD's shapes takes about half the
// time.
//
// Nothing here locks, throws or calls the C library's allocator, so that tensors can be freed
// anywhere, and a process can fork at any moment.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace crad {

class Recycler {
 public:
  static constexpr size_t kSmallest = 8 << 20;  // bytes; smaller blocks the C library keeps itself
  static constexpr size_t kKept = 256 << 20;    // bytes kept at most while no tensor uses them

  struct Block {
    void* memory;  // begins with a huge page
    size_t size;
  };

  // A block of at least so many bytes, which are `kSmallest` or more. Null if there is no memory,
  // not even that of the blocks that were kept.
  Block take(size_t bytes) noexcept {
    const size_t size = size_of(bytes);
    if (const uintptr_t block = find(size)) return block_of(block);
    if (void* const memory = map(size)) return {memory, size};
    release();
    return {map(size), size};
  }

  // Keeps a block, and frees the oldest where too much is kept.
  void give_back(Block block) noexcept {
    if (block.size > kKept) {
      munmap(block.memory, block.size);
      return;
    }
    const uint32_t place = next_.fetch_add(1);
    free_block(slots_[place % kSlots].exchange(number_of(block)));
    size_t kept = 0;
    for (const std::atomic<uintptr_t>& slot : slots_) kept += size_in(slot.load());
    for (uint32_t i = 1; i < kSlots && kept > kKept; ++i)
      kept -= std::min(kept, free_block(slots_[(place + i) % kSlots].exchange(0)));
  }

  // Frees all that is kept.
  void release() noexcept {
    for (std::atomic<uintptr_t>& slot : slots_) free_block(slot.exchange(0));
  }

  // The size of a new block for so many bytes. There are eight between a power of two and the next,
  // so that results of varying size find one, and no more than a ninth of it is not used.
  static size_t size_of(size_t bytes) noexcept {
    size_t step = kUnit;
    while (16 * step <= bytes && bytes <= kKept) step *= 2;
    return (bytes + step - 1) / step * step;
  }

 private:
  static constexpr size_t kUnit = 1 << 20;  // of the size of a block, a multiple of any small page
  static constexpr uintptr_t kPage = 2 << 20;  // a huge one
  // A block that so many later ones have passed by is freed.
  static constexpr uint32_t kSlots = 256;

  // In a slot a block is one number, its address and its size in units, so that who takes it in one
  // step has both. 0: none.
  static_assert(kSmallest >= 8 * kUnit && kKept / kUnit < kPage);
  static uintptr_t number_of(Block block) noexcept {
    return reinterpret_cast<uintptr_t>(block.memory) | block.size / kUnit;
  }
  static Block block_of(uintptr_t number) noexcept {
    return {reinterpret_cast<void*>(number / kPage * kPage), size_in(number)};
  }
  static size_t size_in(uintptr_t number) noexcept { return number % kPage * kUnit; }

  // Takes one of the smallest blocks that are kept and have this size, or a quarter more at most;
  // of these the newest, which caches may still hold. 0 if there is none.
  uintptr_t find(size_t size) noexcept {
    for (;;) {
      uintptr_t best = 0;
      std::atomic<uintptr_t>* from = nullptr;
      const uint32_t next = next_.load();
      for (uint32_t age = 1; age <= kSlots; ++age) {
        std::atomic<uintptr_t>& slot = slots_[(next - age) % kSlots];
        const uintptr_t number = slot.load();
        const size_t there = size_in(number);
        if (there < size || there > size + size / 4) continue;
        if (best != 0 && there >= size_in(best)) continue;
        best = number;
        from = &slot;
      }
      // Again if another thread was faster.
      if (best == 0 || from->compare_exchange_strong(best, 0)) return best;
    }
  }

  // Frees the block of a slot, if there was one; returns its size.
  static size_t free_block(uintptr_t number) noexcept {
    const Block block = block_of(number);
    if (block.size > 0) munmap(block.memory, block.size);
    return block.size;
  }

  static void* map(size_t size) noexcept {
    // A huge page more than that, of which what lies before and behind the block is returned.
    void* const mapped =
        mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    const uintptr_t before = -reinterpret_cast<uintptr_t>(mapped) % kPage;
    char* const memory = static_cast<char*>(mapped) + before;
    if (before > 0) munmap(mapped, before);
    munmap(memory + size, kPage - before);
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    return memory;
  }

  std::atomic<uintptr_t> slots_[kSlots] = {};
  std::atomic<uint32_t> next_{0};  // the slot for the next block that is given back
};

// The one of the process. It is there from the start, with no code that would make it, and is never
// destroyed: tensors may outlive every static object.
inline Recycler recycler;

}  // namespace crad
